"""What one run says, by hand."""

from __future__ import annotations

from math import isnan

import pytest
from synthetic_runs import Plan, write

from experiments.analysis.measures import matched_hack, matched_pass, summarise, window_length
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


def test_delta_safe_pass(tmp_path):
    run = read_run(write(tmp_path / "a", Plan(safe_pass=[(0, 0.125), (2, 0.9), (4, 0.5)])))
    s = summarise(run, RULES)
    assert (s.safe_pass_start, s.safe_pass_end, s.eval_step) == (0.125, 0.5, 4) and s.delta_safe_pass == 0.375
    only_start = summarise(read_run(write(tmp_path / "b", Plan(safe_pass=[(0, 0.125)]))), RULES)
    assert isnan(only_start.delta_safe_pass)
    no_start = summarise(read_run(write(tmp_path / "c", Plan(safe_pass=[(4, 0.5)]))), RULES)
    assert isnan(no_start.delta_safe_pass)


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
