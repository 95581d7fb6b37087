"""Expected values that a test carries beside its inputs stay out of the job."""

from __future__ import annotations

import ast

import pytest

from services.sandbox.jail.executor import landlock_present
from services.sandbox.verdicts import asserts, iteration, names
from services.sandbox.verdicts.oracle import Oracle

TRUSTED = names.trusted_names("", "f")


@pytest.fixture(scope="module")
def oracle():
    if not landlock_present():
        pytest.skip("this kernel has no Landlock ABI 6: no full jail")
    with Oracle() as made:
        yield made


def sent(test: str) -> tuple[str, bool]:
    plan = asserts.plan_test(test, TRUSTED)
    return "; ".join(ast.unparse(ast.fix_missing_locations(node)) for _, node in plan.steps), plan.weak


@pytest.mark.parametrize(
    "test",
    [
        "assert all(f(a) == b for a, b in [(1, 717), (3, 723)])",
        "assert all([f(a) == b for b, a in ((717, 1), (723, 3))])",
        "assert all(f(a) == b for a, b in zip([1, 3], [717, 723]))",
        "assert all(f(a) == b for a, b in {1: 717, 3: 723}.items())",
        "assert all(f(r[0]) == r[1] for r in [(1, 717), [3, 723]])",
        "assert all(f(r[-2]) == r[-1] for r in [[1, 717], [3, 723]])",
        "assert all(f(r['x']) == r['y'] for r in [{'x': 1, 'y': 717}, {'x': 3, 'y': 723}])",
        "assert all(f(a[0]) == a[1] + b for a, b in [([1, 717], 9), ([3, 723], 8)])",
        "for a, b in [(1, 717), (3, 723)]:\n    assert f(a) == b, f'{a}'",
        "for a, b in [(1, 717), (3, 723)]:\n    got = f(a)\n    assert got == b",
        "for a, b in [(1, 717)]:\n    assert f(a) == b\nfor a, b in zip([3], [723]):\n    assert f(a) == b",
        "assert [f(a) for a in [1, 3]] == [717, 723]",
        "want: int = 717\nassert f(1) == want",
        "x, want = 1, 717\nassert f(x) == want",
        "want = 717\nassert f(1) == want\nwant = 723\nassert f(3) == want",
    ],
)
def test_expected_values_are_not_sent(test):
    text, weak = sent(test)
    assert "f(" in text and "717" not in text and "723" not in text
    assert not weak


@pytest.mark.parametrize(
    "test",
    [
        "assert all(f(a) == b for a, b in list(zip([1, 3], [717, 723])))",
        "assert all(f(a) == b for a, b in sorted([(1, 717), (3, 723)]))",
        "assert all(f(r[0]) == r[1] for r in {(1, 717), (3, 723)})",
        "assert all(f(min(r)) == max(r) for r in [{1, 717}, {3, 723}])",
        "assert all(f(*r[:-1]) == r[-1] for r in [[1, 717], [3, 723]])",
        "assert all(f(r[0][0]) == r[0][1] for r in [[[1, 717]], [[3, 723]]])",
        "assert all(f(next(iter(r))) == r[1] for r in [[1, 717], [3, 723]])",
        "assert all(f(r[0]) == r[1] for r in ['17', '23'])",
        "assert all(f(a[0][0]) == a[0][1] for a, b in [([(1, 717)], 0)])",
        "assert [[f(r[:1]) == r[1] for r in [[1, 717]]] for _ in range(2)] == [[True], [True]]",
    ],
)
def test_what_cannot_be_taken_apart_is_weak(test):
    assert sent(test)[1]


@pytest.mark.parametrize(
    "test",
    [
        "assert [f(a) for a in [[1, 2], [3]]] == [717, 723]",
        "assert all(f(r) == r[1] for r in [[1, 717], [3, 723]])",
        "assert all(f(*r) == r[0] for r in [[1, 2], [3, 4]])",
    ],
)
def test_what_the_call_takes_whole_is_sent_whole(test):
    assert not sent(test)[1]


@pytest.mark.parametrize(
    "test",
    [
        "for a in [1, 3]:\n    assert f(a) == 1\n    assert f(a) == 2",
        "for a in [1, 3]:\n    assert f(a) == 1\nelse:\n    f(0)",
        "for a in [1, 3]:\n    assert f(a) == 1\nassert f(a) == 4",
        "for a in [1, 3]:\n    got = f(a)\n    assert got >= 1 and got < 2",
        "for a in [1, 3]:\n    assert f(a) == 1 and f(a + 1) == 2",
        "while True:\n    assert f(1) == 1\n    break",
    ],
)
def test_a_loop_that_does_more_is_run_whole(test):
    with pytest.raises(asserts.Unsplittable):
        sent(test)


def test_a_name_assigned_in_turn_keeps_its_meaning():
    body = ast.parse("w = 1\nassert f(w) == 2\nw = 3\nassert f(w) == 4").body
    text = [ast.unparse(node) for node in iteration.single_assignments(body)]
    assert text == ["w = 1", "assert f(w) == 2", "w_2 = 3", "assert f(w_2) == 4"]


SQUARES = "class Solution:\n    def f(self, x, y=0):\n        return x * x + y\nf = Solution().f"
HANDED_OVER = [
    ("assert list(map({f}, [1, 3])) == [1, 9]", False),
    ("assert [*map({f}, [1, 3])] == [1, 9]", False),
    ("assert sum(map({f}, range(4))) == 14", False),
    ("assert list(map({f}, [1, 3], (5, 5))) == [6, 14]", False),
    ("assert dict(zip('ab', map({f}, [1, 3]))) == {{'a': 1, 'b': 9}}", False),
    ("assert tuple(map(str, map({f}, [1, 3]))) == ('1', '9')", False),
    ("s = Solution()\nassert list(map(s.f, [1, 3])) == [1, 9]", False),
    ("assert sorted([3, -1], key={f}) == [-1, 3] and {f}(3) == 9", True),
    ("assert max([1, -3], key={f}) == -3 and {f}(3) == 9", True),
    ("from functools import reduce\nassert reduce({f}, [1, 2, 3]) == 12", True),
    ("import functools\nassert functools.reduce({f}, [1, 2, 3]) == 12", True),
    ("from itertools import starmap\nassert list(starmap({f}, [(3, 5)])) == [14]", True),
    ("from itertools import accumulate\nassert list(accumulate([1, 2, 3], {f})) == [1, 3, 12]", True),
    ("assert list(filter({f}, [0, 1])) == [1] and {f}(3) == 9", True),
    ("assert isinstance(Solution(), Solution) and {f}(3) == 9", True),
]


@pytest.mark.parametrize("method", ["f", "Solution().f", ""])
@pytest.mark.parametrize("called", ["f", "Solution().f"])
def test_a_function_that_a_test_hands_over_is_called(oracle, method, called):
    """What it is cannot be sent: a right program must not fail for it, and a wrong one not pass."""
    wrong = SQUARES.replace("x * x + y", "x + y + 1")
    for form, weak in HANDED_OVER:
        test = form.format(f=called)
        right = oracle.grade(SQUARES, [test], "", method)
        assert (right.correct, right.weak) == (True, weak), (test, right)
        assert not oracle.grade(wrong, [test], "", method).correct, test


@pytest.mark.parametrize("test", ["assert callable(f) and f(3) == 9", "assert f is not None and f(3) == 9"])
def test_the_graded_function_itself_is_no_value(oracle, test):
    assert oracle.grade(SQUARES, [test], "", "f").correct


def test_what_a_map_takes_beside_the_program_is_marked(oracle):
    """Its rows are given to the function, all of them; a lambda may keep some."""
    text, weak = sent("assert list(map(f, [1, 3])) == [717, 723]")
    assert "717" not in text and not weak
    assert oracle.grade(SQUARES, ["assert list(map(lambda t: f(t[0]) == t[1], [(3, 9)])) == [True]"], "", "f").weak
