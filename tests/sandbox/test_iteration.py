"""Expected values that a test carries beside its inputs stay out of the job."""

from __future__ import annotations

import ast

import pytest

from services.sandbox.verdicts import asserts, iteration, names

TRUSTED = names.trusted_names("", "f")


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
