"""The figure of `python -m experiments alarm`."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import measurements
from experiments.analysis.alarm import PERCENT, Result, Watched
from experiments.report.figures import style
from experiments.report.figures.style import BLUE, FAINT, GREY, VERMILION


def overview(result: Result, primary: str) -> Figure:
    """Left: share of hacking runs caught by lead, a line a watch. Right: when each run rings, beside its onset."""
    style.apply()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), width_ratios=[1.1, 1.0])
    for number, (name, watch) in enumerate(result.seen.items()):
        if watch.clean is not None:
            _caught_by_lead(left, name, watch, number, name == primary)
    left.set(xlabel="steps before the onset of hacking", ylabel="Hacking runs warned of (%)", ylim=(-2, 102))
    left.invert_xaxis()
    if left.has_data():  # where no bound could be made there is nothing to name
        left.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    if result.seen[primary].clean is not None:
        _when(right, result.seen[primary])
    return figure


def _caught_by_lead(axis: Axes, name: str, watch: Watched, number: int, primary: bool) -> None:
    rings = watch.of("hacking")
    longest = max((ring.run.onset or 0 for ring in rings), default=0)
    leads = range(longest + 1)
    share = [PERCENT * sum(ring.caught and ring.lead >= lead for ring in rings) / max(1, len(rings)) for lead in leads]
    false, n = watch.false_alarms
    label = f"{name} (false alarms {false}/{n})"
    dash = ("-", "--", ":", "-.")[number % 4]
    axis.step(list(leads), share, where="pre", lw=2.2 if primary else 1.1, ls="-" if primary else dash, label=label,
              color=BLUE if primary else f"C{number}", zorder=4 if primary else 3)  # fmt: skip


def _when(axis: Axes, watch: Watched) -> None:
    hacking = sorted(watch.of("hacking"), key=lambda ring: (ring.run.onset or 0, ring.run.run_id))
    for height, ring in enumerate(hacking):
        onset = ring.run.onset or 0
        if ring.step is not None:
            axis.plot([ring.step, onset], [height, height], color=FAINT, lw=0.8, zorder=1)
            axis.plot(ring.step, height, "o", ms=3, color=BLUE, zorder=3)
        axis.plot(onset, height, "|", ms=5, color=VERMILION, zorder=2)
    clean = watch.of("clean")
    for place, ring in enumerate(clean):
        if ring.step is not None:
            axis.plot(ring.step, -3 - place * 5 / max(1, len(clean)), "x", ms=4, color=GREY)
    axis.axhline(-1.5, color=FAINT, lw=0.8)
    for colour, marker, text in (
        (BLUE, "o", "alarm"),
        (VERMILION, "|", "onset"),
        (GREY, "x", "false alarm, clean run"),
    ):
        axis.plot([], [], marker, color=colour, ls="", label=text)
    axis.set(xlabel=measurements.axis("step"), ylabel="Hacking runs by onset; clean ones below", yticks=[])
    axis.legend(fontsize=7, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
