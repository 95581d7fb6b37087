"""The first figure: every arm's letter can be read, and stands where its mean is unless another would hide it."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic_runs import Plan, write

from experiments.analysis.comparable import Selection, choose
from experiments.design import prereg
from experiments.report import tables
from experiments.report.figures import outcomes, style


def test_points_apart_stay_and_close_ones_part_evenly():
    far = np.array([[0.0, 0.0], [20.0, 0.0], [np.nan, 3.0]])
    assert np.array_equal(style.apart(far, 10.0), far, equal_nan=True)
    # 4 apart where 10 are needed: each goes 3 outwards
    assert style.apart(np.array([[0.0, 0.0], [4.0, 0.0]]), 10.0) == pytest.approx(np.array([[-3.0, 0.0], [7.0, 0.0]]))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_points_in_one_place_part_and_do_so_the_same_way_each_time(count):
    same = np.zeros((count, 2))
    moved = style.apart(same, 10.0)
    assert all(np.hypot(*(a - b)) > 9.5 for a, b in combinations(moved, 2))
    assert np.array_equal(moved, style.apart(same, 10.0)) and np.abs(moved).max() < 10.0 * count


def test_no_letter_hides_another(tmp_path):
    """Three arms with the same rates, one with rates of its own and one at 0% and 0%."""
    style.apply()
    for arm in ("projected", "projected_no_rescale", "rebound_z"):
        write(tmp_path, Plan(arm=arm, hack=[0.0] * 4, passed=[0.6] * 4, cos=[0.1] * 4, rollouts=False))
    write(tmp_path, Plan(hack=[0.5] * 4, passed=[0.4] * 4, rollouts=False))
    write(tmp_path, Plan(arm="drift_only", hack=[0.0] * 4, passed=[0.0] * 4, cos=[0.1] * 4, rollouts=False))
    arms = tables.views(choose(Selection(tmp_path)), prereg.load().measures)
    figure = outcomes.headline(arms)
    (axis,) = figure.axes
    letters = {text.get_text(): text.xy for text in axis.texts if text.get_text() in {arm.letter for arm in arms}}
    assert len(letters) == 5
    points = {name: axis.transData.transform(xy) * 72 / figure.dpi for name, xy in letters.items()}
    assert all(np.hypot(*(a - b)) > outcomes.MARKER_GAP - 0.5 for a, b in combinations(points.values(), 2))
    vanilla = next(arm.letter for arm in arms if arm.name == "vanilla")
    assert letters[vanilla] == pytest.approx((40.0, 50.0)), "nothing is near it, so it stands at its mean"
    plt.close(figure)
