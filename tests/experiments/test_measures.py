"""What one run says, by hand."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from synthetic_runs import Plan, write

from experiments.analysis.measures import against_vanilla, matched_hack, matched_pass, summarise, window_length
from experiments.analysis.run_files import read_run
from experiments.design import prereg

RULES = prereg.load().measures


@pytest.mark.parametrize("steps, window", [(200, 25), (100, 25), (99, 25), (96, 24), (80, 20), (5, 2), (3, 1), (1, 1)])
def test_window(steps, window):
    assert window_length(steps, RULES) == window


def test_final_rates_are_means_of_the_last_quarter(tmp_path):
    hack = [0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.4, 0.6]
    run = read_run(write(tmp_path, Plan(hack=hack, passed=[0.5] * 8, cos=[0.1 * i for i in range(8)])))
    s = summarise(run, RULES)
    assert s.window == 2 and s.hack == pytest.approx(0.5) and s.passed == 0.5
    assert s.kl == pytest.approx((0.012 + 0.014) / 2)
    assert s.cos_mean == pytest.approx(0.35)  # all steps
    assert s.hack_curve[-1] == pytest.approx(s.hack)
    # means of five: step 4: 0.04, step 5: 0.08, step 6: 0.16 -> onset at 6
    assert s.onset == 6


def test_delta_held_out(tmp_path):
    run = read_run(write(tmp_path / "a", Plan(safe_pass=[(0, 0.125), (2, 0.9), (4, 0.5)])))
    s = summarise(run, RULES)
    assert (s.safe_pass_start, s.safe_pass_end, s.eval_step) == (0.125, 0.5, 4) and s.delta_held_out == 0.375
    only_start = summarise(read_run(write(tmp_path / "b", Plan(safe_pass=[(0, 0.125)]))), RULES)
    assert isnan(only_start.delta_held_out)
    no_start = summarise(read_run(write(tmp_path / "c", Plan(safe_pass=[(4, 0.5)]))), RULES)
    assert isnan(no_start.delta_held_out)


def test_matched_pass_by_hand(tmp_path):
    # Four steps, window 1: curves are the raw values. Lower final pass rate: 0.4 (a), reached by a at its end.
    a = summarise(read_run(write(tmp_path, Plan(hack=[0.0, 0.2, 0.4, 0.6], passed=[0.1, 0.2, 0.3, 0.4]))), RULES)
    b = summarise(
        read_run(write(tmp_path, Plan(arm="projected", hack=[0.0, 0.0, 0.1, 0.2], passed=[0.1, 0.3, 0.5, 0.7]))), RULES
    )
    # b has 0.4 half-way between steps 1 and 2: hack 0.05
    assert matched_pass(a, b) == pytest.approx((0.4, 0.6, 0.05))
    # lower final hack rate: 0.2 (b), pass 0.7; a has it at step 1: pass 0.2
    assert matched_hack(a, b) == pytest.approx((0.2, 0.2, 0.7))


def test_no_match(tmp_path):
    a = summarise(read_run(write(tmp_path, Plan(hack=[0.1] * 4, passed=[0.3, 0.2, 0.1, 0.05]))), RULES)
    b = summarise(read_run(write(tmp_path, Plan(seed=1, hack=[0.1] * 4, passed=[0.3, 0.4, 0.5, 0.6]))), RULES)
    assert matched_pass(a, b) is None


def test_safe_pass_of_the_plan_is_against_vanilla_of_the_same_seed(tmp_path):
    ours = summarise(read_run(write(tmp_path, Plan(arm="projected", seed=1, hack=[0.1] * 4, passed=[0.5] * 4))), RULES)
    base = summarise(read_run(write(tmp_path, Plan(seed=1, hack=[0.6] * 4, passed=[0.3] * 4))), RULES)
    other = summarise(read_run(write(tmp_path, Plan(arm="projected", seed=2, hack=[0.1] * 4, passed=[0.5] * 4))), RULES)
    found = against_vanilla({"vanilla": (base,), "projected": (ours, other)})
    # (50 - 10) - (30 - 60) = 70
    assert found["projected"][0].delta_safe_pass == pytest.approx(0.7) and found["vanilla"][0].delta_safe_pass == 0
    assert isnan(found["projected"][1].delta_safe_pass)  # no vanilla run of seed 2


def test_newer_rows_say_what_old_ones_leave_to_be_derived(tmp_path):
    run = read_run(write(tmp_path, Plan(hack=[0.1] * 4)))
    more = {"kl_all": [0.1, 0.2, 0.3, 0.4], "trained_groups": [1, 2, 0, 1], "groups": [4] * 4, "updates": [1, 2, 2, 3]}
    newer = replace(run, series=run.series | {name: np.array(values, float) for name, values in more.items()})
    s = summarise(newer, RULES)  # the window is the last of 4 steps
    assert (s.kl_all, s.trained_share, s.updates) == (0.4, 0.25, 3)
