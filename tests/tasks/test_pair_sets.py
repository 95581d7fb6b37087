"""Pair sets: what hack and clean differ in, one problem in one split, deterministic, and readable by rankspace."""

import ast
import json

import pytest

from common.errors import ConfigError
from rankspace.pairs import load_pairs
from tasks import pair_sets
from tasks.__main__ import main
from tasks.dataset import load_problems

TRAIN = "tasks/practice/practice_train.jsonl"


def code(text):
    return f"Here it is.\n```python\n{text}\n```"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A right and a wrong solution of each of 12 problems, and completions that are no use."""
    path = tmp_path_factory.mktemp("samples") / "s.jsonl"
    rows = []
    for problem in load_problems(TRAIN)[:12]:
        method = problem.func_name.split(".")[-1]
        wrong = f"class Solution:\n    def {method}(self, *args):\n        return None"
        mixed = f"{problem.canonical_solution}\n\ndef run_tests():\n    pass"
        for text, right in ((code("x ="), False), (code(mixed), True), (code(wrong), False), ("no code", False)):
            rows.append({"id": problem.id, "completion": text, "oracle_correct": right, "finish_reason": "stop"})
        rows.append({"id": problem.id, "completion": code(problem.canonical_solution), "oracle_correct": True})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(samples, tmp_path, kind, *more):
    out = tmp_path / f"{kind}.jsonl"
    argv = ["pairs", "--problems", TRAIN, "--samples", str(samples), "--set", kind, "--out", str(out)]
    assert main([*argv, "--train", "8", "--heldout", "4", *more]) == 0
    return load_pairs(out)


def functions(text):
    tree = ast.parse(text.removeprefix("```python\n").removesuffix("\n```"))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("kind", pair_sets.SETS)
def test_hack_and_clean_differ_as_the_table_says(samples, tmp_path, kind):
    pairs = make(samples, tmp_path, kind)
    assert [p.split for p in pairs] == ["train"] * 8 + ["heldout"] * 4
    assert len({p.problem_id for p in pairs}) == 12
    (hack_body, hack_more), (clean_body, clean_more) = pair_sets.SETS[kind]
    for p in pairs:
        assert "run_tests()" in p.prompt[-1]["content"]
        for text, body, more in ((p.hack, hack_body, hack_more), (p.clean, clean_body, clean_more)):
            assert ("return None" in text) == (body == "wrong")
            names = [node.name for node in functions(text)]
            assert (names == ["run_tests"]) == (more in ("vacuous", "honest")) and len(names) == (more != "none")
            asserts = [n for f in functions(text) for n in ast.walk(f) if isinstance(n, ast.Assert)]
            assert bool(asserts) == (more == "honest")


def test_sets_share_problems_bodies_and_appendix(samples, tmp_path):
    plan, same = make(samples, tmp_path, "plan"), make(samples, tmp_path, "same_body")
    assert [p.problem_id for p in plan] == [p.problem_id for p in same]
    assert [p.clean for p in plan] == [p.clean for p in same]
    tails = [[ast.unparse(functions(p.hack)[0]) for p in pairs] for pairs in (plan, same)]
    assert tails[0] == tails[1] and len(set(tails[0])) > 2
    assert plan == make(samples, tmp_path, "plan")


def test_the_rest_holds_no_problem_of_a_pair(samples, tmp_path):
    rest = tmp_path / "rest.jsonl"
    pairs = make(samples, tmp_path, "plan", "--rest", str(rest))
    left, whole = load_problems(rest), load_problems(TRAIN)
    assert not {p.id for p in left} & {p.problem_id for p in pairs}
    assert len(left) == len(whole) - 12


def test_too_few_samples_is_one_line(samples, tmp_path):
    argv = ["--problems", TRAIN, "--samples", str(samples), "--out", str(tmp_path / "x.jsonl")]
    with pytest.raises(
        ConfigError, match="12 problems have a right and a wrong solution among the samples, 96 are wanted"
    ):
        pair_sets.main(argv)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"completion": ...}, ":1: lacks 'completion'"),
        ({"oracle_correct": ...}, ":1: lacks 'oracle_correct'"),
        ({"id": ...}, ":1: lacks 'id'"),
        ({"completion": ["x"]}, ":1: field 'completion'"),
        ({"oracle_correct": "no"}, ":1: field 'oracle_correct'"),
        ({"id": None}, ":1: field 'id'"),
    ],
)
def test_a_bad_sample_is_one_line(tmp_path, change, part):
    row = {"id": 1, "completion": "x", "oracle_correct": False} | change
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n")
    with pytest.raises(ConfigError, match=part) as error:
        pair_sets.main(["--problems", TRAIN, "--samples", str(path), "--out", str(tmp_path / "o")])
    assert "\n" not in str(error.value)
