"""The figures of `python -m experiments why`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common import measurements
from experiments.analysis.why import Cosine, Row, isotonic
from experiments.report.figures import style
from experiments.report.figures.style import HACK, INK, PASS

MARKS = "osD^vP*X<>ph"  # a marker a name, since cells of one arm share its look
COLOURS = (style.BLACK, style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.VERMILION, style.GREY)


def dose_response(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Hack rate and bare pass against the displacement at the end, a point a run; the line is the isotonic fit of hacks."""
    style.apply()
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharex=True)
    shown = [row for row in rows if row.name in names and np.isfinite(row.displacement)]
    titles = (f"{measurements.axis('hack_strict')}, end", f"{measurements.axis('eval.pass_oracle')}, bare prompt, end")
    for axis, title, colour in zip(axes, titles, (HACK, PASS), strict=True):
        axis.axvline(0, color="#777777", lw=0.8, zorder=1)
        axis.set(ylabel=title, ylim=(0, 100), xlabel=measurements.axis("displacement_ref"))
        axis.yaxis.label.set_color(colour)
    for place, name in enumerate(names):
        own = [row for row in shown if row.name == name]
        x = [row.displacement for row in own]
        for axis, y in ((axes[0], [row.summary.hack for row in own]), (axes[1], [row.summary.bare_end for row in own])):
            axis.plot(x, [100 * value for value in y], MARKS[place % len(MARKS)], color=COLOURS[place % len(COLOURS)], ms=5.5,
                      alpha=0.85, ls="none", label=name, clip_on=False, zorder=3)  # fmt: skip
    fitted = [(row.displacement, row.summary.hack) for row in shown if np.isfinite(row.summary.hack)]
    if len({x for x, _ in fitted}) > 1:
        places, values = isotonic(*zip(*fitted, strict=True))
        axes[0].step(places, 100 * values, where="mid", color=INK, lw=1.1, zorder=2)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    figure.tight_layout()
    return figure


def outcome_counts(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Safe, hacking, collapsed and unknown runs of each arm or cell, as stacked bars with their counts."""
    style.apply()
    names = [name for name in names if any(row.name == name for row in rows)]
    figure, axis = plt.subplots(figsize=(6.0, 0.6 + 0.26 * len(names)))
    looks = {"safe": style.GREEN, "hacking": HACK, "collapsed": style.GREY, "unknown": style.FAINT}
    for place, name in enumerate(names):
        left = 0
        for outcome, colour in looks.items():
            count = sum(row.name == name and row.outcome == outcome for row in rows)
            if count:
                axis.barh(place, count, left=left, color=colour, height=0.72, lw=0)
                axis.text(
                    left + count / 2, place, str(count), ha="center", va="center_baseline", color="white", fontsize=7
                )
            left += count
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel="Runs")
    axis.locator_params(axis="x", integer=True)
    axis.grid(visible=False)
    handles = [Patch(color=colour) for colour in looks.values()]
    axis.legend(handles, list(looks), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return figure


def matrix(cells: Mapping[str, Mapping[tuple[str, str], Sequence[Row]]]) -> Figure:
    """Mean strict hack rate by mechanism trained on (rows) and mechanism of v's pairs (columns), a panel an arm.

    An arm that uses no v is the same in every column; a cell without a run is left white.
    """
    style.apply()
    places = {place for own in cells.values() for place in own}
    trained = sorted({one for one, _ in places})
    pairs = sorted({other for _, other in places})
    figure, axes = plt.subplots(1, len(cells), figsize=(1.2 + 2.3 * len(cells), 1.0 + 0.5 * len(trained)), squeeze=False,
                                sharey=True)  # fmt: skip
    image = None
    for axis, (arm, own) in zip(axes[0], cells.items(), strict=True):
        values = np.full((len(trained), len(pairs)), np.nan)
        for (one, other), found in own.items():
            values[trained.index(one), pairs.index(other)] = 100 * np.mean([row.summary.hack for row in found])
        image = axis.imshow(values, cmap="Oranges", vmin=0, vmax=100, aspect="auto")
        _numbers(axis, values, [[len(own.get((one, other), ())) for other in pairs] for one in trained])
        axis.set_xticks(range(len(pairs)), pairs, rotation=35, ha="right")
        axis.set(title=arm, xlabel="pairs of v")
        axis.grid(visible=False)
    axes[0, 0].set_yticks(range(len(trained)), trained)
    axes[0, 0].set_ylabel("trained on")
    if image is not None:
        figure.colorbar(
            image, ax=axes.ravel().tolist(), label=measurements.axis("hack_strict"), fraction=0.04, pad=0.02
        )
    return figure


def _numbers(axis: Axes, values: np.ndarray, runs: list[list[int]]) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 70 else INK
            axis.text(j, i, f"{value:.0f}\nn={runs[i][j]}", ha="center", va="center", fontsize=6.5, color=colour)


def cosine_table(found: Sequence[Cosine]) -> Figure:
    """Cosines between directions, mean over modules."""
    style.apply()
    names = list(dict.fromkeys([one for c in found for one in (c.one, c.other)]))
    values = np.eye(len(names))
    for c in found:
        i, j = sorted((names.index(c.one), names.index(c.other)))
        values[i, j] = values[j, i] = c.per_module
    figure, axis = plt.subplots(figsize=(1.6 + 0.62 * len(names), 1.1 + 0.5 * len(names)))
    image = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if i != j:
            colour = "white" if abs(value) > 0.6 else INK
            axis.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="cosine, mean over modules", fraction=0.05, pad=0.03)
    return figure


def timing(rows: Sequence[Row], window: int) -> Figure:
    """Hack rate over steps, trailing mean, a line a run; thick and blue where the arm acted."""
    style.apply()
    names = list(dict.fromkeys(row.name for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(1.0 + 2.1 * len(names), 2.4), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for row in [one for one in rows if one.name == name]:
            hack = row.run.series["hack_strict"]
            smooth = np.array([np.nanmean(hack[max(0, t + 1 - window) : t + 1]) for t in range(len(hack))])
            axis.plot(100 * smooth, color=INK, lw=0.8, alpha=0.7)
            if row.acted_from is not None and row.acted_to is not None:
                acted = np.arange(row.acted_from, row.acted_to + 1)
                axis.plot(acted, 100 * smooth[acted], color=style.BLUE, lw=2.2, alpha=0.6)
        axis.set(title=name, xlabel=measurements.axis("step"), ylim=(0, 100))
    axes[0, 0].set_ylabel(f"{measurements.axis('hack_strict')}, {window}-step mean")
    figure.tight_layout()
    return figure
