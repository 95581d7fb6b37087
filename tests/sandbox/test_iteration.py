"""Expected values that a test carries beside its inputs stay out of the job."""

from __future__ import annotations

import ast

import pytest

from services.sandbox.verdicts import asserts, iteration

TRUSTED = asserts.trusted_names("", "f")


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
        "assert all(f(r[0]) == r[1] for r in [(1, 717), (3, 723)])",
    ],
)
def test_what_cannot_be_taken_apart_is_weak(test):
    assert sent(test)[1]


def test_a_name_assigned_in_turn_keeps_its_meaning():
    body = ast.parse("w = 1\nassert f(w) == 2\nw = 3\nassert f(w) == 4").body
    text = [ast.unparse(node) for node in iteration.single_assignments(body)]
    assert text == ["w = 1", "assert f(w) == 2", "w_2 = 3", "assert f(w_2) == 4"]
