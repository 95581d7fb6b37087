"""No expected value lies in the job beside the program, or the verdict is weak; an assert that asks the program nothing is no
pass. SECRET stands for an expected value: the program is never given it."""

from __future__ import annotations

import marshal

import pytest

from services.sandbox.jail.executor import Outcome, landlock_present
from services.sandbox.verdicts import asserts, names, plans
from services.sandbox.verdicts.oracle import Oracle
from services.sandbox.verdicts.prelude import PRELUDE

SECRET = 424_242
needs_landlock = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")

STRONG = [  # split so that the job never holds the expected value
    "x = [1, SECRET]; assert f(x[0]) - x[1] == 0",
    "x = (1, SECRET)\nassert f(x[0]) == x[1]",
    "d = {'in': [1], 'out': SECRET}\nassert f(d['in']) - d['out'] == 0",
    "case = [[1, 2], {'want': SECRET}]\nassert abs(f(*case[0]) - case[1]['want']) < 1e-6",
    "x = [[1], [SECRET]]\nassert not f(x[0][0]) - x[1][0]",
    "cases = [(1, SECRET), (3, SECRET)]\nfor a, b in cases:\n    assert f(a) == b",
    "cases = [(1, SECRET)]\nassert all(f(a) - b == 0 for a, b in cases)",
    "got = f(1) == SECRET\nassert got",
    "near = abs(f(1) - SECRET) < 1e-6\nassert near",
    "want: int = SECRET\ngot = f(1)\nassert got - want == 0",
    "x, want = 1, SECRET\nassert f(x) - want == 0",
    "want = SECRET\nassert f(1) == want\nwant = SECRET\nassert f(2) == want",
    "assert all(f(a) == b for a, b in zip([1, 2], [SECRET, SECRET]))",
    "assert all(f(k) == v for k, v in {1: SECRET}.items())",
    "nums = [3, 2]\nk = f(nums)\nassert k == SECRET and nums[:k] == [SECRET]",
    "nums = [3, 1]\nf(nums)\nassert nums == [1, SECRET]",
    "s = Stack()\nfor i in range(3):\n    s.push(i)\nassert s.pop() == SECRET",
    "s = Stack()\nfor i in [4, 5]:\n    s.push(i)\nassert [s.pop() for _ in range(2)] == [5, SECRET]",
    "head = list_node([1, 2])\nassert is_same_list(f(head), list_node([SECRET]))",
    "x = [1]\nx.append(2)\nassert f(x) == SECRET",
    "assert f(**{'n': 1}) == SECRET",
    "check = lambda value: value == SECRET\nassert check(f(1))",
    "x = [SECRET]\nf(1)\nassert f(2) - x[0] == 0 and x == sorted(x)",
    "assert [f(1) for _ in [1, 2]] == [SECRET, SECRET]",
]
WEAK = [  # it is in the job, and said so
    "x = [1, SECRET]\nx.reverse()\nassert f(x[1]) - x[0] == 0",
    "x = [1, SECRET]\ny = x\nassert f(y[0]) - y[1] == 0",
    "x = sorted([SECRET, 1])\nassert f(x[0]) - x[1] == 0",
    "ok = f(1) == SECRET\nok = ok and f(2) == SECRET\nassert ok",
    "got = f(1)\ngot -= SECRET\nassert got == 0",
    "got = [f(a) == b for a, b in [(1, SECRET)]]\nassert all(got) and got",
    "def check(value, want=SECRET):\n    return value == want\nassert check(f(1))",
    "def make():\n    want = SECRET\n    return lambda value: value == want\nassert make()(f(1))",
    "class Want:\n    value = SECRET\nassert f(1) == Want.value",
    "assert eval('f(1) == SECRET')",
    "assert verify(f(1), SECRET)",
    "if f(1) == SECRET:\n    ok = True\nelse:\n    ok = False\nassert ok",
    "box = {}\nbox['want'] = SECRET\nassert f(1) - box['want'] == 0",
    "assert f(1) == g(1)",
]


def planned(test: str, setup: str = PRELUDE, method: str = "f") -> plans.Plan:
    def judge(items: list, setup: bytes, keep: bool) -> object:
        return Outcome("exit", frames=[("U", b"")] * len(items), complete=True)

    return plans.make_plan((test.replace("SECRET", str(SECRET)),), setup, method, judge)


@pytest.mark.parametrize("test", STRONG)
def test_the_job_is_never_sent_the_expected_value(test):
    plan = planned(test)
    assert plan.steps and not plan.error and not plan.weak and plan.asks, plan
    code = repr([_constants(step) for _, step in marshal.loads(plan.steps)])
    assert str(SECRET) not in code


def _constants(code: object) -> list:
    return [_constants(part) if hasattr(part, "co_consts") else part for part in code.co_consts]


@pytest.mark.parametrize("test", WEAK)
def test_a_test_that_exposes_its_expected_value_is_weak(test):
    assert planned(test).weak


def test_expected_values_of_the_setup_code_are_weak():
    assert planned("assert f(1) == WANT[1]", "WANT = {1: SECRET}\n").weak
    assert not planned("assert f(1) == inf", "inf = float('inf')\n").weak
    assert not planned("assert f(WANT) == 3", "WANT = {1: 5}\n").weak


ASK_NOTHING = ["assert True", "assert add(2, 3) == 5", "x = 3\nassert x == 3", "pass", "f(1)", "", "# assert f(1) == 2"]


@pytest.fixture(scope="module")
def oracle():
    with Oracle() as oracle:
        yield oracle


@needs_landlock
@pytest.mark.parametrize("test", ASK_NOTHING)
def test_a_test_that_asks_the_program_nothing_is_no_pass(oracle, test):
    verdict = oracle.grade("def f(x): return x + 1\n", [test], None, "f")
    assert not verdict.correct and verdict.weak
    beside = oracle.grade("def f(x): return x + 1\n", [test, "assert f(1) == 2"], None, "f")
    assert beside.correct and beside.weak  # the other test shows that it is right, this one shows nothing


LIBRARY_NAMES = [
    ("def add(a, b): return 0", "assert add(2, 3) == 5", False),
    ("def add(a, b): return a + b", "assert add(2, 3) == 5", True),
    ("def sub(a, b): raise SystemExit", "assert sub(5, 3) == 2", False),
    ("def count(s): return len(s.split())", "assert count('a b') == 2", True),
    ("def accumulate(xs): return sum(xs)", "assert accumulate([1, 2, 3]) == 6", True),
    ("gcd = lambda a, b: 1", "x = gcd(4, 6)\nassert x == 2", False),
    ("from math import gcd", "x = gcd(4, 6)\nassert x == 2", True),
    ("def digits(n): return [int(c) for c in str(n)]", "assert sorted(digits(312)) == [1, 2, 3]", True),
    ("def merge(a, b): return a + b", "assert sum(merge([1], [2])) == 3\nassert merge([], []) == []", True),
    ("def merge(a, b): return a", "assert sum(merge([1], [2])) == 3\nassert merge([], []) == []", False),
    ("def comb(n, k): return 6", "assert all(comb(n, 2) == want for n, want in [(4, 6), (5, 10)])", False),
    ("class Counter:\n    def __init__(self): self.n = 4", "assert Counter().n == 4", True),
    ("def sorted(xs): return xs", "assert sorted([2, 1]) == [1, 2]", False),
]


@needs_landlock
@pytest.mark.parametrize(("code", "test", "right"), LIBRARY_NAMES)
def test_a_name_that_the_program_defines_is_the_programs(oracle, code, test, right):
    assert oracle.grade(code, [test]).correct is right


@needs_landlock
def test_a_helper_that_the_program_replaces_does_not_judge_it(oracle):
    code = "def isclose(*a): return True\ndef add(a, b): return 0\ndef is_same_list(*a): return True\n"
    assert not oracle.grade(code, ["assert isclose(add(2, 3), 5)"]).correct
    assert not oracle.grade(code, ["assert is_same_list(add(2, 3), list_node([1]))"], None, "add").correct


@needs_landlock
def test_reading_what_lies_in_the_job_gives_no_unmarked_pass(oracle):
    """The program looks for the expected value wherever its frames, the heap and its globals reach."""
    hunt = (
        "import gc, sys\ndef f(*a, **k):\n    seen, todo = set(), [globals(), *gc.get_objects()]\n"
        "    frame = sys._getframe()\n    while frame: todo += [frame.f_locals, frame.f_code]; frame = frame.f_back\n"
        "    while todo:\n        x = todo.pop()\n        if id(x) in seen: continue\n        seen.add(id(x))\n"
        f"        if type(x) is int and x == {SECRET - 1} + 1: return x\n"
        "        if type(x) in (list, tuple, set): todo += x\n        elif type(x) is dict: todo += x.values()\n"
        "        elif hasattr(x, 'co_consts'): todo += x.co_consts\n    return 0\n"
        "class Stack:\n    def push(self, x): pass\n    def pop(self): return f()\n"
    ).replace(f"{SECRET - 1} + 1", "int('4242' + '42')")
    for test in STRONG:
        verdict = oracle.grade(hunt, [test.replace("SECRET", str(SECRET))], None, "f")
        assert not verdict.correct or verdict.weak, (test, verdict)


def test_program_names_never_imports_what_a_program_names():
    assert "wave" not in names.program_names("from this import *\nfrom antigravity import *\n")
    assert names.program_names("if 1:\n    def f(): pass\nimport a.b as c\nx = 1\n") >= {"f", "c", "x"}
    assert names.program_names("(" * 5_000) == frozenset()


def test_a_split_needs_no_names_to_be_given():
    assert asserts.plan_test("assert f(1) == 2", names.trusted_names(PRELUDE, "f")).checks[0].asks
