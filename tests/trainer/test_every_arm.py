"""Every arm of the table runs by its own name, and its rows are what its formula says. arms_driver.py makes the runs."""

import json
import math
import subprocess
import sys

import pytest

from experiments.design import arms
from tests.trainer.arms_driver import DOSE, GROUPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MODULES = 28
# where the steps are too few, or the completions are given, for the arm to differ
AS_VANILLA = {"measure_only", "no_loophole", "projected_from"}
AS_PROJECTED = {"projected_refresh"}
OBSERVES = {
    "vanilla",
    "measure_only",
    "shift",
    "posthoc_shift",
    "no_loophole",
    "pairs_dpo",
    "projected_from",
    "reseed_vanilla",
}
REWARD = (3 * 3.5 + 0.5) / 4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("arms")
    command = [sys.executable, "-m", "tests.trainer.arms_driver", str(root), str(root / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "found.json").read_text())


@pytest.mark.parametrize("name", arms.ARMS)
def test_the_arm_runs_to_its_end(found, name):
    one = found[name]
    assert "error" not in one, one["error"]
    assert one["finished"] and len(one["rows"]) == (1 if name == "posthoc_shift" else 2)
    for row in one["rows"]:
        assert row["optimised"] and all(math.isfinite(row[k]) for k in ("loss", "displacement_ref", "update_cos_mean"))
        assert row["reseeded"] == (GROUPS if "reseed" in arms.get(name).overrides else 0)
        assert row["hack_strict"] == 0.5, "of the sampled completions, whatever was planted"
    acted = [row["intervened"] for row in one["rows"]]
    if name in OBSERVES or arms.get(name).overrides["reward_shaping"] != "none":
        assert acted == [False] * len(acted)
    else:
        assert acted == ([True, False] if name == "projected_until" else [True, True])


def test_arms_differ_where_two_steps_can_show_it(found):
    by_delta = {}
    for name, one in found.items():
        by_delta.setdefault(one["delta"], set()).add(name)
    assert {frozenset(names) for names in by_delta.values() if len(names) > 1} == {
        frozenset({"vanilla"} | AS_VANILLA), frozenset({"projected"} | AS_PROJECTED)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["leash", "leash_random"])
def test_a_leash_of_length_nought_keeps_position_and_momentum_at_nought(found, name):
    one = found[name]
    assert all(abs(row["displacement_own"]) < 1e-6 for row in one["rows"])
    assert max(map(abs, one["moment_along"])) < 1e-9


@pytest.mark.parametrize("name", ["setpoint", "setpoint_random"])
def test_a_set_point_stands_where_its_ramp_is_and_its_momentum_is_cleared(found, name):
    one = found[name]
    at = [row["displacement_own"] for row in one["rows"]]
    assert at == pytest.approx([DOSE * k / 20 * MODULES**0.5 for k in (1, 2)], abs=1e-5)
    assert max(map(abs, one["moment_along"])) < 1e-9


def test_a_shift_starts_at_its_dose_and_is_let_go(found):
    assert found["shift"]["start_along"] == pytest.approx([DOSE] * MODULES, abs=1e-6)
    assert max(found["shift"]["moment_along"]) > 1e-5, "nothing clears its momentum"


def test_a_finished_run_is_shifted_from_where_it_ended(found):
    end = found["vanilla"]["rows"][-1]["displacement_ref"]
    start = sum(found["posthoc_shift"]["start_along"]) / MODULES**0.5
    assert start == pytest.approx(end + DOSE * MODULES**0.5, abs=1e-5)


@pytest.mark.parametrize("name", ["fisher", "projected_update"])
def test_no_module_s_applied_update_moves_towards_the_hack(found, name):
    assert all(cos <= 1e-5 for step in found[name]["update_cos"] for cos in step)
    assert max(cos for step in found["vanilla"]["update_cos"] for cos in step) > 0.1


@pytest.mark.parametrize("name", ["projected", "project_m_only", "project_moments", "reseed"])
def test_no_momentum_is_left_towards_the_hack(found, name):
    assert max(found[name]["moment_along"]) < 1e-8 < 1e-5 < max(found["vanilla"]["moment_along"])


def test_a_force_pushes_along_its_own_direction_alone(found):
    vanilla, bias, other = (found[name]["rows"][-1] for name in ("vanilla", "bias", "bias_random"))
    assert bias["displacement_ref"] > vanilla["displacement_ref"] + 0.02
    assert other["displacement_own"] > 0.1 and other["displacement_ref"] == pytest.approx(
        vanilla["displacement_ref"], abs=0.05
    )


def test_rewards_are_shaped_where_the_arm_says_so(found):
    def mean(name):
        return found[name]["rows"][0]["reward_mean"]

    for name in ("rebound", "rebound_multiplicative", "rebound_published", "rebound_published_mult"):
        assert mean(name) < REWARD - 0.01
    assert mean("rebound_z") == pytest.approx(REWARD, abs=1e-6), "a z-score has mean 0"
    assert mean("ground_truth_penalty") == pytest.approx(REWARD - 3 / 2)
    assert mean("ground_truth_screening") == pytest.approx((3.5 + 0.5) / 2)
    assert mean("vanilla") == mean("reseed") == mean("reseed_vanilla") == pytest.approx(REWARD)


def test_planted_hacks_pull_towards_the_hack_and_training_on_pairs_away(found):
    at = {
        name: found[name]["rows"][-1]["displacement_ref"]
        for name in ("vanilla", "reseed", "reseed_vanilla", "pairs_dpo")
    }
    assert at["reseed_vanilla"] < at["vanilla"] < at["reseed"] and at["pairs_dpo"] > 0
    assert found["reseed"]["rows"][0]["reseed_logprob"] < 0
