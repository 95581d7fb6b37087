"""How figures look: Okabe-Ito colours (colour-blind readers tell them apart), one fixed look an arm, small type."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.report.out import DPI

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C",
)  # fmt: skip
INK, FAINT = "#222222", "#BBBBBB"
HACK, PASS = VERMILION, BLUE


@dataclass(frozen=True)
class Look:
    colour: str
    dash: str = "-"
    marker: str = "o"

    @property
    def hollow(self) -> bool:
        """Whether markers are left open: of the arms of a family those whose lines are broken."""
        return self.dash != "-"


# Families share a colour: ours blue, the rival orange, controls purple and grey, ceilings green.
LOOKS = {
    "vanilla": Look(BLACK, "-", "o"),
    "projected": Look(BLUE, "-", "o"),
    "projected_no_rescale": Look(SKY, "-", "o"),
    "rebound": Look(ORANGE, "-", "s"),
    "random_direction": Look(PURPLE, "-", "^"),
    "shuffled_pairs": Look(PURPLE, "--", "^"),
    "measure_only": Look(GREY, "--", "o"),
    "projected_update": Look(BLUE, "--", "o"),
    "projected_two_sided": Look(SKY, "--", "o"),
    "drift_only": Look(VERMILION, "-", "^"),
    "projected_subspace": Look(BLUE, ":", "o"),
    "projected_refresh": Look(SKY, ":", "o"),
    "rebound_multiplicative": Look(ORANGE, "--", "s"),
    "rebound_z": Look(ORANGE, ":", "s"),
    "no_loophole": Look(GREEN, "-", "D"),
    "ground_truth_penalty": Look(GREEN, "--", "D"),
    "ground_truth_screening": Look(GREEN, ":", "D"),
    "pissa_freeze_a": Look(VERMILION, "--", "o"),
}

RC: dict[Any, Any] = {
    "figure.dpi": DPI, "savefig.dpi": DPI, "savefig.bbox": "tight", "savefig.pad_inches": 0.08,
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.linewidth": 0.7,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": "#444444", "ytick.color": "#444444",
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.major.size": 3, "ytick.major.size": 3,
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "lines.linewidth": 1.5, "legend.frameon": False, "svg.hashsalt": "report",
}  # fmt: skip


def look(arm: str) -> Look:
    """The look of an arm; grey for an arm that is no longer in the table."""
    return LOOKS.get(arm, Look(GREY, "-.", "o"))


def apply() -> None:
    """Set matplotlib's defaults for all figures of the report."""
    plt.rcdefaults()
    matplotlib.use("Agg")
    plt.rcParams.update(RC)


def end_labels(axis: Axes, ends: list[tuple[float, float, str, str]], gap: float) -> None:
    """Name lines at the right edge instead of in a legend: (last x, y, text, colour), pushed apart to at least `gap`.

    A line that ends early is led to the edge by dots.
    """
    ends = [end for end in ends if isfinite(end[1])]
    if not ends:
        return
    placed = spread([y for _, y, _, _ in ends], gap)
    left, right = axis.get_xlim()
    elbow, start = right + 0.035 * (right - left), right + 0.05 * (right - left)
    for (x, y, text, colour), at in zip(ends, placed, strict=True):
        if x < right:
            axis.plot([x, right], [y, y], color=colour, lw=0.8, ls=(0, (1, 2.5)), scalex=False, scaley=False)
        axis.plot([right, elbow], [y, at], color=colour, lw=0.6, clip_on=False, scalex=False, scaley=False)
        axis.text(start, at, text, color=colour, fontsize=7, va="center_baseline")


def label_room(names: list[str]) -> float:
    """`wspace` that leaves room for the longest end label between two panels."""
    return 0.2 + 0.031 * max(len(name) for name in names)


def spread(values: list[float], gap: float) -> list[float]:
    """Positions nearest to `values` (least squares) in the same order, at least `gap` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    # Least squares under x[i+1] - x[i] >= gap is isotonic regression of values - i * gap: pool adjacent violators.
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([values[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, n), (b, m) = blocks[-2], blocks[-1]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    flat = [level for level, n in blocks for _ in range(int(n))]
    placed = [0.0] * len(values)
    for rank, i in enumerate(order):
        placed[i] = flat[rank] + rank * gap
    return placed


def apart(points: np.ndarray, gap: float, rounds: int = 200) -> np.ndarray:
    """The points [n, 2], moved as little as need be for any two to be at least about `gap` apart; NaN rows stay.

    Pairs that are too close are pushed away from each other by half of what is missing, until none is left. Points in the
    same place part in a direction that depends on their number alone.
    """
    moved = np.array(points, dtype=float)
    known = [i for i in range(len(moved)) if np.isfinite(moved[i]).all()]
    for _ in range(rounds):
        close = False
        for a, b in combinations(known, 2):
            way = moved[b] - moved[a]
            distance = float(np.hypot(*way))
            if distance >= gap - 0.01:
                continue
            close = True
            turn = 2.4 * b  # the golden angle: no two numbers share a direction
            unit = way / distance if distance > 1e-6 else np.array([np.cos(turn), np.sin(turn)])
            moved[a] -= unit * (gap - distance) / 2
            moved[b] += unit * (gap - distance) / 2
        if not close:
            break
    return moved
