"""Exact tests and bounds against numbers worked by hand or printed in tables."""

from __future__ import annotations

from math import comb, isnan

import pytest

from experiments.analysis.exact import boschloo, clopper_pearson, fisher, holm, mcnemar


@pytest.mark.parametrize(("b", "c", "p"), [(7, 0, 2**-7), (8, 0, 2**-8), (2, 0, 0.25), (0, 0, 1.0), (0, 3, 1.0)])
def test_mcnemar_of_one_sided_pairs(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p)


def test_mcnemar_with_one_reversal():
    # P(Bin(11, 1/2) >= 10) = (11 + 1) / 2^11
    assert mcnemar(10, 1) == pytest.approx(12 / 2048)


def test_fisher_of_extreme_tables():
    # 3 of 3 against 0 of 3: 1 of the 20 ways to place 3 successes; 5 of 5 against 0 of 5: 1 of 252
    assert fisher(3, 3, 0, 3) == pytest.approx(1 / comb(6, 3))
    assert fisher(5, 5, 0, 5) == pytest.approx(1 / comb(10, 5))
    # 6 of 8 against 0 of 8: C(8,6) C(8,0) / C(16,6)
    assert fisher(6, 8, 0, 8) == pytest.approx(28 / comb(16, 6))
    assert fisher(0, 3, 3, 3) == pytest.approx(1.0) and isnan(fisher(0, 0, 1, 3))


def test_boschloo_of_three_against_three():
    # only (3, 0) has the smallest Fisher p; sup over q of q^3 (1 - q)^3 = 1/64 at q = 1/2
    assert boschloo(3, 3, 0, 3) == pytest.approx(1 / 64, rel=1e-3)
    assert boschloo(3, 3, 3, 3) == boschloo(0, 3, 0, 3) == 1.0


def test_clopper_pearson_by_hand():
    # 0 of n: upper bound 1 - 0.025^(1/n); n of n: lower bound 0.025^(1/n)
    assert clopper_pearson(0, 5) == pytest.approx((0.0, 1 - 0.025 ** (1 / 5)))
    assert clopper_pearson(9, 9) == pytest.approx((0.025 ** (1 / 9), 1.0))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1 = 0.03, 0.04, 0.04; a NaN is no member of the family
    assert holm([0.04, 0.01, float("nan"), 0.02])[0:2] == pytest.approx([0.04, 0.03])
    assert isnan(holm([0.04, float("nan")])[1]) and holm([0.04, 0.01, float("nan"), 0.02])[3] == pytest.approx(0.04)
    # monotone: 0.03 * 1 may not fall below 0.025 * 2
    assert holm([0.03, 0.025]) == pytest.approx([0.05, 0.05]) and holm([0.9, 0.8]) == [1.0, 1.0]
