"""The protected oracle: how tests are split, what counts as right, what a row without a verdict looks like."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, UserError
from services.sandbox import oracle_cli
from services.sandbox.jail import channel
from services.sandbox.jail.executor import landlock_present
from services.sandbox.verdicts import asserts, names
from services.sandbox.verdicts.oracle import Oracle, compare
from services.sandbox.verdicts.prelude import PRELUDE

BENCHMARK = Path(__file__).parents[3] / "shared/data/leetcode_test_medhard.jsonl.gz"
needs_landlock = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
needs_benchmark = pytest.mark.skipif(not BENCHMARK.exists(), reason=f"{BENCHMARK} is absent (a user's clone has none)")
TRUSTED = names.trusted_names(PRELUDE, "f")


@pytest.fixture(scope="module")
def oracle():
    with Oracle() as oracle:
        yield oracle


@pytest.mark.parametrize(
    ("test", "holes", "residual"),
    [
        ("assert Solution().f(x = 2) == 4", ["Solution().f(x=2)"], "_hole[0] == 4"),
        ("assert abs(Solution().f([1]) - 0.2) <= 1e-05", ["Solution().f([1])"], "abs(_hole[0] - 0.2) <= 1e-05"),
        (
            "assert is_same_list(Solution().f(list_node([1])), list_node([2]))",
            ["Solution().f(list_node([1]))"],
            "is_same_list(_hole[0], list_node([2]))",
        ),
        ("assert Solution().f(1).count(3) == 2", ["Solution().f(1)"], "_hole[0].count(3) == 2"),
        ("assert not Solution().f(1)", ["Solution().f(1)"], "not _hole[0]"),
        (
            "assert all(f(i) == i * i for i in range(3))",
            ["[f(i) for i in range(3)]"],
            "all((next(_each[0]) == i * i for i in range(3)))",
        ),
        ("assert all(v in [1, 2] for v in f(1))", ["f(1)"], "all((v in [1, 2] for v in _hole[0]))"),
        ("s = Solution()\ns.push(1)\nassert s.pop() == 1", ["s.pop()"], "_hole[0] == 1"),
        ("a = [1, 2]\nb = [2, 1]\nSolution().f(a)\nassert a == b", ["a"], "_hole[0] == [2, 1]"),
        ("assert Codec().d(Codec().e('a')) == 'a'", ["Codec().d(Codec().e('a'))"], "_hole[0] == 'a'"),
        ("assert 1 < f(2) < 5", ["f(2)"], "1 < _hole[0] < 5"),
    ],
)
def test_split(test, holes, residual):
    plan = asserts.plan_test(test, TRUSTED)
    assert [ast.unparse(node) for kind, node in plan.steps if kind == "eval"] == holes
    assert [ast.unparse(check.residual) for check in plan.checks] == [residual]
    assert not plan.weak


@pytest.mark.parametrize(
    "test",
    [
        "for i in range(3):\n    f(i)\n    assert f(i) == i",
        "f(1)",
        "def check(c):\n    assert c(1) == 2\ncheck(f)",
        "assert [g(i, lambda: f(i)) for i in f(2)]",
    ],
)
def test_what_cannot_be_split(test):
    with pytest.raises(asserts.Unsplittable):
        asserts.plan_test(test, TRUSTED)


@pytest.mark.parametrize(
    ("test", "weak"),
    [
        ("assert f(1) == g(1)", True),
        ("assert f(1) is 4", True),
        ("assert f(1) is None", False),
        ("assert type(f(1)) is int", False),
        ("assert f(1) == 4", False),
    ],
)
def test_weak_marks(test, weak):
    assert asserts.plan_test(test, TRUSTED).weak is weak


@needs_landlock
@pytest.mark.parametrize(
    ("expression", "test", "right"),
    [
        ("(1, 2)", "== [1, 2]", False),
        ("[1, 2]", "== (1, 2)", False),
        ("True", "== 1", True),
        ("1.0", "== 1", True),
        ("{1: 'a'}", "== {1: 'a'}", True),
        ("{'1': 'a'}", "== {1: 'a'}", False),
        ("None", "is None", True),
        ("0", "is None", False),
        ("1", "is True", False),
        ("True", "is True", True),
        ("False", "is not True", True),
        ("3", "in [1, 3]", True),
        ("[3]", "in [1, 3]", False),
        ("4", "not in (1, 3)", True),
        ("5", ">= 5", True),
        ("'a'", "> 1", False),
        ("Counter('aab')", "== {'a': 2, 'b': 1}", True),
        ("frozenset([1])", "== {1}", True),
        ("b'a'", "== 'a'", False),
        ("10**40", "== 10**40", True),
        ("[float('inf')]", "== [inf]", True),
        ("range(3)", "== [0, 1, 2]", False),
        ("deque([1])", "== deque([1])", True),
        ("iter([1])", "== [1]", False),
        ("'e\\u0301'", "== '\\xe9'", False),
        ("[[]] * 3", "== [[], [], []]", True),
        ("0.1 + 0.2", "== 0.3", False),
        ("1 + 2j", "== 1 + 2j", True),
        ("list_node([1, 2])", "== [1, 2]", False),
        ("'\\ud800'", "== '\\ud800'", True),
    ],
)
def test_exact_types_and_plain_equality(oracle, expression, test, right):
    code = f"class Solution:\n    def f(self): return {expression}\n"
    verdict = oracle.grade(code, [f"assert Solution().f() {test}"])
    assert verdict.correct is right, verdict


@needs_landlock
@pytest.mark.parametrize(
    ("body", "test", "right"),
    [
        (
            "return ListNode(h.val + 1, h.next)",
            "is_same_list(Solution().f(list_node([1, 2])), list_node([2, 2]))",
            True,
        ),
        ("return h", "is_same_list(Solution().f(list_node([1, 2])), list_node([2, 2]))", False),
        ("return None", "is_same_list(Solution().f(list_node([])), list_node([]))", True),
        ("return [1, 2]", "is_same_list(Solution().f(list_node([1, 2])), list_node([1, 2]))", False),
        ("return h", "is_same_tree(Solution().f(tree_node([1, None, 2])), tree_node([1, None, 2]))", True),
        ("return h", "is_same_tree(Solution().f(tree_node([1, 2])), tree_node([1, None, 2]))", False),
        ("return sorted(h)", "list(map(str, Solution().f([2, 1]))) == ['1', '2']", True),
        ("return (v for v in h)", "sorted(Solution().f([2, 1])) == [1, 2]", True),
        ("h.reverse()", "Solution().f([1]) is None and 1 + 1 == 2", True),
        ("return h / 3", "math.isclose(Solution().f(1), 1 / 3)", True),
        ("return ListNode(1, ListNode(2))", "Solution().f(0).next.val == 2", True),
    ],
)
def test_helpers_run_on_our_side(oracle, body, test, right):
    """Also when the program replaces them."""
    patched = "def is_same_list(*a): return True\nis_same_tree = sorted = list = is_same_list\n" if not right else ""
    code = f"{patched}class Solution:\n    def f(self, h): {body}\n"
    verdict = oracle.grade(code, [f"assert {test}"])
    assert verdict.correct is right and not verdict.weak, verdict


@needs_landlock
def test_state_is_shared_by_the_tests_of_a_program_and_by_no_other(oracle):
    code = "CALLS = []\nclass Solution:\n    def f(self):\n        CALLS.append(1)\n        return CALLS\n"
    tests = ["assert Solution().f() == [1]", "assert Solution().f() == [1, 1]"]
    assert oracle.grade(code, tests).correct and oracle.grade(code, tests).correct
    assert not oracle.grade(code, tests[::-1]).correct


@needs_landlock
def test_weak_tests_are_run_and_marked(oracle):
    code = "def f(i): return i * i\n"
    loop = "for i in range(3):\n    f(i)\n    assert f(i) == i * i"
    verdict = oracle.grade(code, ["assert f(2) == 4", loop])
    assert verdict.correct and verdict.weak and verdict.reason.startswith("weak: ")
    assert not oracle.grade("def f(i): return i\n", ["assert f(0) == 0", loop]).correct


@needs_landlock
def test_a_loop_of_asserts_is_judged_on_our_side(oracle):
    loop = ["for i, want in [(2, 4), (3, 9)]:\n    got = f(i)\n    assert got == want, 'no'"]
    verdict = oracle.grade("def f(i): return i * i\n", loop)
    assert verdict.correct and not verdict.weak
    equal = "class E:\n    def __eq__(self, o): return True\ndef f(i): return E()\n"
    assert not oracle.grade(equal, loop).correct


@needs_landlock
@pytest.mark.parametrize(
    "test",
    ["assert (f(1) == 2, 'msg')", "assert [f(1) == 2]", "assert f(1) == 2 or 1", "assert (f(1) == x for x in [2])"],
)
def test_a_test_that_cannot_fail_is_no_pass(oracle, test):
    program = "def f(x):\n    return x + 1"
    assert not oracle.grade(program, [test]).correct
    verdict = oracle.grade(program, [test, "assert f(4) == 5"])
    assert (verdict.correct, verdict.weak) == (True, True)
    assert oracle.grade(program, ["assert [*[f(1)]] and {**{f(1): 2}}"]).correct, "these may be empty"


def test_nothing_to_pass_is_not_a_pass(oracle):
    assert not oracle.grade("def f(i): return i\n", []).correct


@needs_landlock
@pytest.mark.parametrize(
    ("test", "setup"),
    [
        ("assert f( ==", None),
        ("assert f(1) == 1", "def ("),
        ("assert f(1) == 1", "import no_such_module"),
        ("assert f(1) == 1", "x = 1 / 0"),
        ("assert f(1) == 1", "raise SystemExit(0)"),
    ],
)
def test_a_fault_of_the_row_is_no_verdict_on_the_program(oracle, test, setup):
    with pytest.raises(ConfigError, match="setup code"):
        oracle.grade("def f(i): return i\n", [test], setup, "f")


@needs_landlock
def test_a_program_that_ends_as_a_failed_setup_does_is_wrong(oracle):
    assert not oracle.grade("import os; os._exit(70)", ["assert f(1) == 1"], "", "f").correct


@needs_landlock
@pytest.mark.parametrize(
    "program",
    ["import os\nos.write(3, b'\\1\\0\\0\\0Z'); os._exit(0)", "import os\nos.write(3, b'\\1\\0\\0\\0Z'); os._exit(7)"],
)
def test_a_weak_test_needs_every_stage_and_exit_code_0(oracle, program):
    assert not oracle.grade(program, ["for i in range(3):\n    f(i)\n    assert f(i) == i * i"]).correct


@needs_landlock
@pytest.mark.parametrize("endless", ["while True: pass", "__import__('time').sleep(60)", "return sum(range(10**12))"])
@pytest.mark.parametrize("before", [0, 1, 30])
def test_a_wrong_answer_ends_the_program_whatever_it_does_next(oracle, endless, before):
    """It must not wait in the job for the end of the next call."""
    tests = [f"assert f({k}) == {k}" for k in range(before)] + ["assert f(-1) == 5", "assert f(-2) == 5"]
    verdict = oracle.grade(f"def f(x):\n    if x == -2:\n        {endless}\n    return x", tests)
    assert not verdict.correct and verdict.reason == f"test {before + 1}: wrong answer (int)"
    assert verdict.ended == "stopped" and verdict.wall_s < 3.0


def test_each_answer_has_its_own_bound(oracle):
    tests = [f"assert len(f({n})) == {n}" for n in (900_000, 900_001) * 8]
    assert oracle.grade("def f(n): return 'a' * n", tests, "", "f").correct
    assert not oracle.grade("def f(n): return 'a' * n", ["assert len(f(9_500_000)) == 9_500_000"], "", "f").correct


def test_bad_arguments_are_ours_to_refuse():
    with pytest.raises(TypeError):
        Oracle.grade(None, 3, ["assert True"])


@needs_landlock
@needs_benchmark
@pytest.mark.slow
@pytest.mark.parametrize("with_setup", [True, False])
def test_all_canonical_solutions_pass(oracle, with_setup):
    with gzip.open(BENCHMARK, "rt") as file:
        rows = [json.loads(line) for line in file]
    failed = {}
    for row in rows:
        setup = row["setup_code"] if with_setup else None
        verdict = oracle.grade(row["canonical_solution"], row["gt_answer"], setup, row["func_name"])
        if not verdict.correct or verdict.weak:
            failed[row["id"]] = verdict
    assert len(rows) == 119 and failed == {}


@needs_landlock
def test_command_line_answers_every_row(tmp_path):
    code = "class Solution:\n    def f(self, x): return x\n"
    good = {"code": code, "method": "f", "tests": ["assert Solution().f(1) == 1"]}
    lines = [
        json.dumps({"id": 1, **good}),
        "not json",
        json.dumps([1]),
        json.dumps({"id": "no code"}),
        json.dumps({"id": 5, **good, "tests": ["assert Solution().f(1) == 2"]}),
        "{" * 100_000,
        json.dumps({"id": 7, **good, "tests": [3]}),
        json.dumps({"id": {"a": 1}, **good, "setup_code": "K = 1"}),
    ]
    source, target = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.write("\n".join(lines))
    assert oracle_cli.main(["--input", str(source), "--output", str(target), "--workers", "2"]) == 0
    with gzip.open(target, "rt") as file:
        answers = [json.loads(line) for line in file]
    assert [a["id"] for a in answers] == [1, None, None, "no code", 5, None, 7, {"a": 1}]
    assert [a["gt_correct"] for a in answers] == [True, None, None, None, False, None, None, True]
    assert all(set(a) == {"id", "gt_correct", "reason", "wall_s"} and a["reason"] for a in answers)


@needs_landlock
def test_command_line_counts_weak_passes_apart(tmp_path, capsys):
    weak = {"code": "def f(x): return x", "method": "f", "tests": ["def ok(v, w=1): return v == w\nassert ok(f(1))"]}
    rows = [
        weak,
        weak | {"tests": ["assert f(1) == 1"]},
        weak | {"tests": ["assert f(1) == 2"]},
        weak | {"code": "f = 3"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--workers", "1"]
    assert oracle_cli.main(arguments) == 0
    assert "4 rows: 2 correct (1 of them by weak tests), 2 not, 0 not graded" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--output", "in.jsonl"], ["--input", "absent.jsonl"]])
def test_command_line_user_errors(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("{}\n")
    with pytest.raises(UserError):
        oracle_cli.main(["--input", "in.jsonl", "--output", "out.jsonl", *arguments])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=25,
)


@given(plain)
def test_channel_keeps_values_and_types(value):
    back = channel.decode(channel.encode(value, 1 << 20))
    assert (back == value and repr(back) == repr(value)) or isinstance(value, (set, frozenset, dict, list, tuple))
    assert type(back) is type(value) and back == value


@given(st.binary(max_size=200))
def test_channel_survives_any_bytes(data):
    with contextlib.suppress(channel.ChannelError):
        channel.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"i",
        b"l\xff\xff\xff\xff",
        b"N" * 2,
        b"S\x01\0\0\0l\0\0\0\0",
        b"t\x01\0\0\0" * 300 + b"N",
        b"B\x02\0\0\0\x00\x00NN",
        b"B\x01\0\0\0\x07N",
        b"s\x01\0\0\0\xff",
        b"r" + b"N" * 3,
        b"I\xff\0\0\0",
    ],
)
def test_channel_refuses_malformed_bytes(data):
    with pytest.raises(channel.ChannelError):
        channel.decode(data)


def test_colliding_hashes_do_not_stall_the_reader():
    prime = (1 << 61) - 1
    items = b"".join(b"i\x0c\0\0\0" + (k * prime).to_bytes(12, "little") for k in range(1, 60_000))
    with pytest.raises(channel.ChannelError, match="too long"):
        channel.decode(b"S" + (59_999).to_bytes(4, "little") + items, seconds=0.2)


def test_compare_never_raises():
    for op in (ast.Lt, ast.In, ast.Eq, ast.Is):
        assert compare(op, [[1]], 3) is False
