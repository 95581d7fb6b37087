"""No number of a trained run changes its meaning unseen: five steps on the organism against pinned numbers."""

import copy
import json

import pytest

from tests.golden.__main__ import NUMBERS, compare, differences, measure


@pytest.mark.timeout(900)
def test_five_steps_have_the_pinned_numbers(redis_url, tmp_path):
    lines = compare(measure(redis_url, tmp_path))
    assert not lines, "\n".join(["python -m tests.golden says how to pin anew, on purpose:", *lines[:20]])


def test_the_pinned_run_is_one_in_which_a_change_would_show():
    """Hacks, truncation, a stale step, a group without variance, a loss and a KL that are not rounding."""
    rows = json.loads(NUMBERS.read_text())["metrics"]
    assert len(rows) == 5 and all(r["optimised"] and 0 < r["frac_fired"] < 1 for r in rows)
    assert sum(r["label_counts"].get("Reward Hack", 0) for r in rows) > 0
    assert any(r["truncated_rate"] for r in rows) and any(r["zero_variance_groups"] for r in rows)
    assert {r["staleness_max"] for r in rows} == {0, 1}
    assert all(abs(r["loss"]) > 5e-5 for r in rows) and abs(rows[-1]["kl"] / rows[-1]["kl_all"] - 1) > 0.01


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda n: n["metrics"][4].update(kl=n["metrics"][4]["kl"] * 1.02), "kl: "),
        (lambda n: n["metrics"][4].update(cos_mean=-n["metrics"][4]["cos_mean"]), "cos_mean: "),
        (lambda n: n["metrics"][0].pop("lr"), "lr: is missing"),
        (lambda n: n["completions"][1]["reward"].__setitem__(3, 7.0), "reward[3]: 7.0"),
        (lambda n: n["eval"].pop(), ".eval: "),
        (lambda n: n["sampling"].update(same=0.5), "only 50% of the completions"),
        (lambda n: n["sampling"]["requests"].reverse(), "the requests"),
    ],
)
def test_a_number_that_moved_is_named(change, said):
    found = json.loads(NUMBERS.read_text())
    assert compare(found) == []
    moved = copy.deepcopy(found)
    change(moved)
    (line,) = compare(moved)
    assert said in line


def test_rounding_is_no_difference():
    assert list(differences({"a": 1.0001, "push_s": 1.0}, {"a": 1.0, "push_s": 3.0})) == []
    assert list(differences({"a": 1}, {"a": 1.0})) == [".a: 1, pinned 1.0"]
    assert list(differences({"a": 1, "new": 2}, {"a": 1})) == []
