"""The figure of `python -m experiments drift`."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from common import measurements
from experiments.analysis.drift import Place
from experiments.report.figures import style
from experiments.report.figures.outcomes import key
from experiments.report.figures.style import look
from experiments.report.tables import ArmView


def scatter(arms: Sequence[ArmView], places: Sequence[Place]) -> Figure:
    """Final hack rate against drift along v_hack, a point a run; small and pale: stopped early."""
    style.apply()
    figure, axis = plt.subplots(figsize=(6.0, 3.6))
    axis.axvline(0, color="#777777", lw=0.8, zorder=1)
    for p in places:
        own, finished = look(p.run.arm), p.run.finished
        axis.plot(
            p.drift, 100 * p.summary.hack, own.marker, ms=6.5 if finished else 4.5, mec=own.colour, mew=1.1, clip_on=False,
            mfc="none" if own.hollow else own.colour, alpha=0.9 if finished else 0.45, zorder=3,
        )  # fmt: skip
    drift = measurements.axis("drift_ref_cos_mean")
    axis.set(xlabel=f"away from the hack ←      drift: mean over modules of {drift}      → towards it",
             ylabel=f"{measurements.axis('hack_strict')}, end", ylim=(0, 100))  # fmt: skip
    shown = {p.run.arm for p in places}
    axis.legend(handles=[key(arm) for arm in arms if arm.name in shown], loc="upper left", bbox_to_anchor=(1.01, 1.0),
                borderaxespad=0, labelspacing=0.75)  # fmt: skip
    return figure
