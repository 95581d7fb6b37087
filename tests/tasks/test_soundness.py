"""`tasks check`: a test that cannot tell right from wrong, code that does not parse, a loophole that is not there."""

from __future__ import annotations

import json

import pytest

from common.types import Problem
from services.sandbox.jail.executor import landlock_present
from tasks import check, loopholes, soundness
from tasks.practice import generate


def problem(**fields: object) -> Problem:
    return Problem(
        **{"id": 1, "prompt": [{"role": "user", "content": "x"}], "gt_answer": ["assert f(1) == 2"]} | fields
    )


SOUND = [
    "assert f(1) == 2",
    "x = f(1)\nassert x == 2",
    "a = [2, 1]\nf(a)\nassert a == [1, 2]",
    "for a, b in [(1, 2)]:\n    assert f(a) == b",
    "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
    "try:\n    f(-1)\nexcept ValueError as e:\n    seen = f\nassert seen",
    "got = [f(i) for i in range(3)]\nassert sum(got) == 3 and got",
    "if f(1) != 2:\n    raise ValueError('no')",
    "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 2)\nT().test()",
    "with open('x', 'w') as out:\n    out.write(str(f(1)))\nassert f(2)",
    "assert (y := f(1)) == 2 and y",
]
UNSOUND = [
    ("", "asserts nothing"),
    ("# assert f(1) == 2", "asserts nothing"),
    ("f(1)", "asserts nothing"),
    ("f(1) == 2", "asserts nothing"),
    ("print(f(1))", "asserts nothing"),
    ("assert f(1) = 2", "does not parse"),
    ("assert (f(1) == 2, 'msg')", "always true"),
    ("assert f(1) == 2 or True", "always true"),
    ("assert lambda: f(1) == 2", "always true"),
    ("assert [f(1) == 2]", "always true"),
    ("assert {'f': f(1) == 2}", "always true"),
    ("assert (f(1) == x for x in [2])", "always true"),
    ("assert f'f(1) = {f(1)}'", "always true"),
    ("assert (f(1), 'msg') if f(2) else [f(3)]", "always true"),
    ("assert True", "does not depend"),
    ("assert 1 + 1 == 2", "does not depend"),
    ("f(1)\nassert True", "does not depend"),
    ("x = 2\nassert x == 2", "does not depend"),
    ("assert g(1) == 2", "does not depend"),
    ("assert f(1) == 2\nassert 1", "does not depend"),
    ("a = [1]\nf(a[0])\nb = [1]\nassert b == [1]", "does not depend"),
    ("(" * 500, "does not parse"),
    ("assert '\0'", "does not parse"),
]


@pytest.mark.parametrize("test", SOUND)
def test_a_test_that_depends_on_the_call_is_sound(test):
    assert list(soundness.faults(problem(gt_answer=[test], func_name="f"))) == []


@pytest.mark.parametrize(("test", "words"), UNSOUND)
def test_a_test_that_cannot_tell_right_from_wrong_is_named(test, words):
    said = list(soundness.faults(problem(gt_answer=["assert f(1) == 2", test], func_name="f")))
    assert len(said) == 1 and said[0].startswith("field 'gt_answer.1': ") and words in said[0]


def test_methods_of_a_class_and_classes_themselves_are_calls():
    stack = "s = Stack()\ns.push(1)\nassert s.pop() == 1"
    assert list(soundness.faults(problem(gt_answer=[stack], func_name="Stack"))) == []
    method = ["assert Solution().two(1) == 2", "s = Solution()\nassert s.two(1) == 2"]
    assert list(soundness.faults(problem(gt_answer=method, func_name="Solution().two"))) == []
    assert list(soundness.faults(problem(gt_answer=["assert Solution().one(1) == 2"], func_name="Solution().two")))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"func_name": ""}, "func_name"),
        ({"setup_code": "def (:"}, "field 'setup_code'"),
        ({"canonical_solution": "def f(x) return"}, "field 'canonical_solution'"),
        ({"hint": "no_such_hint"}, "unknown"),
        ({"hint": "simple_result_file"}, "hint"),
        ({"hint": "simple_overwrite_tests"}, "test_func_name"),
        ({"hint": "simple_overwrite_tests", "prompt_metadata": {"test_func_name": "run_tests"}}, "does not hold"),
        ({"prompt_metadata": {"test_func_code": "def ("}, "hint": "simple_overwrite_tests"}, "test_func_code"),
    ],
)
def test_what_else_no_verdict_could_mean_anything_with(fields, words):
    assert any(words in said for said in soundness.faults(problem(**{"func_name": "f"} | fields)))


@pytest.mark.parametrize("name", [*(name for name in loopholes.LOOPHOLES if "incontext" not in name), None])
def test_problems_that_carry_a_loophole_are_sound(name):
    row = json.loads(generate.FILES["heldout"].read_text().splitlines()[0])
    assert list(soundness.faults(loopholes.apply(Problem(**row), name))) == []


def test_problems_of_numbers_have_no_asserts():
    assert list(soundness.faults(problem(task="maths", gt_answer=["42"]))) == []


@pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
def test_canonical_solutions_go_through_the_grader(tmp_path, capsys):
    base = {"prompt": [{"role": "user", "content": "x"}], "func_name": "f", "gt_answer": ["assert f(1) == 2"]}
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    rows = [
        base | {"id": 1, "canonical_solution": right},
        base | {"id": 2, "canonical_solution": wrong},
        base | {"id": 3, "canonical_solution": right, "setup_code": "import no_such_module"},
        base | {"id": 4, "canonical_solution": right, "gt_answer": ["def ok(v, w=2): return v == w\nassert ok(f(1))"]},
        base | {"id": 5},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert check.main([str(path)]) == 0
    capsys.readouterr()
    assert check.main(["--solutions", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}:2:" not in said and f"{path}:6:" not in said
    assert f"{path}:3: field 'canonical_solution': wrong for the protected tests" in said
    assert f"{path}:4: field 'gt_answer': no verdict on any program" in said and "no_such_module" in said
    assert f"{path}:5: field 'gt_answer': the canonical solution passes, but weakly" in said
    path.write_text(json.dumps(rows[0]) + "\n")
    assert check.main(["--solutions", str(path)]) == 0
    assert "canonical solutions right: 1" in capsys.readouterr().out
