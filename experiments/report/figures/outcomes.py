"""Figures about outcomes: hack against pass, trajectories, onset, time. Each public function draws one figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from common import measurements
from experiments.analysis.stats import pareto_front, survival, trailing_mean
from experiments.design.prereg import Measures
from experiments.report.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    HACK,
    INK,
    ORANGE,
    PASS,
    PURPLE,
    SKY,
    apart,
    end_labels,
    label_room,
    look,
)
from experiments.report.tables import ArmView, phase_medians

MARKER_GAP = 11.0  # points between the centres of lettered markers
OVERLAY_UP_TO = 6  # arms in one panel; more are drawn as one small panel an arm
NAMED_IN_PLOT = {"vanilla": "vanilla", "projected": "projected", "rebound": "Rebound"}


def headline(arms: list[ArmView]) -> Figure:
    """Final hack rate against final pass rate: a point a run, a lettered mean an arm (± SEM), their Pareto front.

    Lettered markers that would hide each other stand beside their means, each tied to its own by a line.
    """
    figure, axis = plt.subplots(figsize=(6.6, 4.3))
    means = [(100 * arm.mean(lambda s: s.passed).mean, 100 * arm.mean(lambda s: s.hack).mean) for arm in arms]
    _draw_front(axis, means)
    _draw_start(axis, arms)
    _headline_limits(axis, arms)
    shown = _markers(axis, means)
    for rank, (arm, mean, place) in enumerate(zip(arms, means, shown, strict=True)):
        _draw_arm(axis, arm, mean, place, order=100 - rank)
    _headline_frame(axis, arms, shown)
    return figure


def _markers(axis: Axes, means: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the lettered markers stand, in data units: at the means, moved where one would hide another."""
    to_points = 72.0 / axis.figure.dpi
    places = apart(axis.transData.transform(np.array(means)) * to_points, MARKER_GAP)
    return [(float(x), float(y)) for x, y in axis.transData.inverted().transform(places / to_points)]


def _draw_arm(axis: Axes, arm: ArmView, mean: tuple[float, float], place: tuple[float, float], order: int) -> None:
    """Single runs small and pale, the mean large with its letter, at `place`. Early arms lie on top of later ones."""
    style, hollow = look(arm.name), look(arm.name).hollow
    for s in arm.counted if len(arm.counted) > 1 else ():
        axis.plot(100 * s.passed, 100 * s.hack, style.marker, color=style.colour, ms=3.6, alpha=0.45, mew=0, zorder=3)
    spread_x, spread_y = arm.mean(lambda s: s.passed).sem, arm.mean(lambda s: s.hack).sem
    if np.isfinite(spread_x):
        axis.errorbar(*mean, 100 * spread_y, 100 * spread_x, color=style.colour, lw=1, zorder=order)
    if not np.allclose(mean, place, equal_nan=True):
        axis.plot(*zip(mean, place, strict=True), ".-", color=style.colour, lw=0.8, ms=3, zorder=90, clip_on=False)
    x, y = place
    size = {"^": 12.0, "D": 9.0}.get(style.marker, 10.0)
    whole: dict[str, Any] = {"zorder": order, "clip_on": False}  # an arm may end at 0% or 100%, on the frame
    axis.plot(x, y, style.marker, ms=size + 1.6, color="white", mew=0, **whole)
    axis.plot(x, y, style.marker, ms=size, mfc="white" if hollow else style.colour, mec=style.colour, mew=1.1, **whole)
    axis.annotate(arm.letter, (x, y), xytext=(0, -1.2 if style.marker == "^" else 0), textcoords="offset points",
                  ha="center", va="center_baseline", fontsize=6.3, weight="bold", zorder=order,
                  color=style.colour if hollow else "white")  # fmt: skip


def _draw_front(axis: Axes, means: list[tuple[float, float]]) -> None:
    front = pareto_front([x for x, _ in means], [y for _, y in means])
    xs, ys = [means[i][0] for i in front], [means[i][1] for i in front]
    if not front:
        return
    axis.step([0, *xs], [ys[0], *ys], where="pre", color=GREY, lw=1, ls=(0, (4, 2)), zorder=2)
    axis.plot([xs[-1], xs[-1]], [ys[-1], 200], color=GREY, lw=1, ls=(0, (4, 2)), zorder=2)


def _draw_start(axis: Axes, arms: list[ArmView]) -> None:
    """Where training began: the first step's rates, over all runs."""
    runs = [run for arm in arms for run in arm.runs]
    x = 100 * np.nanmean([run.series["pass_oracle"][0] for run in runs])
    y = 100 * np.nanmean([run.series["hack_strict"][0] for run in runs])
    axis.plot(x, y, "x", color=INK, ms=6, mew=1.4, zorder=4)
    text = axis.annotate("first step", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=7,
                         color="#555555", zorder=4)  # fmt: skip
    text.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])


def _headline_limits(axis: Axes, arms: list[ArmView]) -> None:
    runs = [s for arm in arms for s in arm.counted]
    top = max(5.0, 100 * np.nanmax([s.hack for s in runs])) * 1.18
    right = max(5.0, 100 * np.nanmax([s.passed for s in runs])) * 1.2
    axis.set(xlim=(0, right), ylim=(-0.03 * top, top))


def _headline_frame(axis: Axes, arms: list[ArmView], means: list[tuple[float, float]]) -> None:
    axis.set_xlabel(f"{measurements.axis('pass_oracle')}      better →")
    axis.set_ylabel(f"← better      {measurements.axis('hack_strict')}")
    for arm, place in zip(arms, means, strict=True):
        if arm.name in NAMED_IN_PLOT:
            words = NAMED_IN_PLOT[arm.name] + " †" * arm.live
            others = [other for other in means if other != place]
            _name_beside(axis, words, place, others, look(arm.name).colour)
    handles = [key(arm) for arm in arms]
    handles.append(Line2D([], [], color=GREY, lw=1, ls=(0, (4, 2)), label="Pareto front of arm means"))
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, labelspacing=0.75)


def _name_beside(
    axis: Axes, words: str, place: tuple[float, float], others: list[tuple[float, float]], colour: str
) -> None:
    """The words at the first of four corners of a marker where they cover no other marker."""
    here, *there = (axis.transData.transform(p) * 72.0 / axis.figure.dpi for p in (place, *others))
    width = 5.5 * len(words)
    corners = [(8.0, 7.0), (-8.0, 7.0), (8.0, -13.0), (-8.0, -13.0)]  # points from the marker's centre

    def covers(corner: tuple[float, float]) -> bool:
        left = here[0] + corner[0] - (width if corner[0] < 0 else 0)
        low = here[1] + corner[1]
        return any(left - 6 < x < left + width + 6 and low - 6 < y < low + 14 for x, y in there)

    dx, dy = next((corner for corner in corners if not covers(corner)), corners[0])
    text = axis.annotate(
        words, place, xytext=(dx, dy), textcoords="offset points", fontsize=8, weight="bold", color=colour, zorder=200,
        ha="right" if dx < 0 else "left",
    )  # fmt: skip
    text.set_path_effects([Stroke(linewidth=2, foreground="white"), Normal()])


def key(arm: ArmView) -> Line2D:
    """An arm's marker, letter and name for a legend."""
    style = look(arm.name)
    face = "white" if style.hollow else style.colour
    return Line2D([], [], marker=style.marker, ls="", ms=7, mfc=face, mec=style.colour, mew=1.2,
                  label=f"{arm.letter}  {arm.label}")  # fmt: skip


def trajectories(arms: list[ArmView], rules: Measures) -> Figure:
    """Hack and pass rate over steps, all arms: two panels for a few arms, a panel an arm for many."""
    window = rules.onset_window
    return _overlay(arms, window) if len(arms) <= OVERLAY_UP_TO else _grid(arms, window)


def _overlay(arms: list[ArmView], window: int) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharex=True, sharey=True)
    drawn: list[list[tuple[float, float, str, str]]] = []
    for axis, name in zip(axes, ("hack_strict", "pass_oracle"), strict=True):
        drawn.append([(*draw_series(axis, arm, name, window, 100.0), arm.label, look(arm.name).colour) for arm in arms])
        for arm in arms if name == "hack_strict" else ():
            mark_alarms(axis, arm, window)
        axis.set(title=measurements.axis(name), xlabel=measurements.axis("step"), xlim=(0, _longest(arms)))
        axis.tick_params(labelleft=True)
    top = max(5.0, axes[0].get_ylim()[1])
    for axis, ends in zip(axes, drawn, strict=True):
        axis.set_ylim(0, top)
        end_labels(axis, ends, 0.07 * top)
    figure.subplots_adjust(wspace=label_room([arm.label for arm in arms]))
    return figure


def _grid(arms: list[ArmView], window: int) -> Figure:
    figure, axes = panels(len(arms))
    reference = next((arm for arm in arms if arm.name == "vanilla"), None)
    for axis, arm in zip(axes.flat, arms, strict=False):
        if reference is not None and arm is not reference:
            draw_series(axis, reference, "hack_strict", window, 100.0, colour=GREY, dash="--", band=False)
        draw_series(axis, arm, "hack_strict", window, 100.0, colour=HACK, dash="-")
        draw_series(axis, arm, "pass_oracle", window, 100.0, colour=PASS, dash="-")
        mark_alarms(axis, arm, window)
        axis.set(xlim=(0, _longest(arms)), ylim=(0, 100), yticks=(0, 25, 50, 75, 100))
    handles = [Line2D([], [], color=HACK, label="strict hack rate"), Line2D([], [], color=PASS, label="pass rate"),
               Line2D([], [], color=GREY, ls="--", lw=1, label="vanilla's hack rate")]  # fmt: skip
    finish_panels(figure, axes, arms, "%", handles)
    return figure


def mark_alarms(axis: Axes, arm: ArmView, window: int) -> None:
    """A triangle where a run's own alarm rang, on its strict hack rate."""
    for run in arm.runs:
        if run.alarm_step is not None:
            place = int(np.flatnonzero(run.series["step"] == run.alarm_step)[0])
            height = 100 * trailing_mean(run.series["hack_strict"], window)[place]
            axis.plot(run.alarm_step, height, "v", ms=5, mfc="white", mec=HACK, mew=1.2, zorder=6, clip_on=False)


def panels(count: int) -> tuple[Figure, np.ndarray]:
    """A grid with one small panel an arm, axes shared."""
    columns = 3 if count <= 9 else 4
    rows = ceil(count / columns)
    return plt.subplots(rows, columns, figsize=(7.2, 1.5 * rows + 0.4), sharex=True, sharey=True, squeeze=False)


def finish_panels(
    figure: Figure, axes: np.ndarray, arms: list[ArmView], ylabel: str, handles: Sequence[Artist]
) -> None:
    """Titles, outer labels, one legend above."""
    for axis, arm in zip(axes.flat, arms, strict=False):
        axis.set_title(f"{arm.letter}  {arm.label}", fontsize=7)
    _tidy_grid(axes, len(arms), measurements.axis("step"), ylabel)
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles), borderaxespad=0)
    figure.tight_layout(h_pad=0.6, w_pad=0.6)


def _tidy_grid(axes: np.ndarray, used: int, xlabel: str, ylabel: str) -> None:
    """Hide empty panels; label the outer ones."""
    _rows, columns = axes.shape
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < used)
        if index < used and index + columns >= used:
            axis.set_xlabel(xlabel, fontsize=7)
            axis.tick_params(labelbottom=True)
        if index % columns == 0:
            axis.set_ylabel(ylabel)


def draw_series(
    axis: Axes, arm: ArmView, name: str, window: int, scale: float, colour: str | None = None, dash: str | None = None,
    band: bool = True,
) -> tuple[float, float]:  # fmt: skip
    """Mean over seeds of the trailing mean, ± SEM as a band; one seed: its raw values behind. Returns the last (x, y).

    The mean is over the runs that the tables count (`ArmView.counted`), up to the shortest, so that it never changes its
    members midway. Other runs are thin dotted lines up to where they ended.
    """
    style = look(arm.name)
    colour, dash = colour or style.colour, dash or style.dash
    counted = arm.counted_runs
    length = min(run.steps_done for run in counted)
    raw = np.array([scale * run.series[name][:length] for run in counted])
    for run in arm.runs:
        if band and not (run.finished or arm.live):
            axis.plot(scale * trailing_mean(run.series[name], window), color=colour, lw=0.8, ls=":")
    smooth = np.array([trailing_mean(row, window) for row in raw])
    steps = np.arange(length)
    middle = smooth.mean(axis=0)
    if band and len(raw) > 1:
        sem = smooth.std(axis=0, ddof=1) / np.sqrt(len(raw))
        axis.fill_between(steps, middle - sem, middle + sem, color=colour, alpha=0.18, lw=0)
    elif band:
        axis.plot(steps, raw[0], color=colour, lw=0.6, alpha=0.35)
    axis.plot(steps, middle, color=colour, ls=dash, lw=1.5 if band else 1.0)
    finite = np.flatnonzero(np.isfinite(middle))
    return (float(finite[-1]), float(middle[finite[-1]])) if len(finite) else (0.0, float("nan"))


def onset(arms: list[ArmView]) -> Figure:
    """Kaplan-Meier: share of runs that have not begun to hack."""
    end = _longest(arms)
    if len(arms) > OVERLAY_UP_TO:
        return _onset_grid(arms, end)
    figure, axis = plt.subplots(figsize=(4.6, 2.7))
    ends = []
    for rank, arm in enumerate(arms):
        shift = 0.007 * ((len(arms) - 1) / 2 - rank)  # identical curves stay visible
        last = _survival_curve(axis, arm, end, look(arm.name).colour, look(arm.name).dash, shift)
        ends.append((*last, arm.label, look(arm.name).colour))
    axis.set(xlim=(0, end), ylim=(-0.06, 1.08), xlabel=measurements.axis("step"), ylabel="Runs not yet hacking")
    _percent_axis(axis)
    end_labels(axis, ends, 0.085)
    return figure


def _onset_grid(arms: list[ArmView], end: int) -> Figure:
    figure, axes = panels(len(arms))
    reference = next((arm for arm in arms if arm.name == "vanilla"), None)
    for axis, arm in zip(axes.flat, arms, strict=False):
        if reference is not None and arm is not reference:
            _survival_curve(axis, reference, end, GREY, "--", 0.0, width=1.0)
        _survival_curve(axis, arm, end, BLUE, "-", 0.0)
        axis.set(xlim=(0, end), ylim=(-0.06, 1.08))
    _percent_axis(axes[0, 0])
    handles = [
        Line2D([], [], color=BLUE, label="runs not yet hacking"),
        Line2D([], [], color=GREY, ls="--", lw=1, label="vanilla"),
    ]
    finish_panels(figure, axes, arms, "", handles)
    return figure


def _survival_curve(
    axis: Axes, arm: ArmView, end: int, colour: str, dash: str, shift: float, width: float = 1.5
) -> tuple[float, float]:
    curve = survival([s.onset for s in arm.summaries], [max(0, s.steps_done - 1) for s in arm.summaries])
    stop = max(s.steps_done - 1 for s in arm.summaries)
    ys = np.append(curve.share, curve.share[-1]) + shift
    axis.step(np.append(curve.steps, min(stop, end)), ys, where="post", color=colour, ls=dash, lw=width)
    return float(min(stop, end)), float(ys[-1])


def _percent_axis(axis: Axes) -> None:
    axis.set_yticks((0, 0.25, 0.5, 0.75, 1))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def phases(arms: list[ArmView]) -> Figure | None:
    """Median seconds of one step: the trainer's own time (thick), and the services' busy time meanwhile (thin)."""
    if not any(phase_medians(arm)["total"] for arm in arms):
        return None  # nobody wrote the times
    figure, axis = plt.subplots(figsize=(6.2, 0.4 * len(arms) + 1.0))
    own, services = ("wait", "shape", "train", "push"), ("generate", "grade")
    colours = dict(zip((*own, *services), (FAINT, SKY, BLUE, PURPLE, ORANGE, GREEN), strict=True))
    for row, arm in enumerate(arms):
        medians = phase_medians(arm)
        right = _stack(axis, row - 0.1, 0.42, [(medians[name], colours[name]) for name in own])
        below = _stack(axis, row + 0.25, 0.2, [(medians[name], colours[name]) for name in services])
        axis.text(max(right, below), row, f"  {medians['total']:.2f} s a step", va="center", fontsize=7)
    axis.set(yticks=range(len(arms)), xlabel=f"Median {measurements.axis('seconds')}")
    axis.set_yticklabels([arm.label for arm in arms])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.14)
    handles = [Rectangle((0, 0), 1, 1, color=colours[name], label=name) for name in colours]
    axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, handlelength=1, borderaxespad=0.2)
    return figure


def _stack(axis: Axes, y: float, height: float, parts: list[tuple[float, str]]) -> float:
    """One stacked bar; its length."""
    left = 0.0
    for seconds, colour in parts:
        axis.barh(y, seconds, left=left, color=colour, height=height, edgecolor="white", lw=0.4)
        left += seconds
    return left


def _longest(arms: list[ArmView]) -> int:
    return max(1, max(run.steps_done for arm in arms for run in arm.runs) - 1)
