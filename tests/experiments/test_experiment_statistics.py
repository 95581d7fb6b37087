"""Statistics against numbers worked by hand."""

from __future__ import annotations

from itertools import pairwise
from math import isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.analysis.stats import (
    false_discovery,
    mean_sem,
    onset_step,
    paired,
    pareto_front,
    survival,
    trailing_mean,
    value_at_level,
)
from experiments.report.figures.style import spread


def test_mean_and_sem():
    found = mean_sem([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3) and found.sem == pytest.approx(1 / sqrt(3))
    assert isnan(mean_sem([4.0]).sem) and mean_sem([4.0]).mean == 4.0
    assert isnan(mean_sem([]).mean)
    assert mean_sem([1.0, float("nan"), 3.0]).n == 2


def test_paired_differences_by_hand():
    # d = 1, 2, 3: mean 2, SEM 1/sqrt(3); t(0.975, 2) = 4.302653
    d = paired({0: 11.0, 1: 22.0, 2: 33.0, 9: 5.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 1.0})
    assert d.seeds == (0, 1, 2) and d.differences == (1.0, 2.0, 3.0) and d.mean == 2.0
    assert d.sem == pytest.approx(1 / sqrt(3))
    assert (d.t_low, d.t_high) == pytest.approx((2 - 4.302653 / sqrt(3), 2 + 4.302653 / sqrt(3)), abs=1e-5)
    # 27 equally likely resamples: the mean is 1 with probability 1/27 > 2.5%, and 3 likewise
    assert (d.boot_low, d.boot_high) == (1.0, 3.0)
    # all differences positive: only +++ and --- are as extreme, 2 of 8
    assert d.p_value == pytest.approx(0.25) and d.p_floor == 0.25


def test_permutation_counts_every_sign_flip():
    # |mean| of (3, -1) is 1; flips give ±1 and ±2: all four are at least 1
    assert paired({0: 3.0, 1: 0.0}, {0: 0.0, 1: 1.0}).p_value == pytest.approx(1.0)
    # d = 4, 3, -1 (sum 6): |sum| >= 6 for 8, 6, -6, -8: 4 of 8
    assert paired({0: 4.0, 1: 3.0, 2: -1.0}, {0: 0.0, 1: 0.0, 2: 0.0}).p_value == pytest.approx(0.5)


def test_five_seeds_cannot_reach_five_percent():
    d = paired({s: 50.0 + s for s in range(5)}, dict.fromkeys(range(5), 0.0))
    assert d.p_value == d.p_floor == 0.0625


def test_one_common_seed_or_none():
    one = paired({3: 5.0}, {3: 2.0, 4: 1.0})
    assert one.mean == 3.0 and isnan(one.sem) and isnan(one.boot_low) and isnan(one.p_value)
    assert paired({1: 1.0}, {2: 1.0}) is None
    assert paired({1: float("nan")}, {1: 1.0}) is None


def test_equal_differences_have_no_width():
    d = paired({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert d.sem == 0 and d.boot_low == d.boot_high == 1.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=5))
def test_exchanging_the_arms_changes_the_sign_only(values):
    x, zero = dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0)
    there, back = paired(x, zero), paired(zero, x)
    assert there.mean == -back.mean and there.sem == pytest.approx(back.sem, abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.boot_low <= there.mean + 1e-9 and there.boot_high >= there.mean - 1e-9


def test_false_discovery_rate():
    # Benjamini-Hochberg of 0.01, 0.02, 0.03: 0.03, 0.03, 0.03
    assert false_discovery([0.01, 0.03, 0.02]) == pytest.approx([0.03, 0.03, 0.03])
    mixed = false_discovery([0.01, float("nan"), 0.04])
    assert mixed[0] == pytest.approx(0.02) and isnan(mixed[1]) and mixed[2] == pytest.approx(0.04)


def test_trailing_mean():
    assert trailing_mean(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist() == [2.0, 3.0, 5.0, 7.0]
    gaps = trailing_mean(np.array([np.nan, 4.0, np.nan, np.nan]), 2)
    assert isnan(gaps[0]) and gaps[1:3].tolist() == [4.0, 4.0] and isnan(gaps[3])


def test_value_at_level_takes_the_last_crossing():
    level, value = np.array([0.0, 2.0, 0.0, 4.0]), np.array([0.0, 10.0, 20.0, 40.0])
    # last crossing of 1: a quarter of the way from step 2 to step 3
    assert value_at_level(level, value, 1.0) == pytest.approx(25.0)
    assert value_at_level(level, value, 4.0) == 40.0
    assert value_at_level(level, value, 3.0) == pytest.approx(35.0)
    assert value_at_level(level, value, 5.0) is None
    assert value_at_level(level, value, -1.0) is None
    assert value_at_level(np.array([]), np.array([]), 1.0) is None


def test_onset_needs_a_full_window():
    rates = np.array([1.0, 0.0, 0.1, 0.2, 0.0, 0.3, 0.3])
    assert onset_step(rates, 0.15, 2) == 0 + 1  # (1 + 0) / 2 = 0.5 at step 1
    assert onset_step(rates[1:], 0.15, 2) == 2  # (0.1 + 0.2) / 2 = 0.15 exactly
    assert onset_step(rates[1:], 0.5, 2) is None
    assert onset_step(np.array([0.9]), 0.1, 2) is None


def test_kaplan_meier_by_hand():
    # onset at 2; censored at 4; onset at 6: 1 -> 2/3 at 2, unchanged at 4, 0 at 6 (one run at risk)
    curve = survival([2, None, 6], [9, 4, 9])
    assert curve.steps.tolist() == [0, 2, 4, 6]
    assert curve.share == pytest.approx([1, 2 / 3, 2 / 3, 0])
    assert survival([None], [79]).share.tolist() == [1.0, 1.0]


def test_pareto_front():
    passed, hack = [30.0, 70.0, 60.0, 75.0, 70.0], [50.0, 9.0, 5.0, 12.0, 20.0]
    assert pareto_front(passed, hack) == [2, 1, 3]
    assert pareto_front([1.0, float("nan")], [1.0, 0.0]) == [0]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.1, 10))
def test_labels_keep_order_and_distance(values, gap):
    placed = spread(values, gap)
    ranked = sorted(range(len(values)), key=lambda i: values[i])
    for a, b in pairwise(ranked):
        assert placed[b] - placed[a] >= gap - 1e-6
    assert sum(placed) == pytest.approx(sum(values), abs=1e-6)


def test_labels_far_apart_stay():
    assert spread([0.0, 10.0, 5.0], 1.0) == [0.0, 10.0, 5.0]
    assert spread([1.0, 1.0], 1.0) == [0.5, 1.5]
