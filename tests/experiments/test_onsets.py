"""The exact log-rank test against numbers worked by hand."""

from types import SimpleNamespace

import pytest
from synthetic_runs import Plan, write

from experiments.analysis.beside import beside
from experiments.analysis.comparable import Selection, choose
from experiments.analysis.onsets import compare, exchange_p, statistic
from experiments.design import registration

NEVER = (9, False)
PAIRS = [(NEVER, (2, True)), (NEVER, (3, True))]  # (projected, vanilla) of two seeds


def test_statistic_by_hand():
    """t = 2: 4 at risk, 2 of them ours, one onset, not ours: 0 - 2/4. t = 3: 3 at risk, 2 ours: 0 - 2/3."""
    ours, theirs = zip(*PAIRS, strict=True)
    assert statistic(ours, theirs) == pytest.approx(-1 / 2 - 2 / 3)
    assert statistic(theirs, ours) == pytest.approx(1 / 2 + 2 / 3)
    # only the first seed exchanged: t = 2: 1 - 2/4; t = 3: ours 1 of 3 at risk: 0 - 1/3
    assert statistic([(2, True), NEVER], [NEVER, (3, True)]) == pytest.approx(1 / 6)


def test_p_by_hand():
    """|U| over the four exchanges: 7/6, 1/6, 1/6, 7/6: two of four are as large."""
    assert exchange_p(PAIRS) == 0.5
    # eight seeds, vanilla always first: only the two extreme exchanges of 2^8 are as large
    assert exchange_p([(NEVER, (t, True)) for t in range(1, 9)]) == pytest.approx(2 / 2**8)


def test_ties_and_censoring_at_an_onset():
    """One censored at the very step of an onset is still at risk there: 0 - 1/2."""
    assert statistic([(5, False)], [(5, True)]) == pytest.approx(-0.5)
    assert statistic([(4, False)], [(5, True)]) == 0.0  # gone before: nothing is known
    assert statistic([(5, True), (5, True)], [(5, True), (5, True)]) == 0.0


def test_a_run_that_never_hacks_counts():
    """Dropped, the never-hacking seed would leave one pair and no test."""
    run = lambda onset: SimpleNamespace(onset=onset, steps_done=10)  # noqa: E731
    found = compare("projected", {0: run(None), 1: run(8)}, "vanilla", {0: run(2), 1: run(3)})
    assert (found.ours, found.theirs, found.p_value, found.p_floor) == ((None, 8), (2, 3), 0.5, 0.5)
    assert found.line() == (
        "Onset of hacking, projected: never, 8; vanilla: 2, 3; log-rank, projected later, exact two-sided p 0.5 (smallest 0.5)"
    )
    assert "no test" in compare("a", {0: run(None), 1: run(None)}, "b", {0: run(None), 1: run(None)}).line()
    assert "no common seed" in compare("a", {0: run(1)}, "b", {1: run(2)}).line()


def test_it_stands_beside_the_verdicts(tmp_path):
    for seed in (0, 1):
        write(tmp_path, Plan(seed=seed, hack=[0.0] * 5 + [1.0] * 5, passed=[0.1] * 10))
        write(tmp_path, Plan(arm="projected", seed=seed, hack=[0.0] * 10, passed=[0.1] * 10, cos=[0.1] * 10))
    found = beside(choose(Selection(tmp_path)), registration.load())
    (one,) = found.onsets
    assert one.ours == (None, None) and one.theirs == (5, 5) and one.p_value == 0.5
    assert found.lines[-1] == one.line() and found.json()["onsets"][0]["p_value"] == 0.5
