"""Figures about v_hack: is the gradient aligned with it, and does the applied update turn back?"""

from __future__ import annotations

import re
from math import ceil
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common import measurements
from experiments.analysis.run_files import Run
from experiments.design.prereg import Measures
from experiments.report.figures.outcomes import OVERLAY_UP_TO, _longest, _tidy_grid, draw_series, finish_panels, panels
from experiments.report.figures.style import BLUE, FAINT, GREY, INK, ORANGE, end_labels, label_room, look
from experiments.report.tables import ArmView, drift_series

BAND = 1.96  # 95% of a normal


def measured(arms: list[ArmView]) -> list[ArmView]:
    """Arms that logged a cosine."""
    return [arm for arm in arms if all(np.isfinite(run.series["cos_mean"]).any() for run in arm.runs)]


def cosines(arms: list[ArmView], rules: Measures) -> Figure | None:
    """Mean cos(g, v) before projection and of the applied update over steps, with the band of random directions."""
    arms = measured(arms)
    if not arms:
        return None
    return (_cosine_overlay if len(arms) <= OVERLAY_UP_TO else _cosine_grid)(arms, rules.onset_window)


def _cosine_overlay(arms: list[ArmView], window: int) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharex=True, sharey=True)
    titles = (
        f"{measurements.axis('cos_mean')}, before projection",
        f"{measurements.axis('update_cos_mean')}, after AdamW",
    )
    drawn = []
    for axis, name in zip(axes, ("cos_mean", "update_cos_mean"), strict=True):
        _null_band(axis, arms)
        drawn.append([(*draw_series(axis, arm, name, window, 1.0), arm.label, look(arm.name).colour) for arm in arms])
    low, high = axes[0].get_ylim()
    for axis, ends, title in zip(axes, drawn, titles, strict=True):
        axis.set(title=title, xlabel=measurements.axis("step"), xlim=(0, _longest(arms)), ylim=(low, high))
        axis.tick_params(labelleft=True)
        end_labels(axis, ends, 0.07 * (high - low))
    axes[0].set_ylabel("Mean over modules")
    axes[0].legend(handles=[Patch(color=FAINT, alpha=0.5, label="random directions, 95%")], loc="best")
    figure.subplots_adjust(wspace=label_room([arm.label for arm in arms]))
    return figure


def _cosine_grid(arms: list[ArmView], window: int) -> Figure:
    figure, axes = panels(len(arms))
    for axis, arm in zip(axes.flat, arms, strict=False):
        _null_band(axis, [arm])
        draw_series(axis, arm, "update_cos_mean", window, 1.0, colour=ORANGE, dash="-")
        draw_series(axis, arm, "cos_mean", window, 1.0, colour=BLUE, dash="-")
        axis.set_xlim(0, _longest(arms))
    handles = [Line2D([], [], color=BLUE, label="gradient, before projection"),
               Line2D([], [], color=ORANGE, label="applied update, after AdamW"),
               Patch(color=FAINT, alpha=0.5, label="random directions, 95%")]  # fmt: skip
    finish_panels(figure, axes, arms, "mean cos", handles)
    return figure


def drift(arms: list[ArmView], rules: Measures) -> Figure | None:
    """cos(−delta_S, v) over steps, a line an arm."""
    name = drift_series(arms)
    arms = [arm for arm in arms if all(np.isfinite(run.series[name]).any() for run in arm.runs)]
    if not arms:
        return None
    figure, axis = plt.subplots(figsize=(4.6, 2.7))
    axis.axhline(0, color="#777777", lw=0.7, zorder=1)
    last = [draw_series(axis, arm, name, rules.onset_window, 1.0) for arm in arms]
    axis.set(xlim=(0, _longest(arms)), xlabel=measurements.axis("step"),
             ylabel=f"Mean over modules of {measurements.axis(name)}")  # fmt: skip
    low, high = axis.get_ylim()
    ends = [(*end, arm.label, look(arm.name).colour) for end, arm in zip(last, arms, strict=True)]
    end_labels(axis, ends, 0.07 * (high - low))
    return figure


def _null_band(axis: Axes, arms: list[ArmView]) -> None:
    bands = np.concatenate([run.series["null_band"] for arm in arms for run in arm.runs])
    axis.axhline(0, color="#777777", lw=0.7, zorder=1)
    if np.isfinite(bands).any():
        half = BAND * float(np.nanmedian(bands))
        axis.axhspan(-half, half, color=FAINT, alpha=0.5, lw=0, zorder=0)


def directions(arms: list[ArmView]) -> dict[str, Run]:
    """One run for each different held-out validation, keyed by the names of the arms that share it."""
    found: dict[str, tuple[list[str], Run]] = {}
    for arm in arms:
        for run in arm.runs:
            if _validation(run):
                names, _ = found.setdefault(repr(_validation(run)), ([], run))
                if arm.name not in names:
                    names.append(arm.name)
    return {", ".join(names): run for names, run in found.values()}


def _validation(run: Run) -> list[dict[str, Any]] | None:
    return ((run.direction or {}).get("validation") or {}).get("modules")


def alignment_histogram(arms: list[ArmView]) -> tuple[Figure, str] | None:
    """(held-out cos_align of every module, its caption) for the direction that most arms use."""
    found = directions(arms)
    if not found:
        return None
    key = max(found, key=lambda names: names.count(","))
    run = found[key]
    modules = _validation(run) or []
    values = np.array([module["cos_align"] for module in modules])
    null = float(np.mean([module["null_std"] for module in modules]))
    figure, axis = plt.subplots(figsize=(4.6, 2.6))
    axis.axvspan(-BAND * null, BAND * null, color=FAINT, alpha=0.5, lw=0, zorder=0)
    low, high = min(-0.1, values.min(), -BAND * null), max(0.5, values.max(), BAND * null)
    axis.hist(values, bins=np.linspace(low, high, 25).tolist(), color=BLUE, edgecolor="white", lw=0.5, zorder=2)
    axis.axvline(0, color="#777777", lw=0.8, zorder=3)
    axis.axvline(float(np.median(values)), color=INK, lw=1.2, ls="--", zorder=3)
    axis.set(xlabel="cos_align of a module on held-out pairs", ylabel="Modules")
    axis.locator_params(axis="y", integer=True)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.22)
    axis.text(
        float(np.median(values)), axis.get_ylim()[1] * 0.985, f" median {np.median(values):.2f}", va="top", fontsize=7
    )
    axis.legend(handles=[Patch(color=FAINT, alpha=0.5, label="one pair, random direction, 95%")], loc="upper right",
                bbox_to_anchor=(1.0, 1.16))  # fmt: skip
    text = (f"Held-out validation of the direction ({key}; from {run.run_id}): {len(values)} modules, median "
            f"{np.median(values):.2f} (healthy above 0.3), mean {values.mean():.2f} (target above 0.2), positive in "
            f"{(values > 0).mean():.0%} of modules (gate: above 50%).")  # fmt: skip
    return figure, text


def heat_map(arms: list[ArmView]) -> Figure | None:
    """cos(g, v) by module and step, mean over seeds, a panel an arm, one colour scale."""
    arms = [arm for arm in arms if all(run.cos.size for run in arm.runs) and _same_modules(arm)]
    if not arms:
        return None
    maps = [_mean_map(arm) for arm in arms]
    names = arms[0].runs[0].module_names
    columns = len(arms) if len(arms) <= 3 else {4: 2, 5: 3, 6: 3}.get(len(arms), 4)
    rows = ceil(len(arms) / columns)
    few = len(names) <= 40 and columns <= 2
    height = max(1.7, 0.095 * len(names)) if few else 1.9
    figure, axes = plt.subplots(
        rows, columns, figsize=(7.2, height * rows + 0.5), squeeze=False, sharex=True, sharey=True
    )
    limit = max(0.05, float(np.nanpercentile(np.abs(np.concatenate([m.ravel() for m in maps])), 99)))
    images = []
    for axis, arm, values in zip(axes.flat, arms, maps, strict=False):
        images.append(
            axis.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        )
        axis.set_title(f"{arm.letter}  {arm.label}", fontsize=7.5 if few else 7)
        axis.grid(visible=False)
    _module_ticks(axes[:, 0], names, few)
    _tidy_grid(axes, len(arms), measurements.axis("step"), "" if few else "Module (layer)")
    figure.tight_layout(h_pad=0.7, w_pad=0.8)
    figure.colorbar(images[-1], ax=axes.ravel().tolist(), label=measurements.axis("cos_mean"), fraction=0.025, pad=0.02)
    return figure


def _mean_map(arm: ArmView) -> np.ndarray:
    """Mean over the counted seeds, [modules, steps], up to the shortest; NaN at steps where no gradient was taken."""
    runs = arm.counted_runs
    length = min(run.steps_done for run in runs)
    dense = np.full((len(runs), length, len(runs[0].module_names)), np.nan)
    for index, run in enumerate(runs):
        inside = run.module_steps < length
        dense[index, run.module_steps[inside].astype(int)] = run.cos[inside]
    over_seeds: np.ndarray = dense.mean(axis=0)
    return over_seeds.T


def _same_modules(arm: ArmView) -> bool:
    return len({run.module_names for run in arm.runs}) == 1


def _module_ticks(axes: np.ndarray, names: tuple[str, ...], each: bool) -> None:
    """Every module by its short name when there is room, else the first module of each layer by the layer's number."""
    if each:
        ticks, labels = list(range(len(names))), [short_module(name) for name in names]
    else:
        layers = [_layer(name) for name in names]
        first = [i for i, layer in enumerate(layers) if layer is not None and layer not in layers[:i]]
        keep = first[:: max(1, len(first) // 8)]
        ticks, labels = keep, [str(layers[i]) for i in keep]
    for axis in axes:
        axis.set_yticks(ticks)
        axis.set_yticklabels(labels, fontsize=5 if each else 6.5)


def _layer(name: str) -> int | None:
    match = re.search(r"layers?\.(\d+)\.", name)
    return int(match[1]) if match else None


def short_module(name: str) -> str:
    """'model.layers.3.self_attn.q_proj' -> '3 q_proj'."""
    layer = _layer(name)
    return f"{layer} {name.rsplit('.', 1)[-1]}" if layer is not None else name.rsplit(".", 1)[-1]


def firing(arms: list[ArmView], rules: Measures) -> Figure | None:
    """Share of modules that the projection touched, over steps, for arms where it touched any."""
    fired = [
        arm for arm in measured(arms) if any(np.nanmax(run.series["frac_fired"], initial=0) > 0 for run in arm.runs)
    ]
    if not fired:
        return None
    if len(fired) > OVERLAY_UP_TO:
        return _firing_grid(fired, rules.onset_window)
    figure, axis = plt.subplots(figsize=(4.6, 2.6))
    ends = [
        (*draw_series(axis, arm, "frac_fired", rules.onset_window, 1.0), arm.label, look(arm.name).colour)
        for arm in fired
    ]
    axis.set(ylim=(0, 1.02), xlabel=measurements.axis("step"), ylabel=measurements.axis("frac_fired"))
    _fired_frame(axis, fired)
    end_labels(axis, ends, 0.08)
    return figure


def _firing_grid(arms: list[ArmView], window: int) -> Figure:
    figure, axes = panels(len(arms))
    for axis, arm in zip(axes.flat, arms, strict=False):
        draw_series(axis, arm, "frac_fired", window, 1.0, colour=BLUE, dash="-")
        axis.set_ylim(0, 1.02)
        _fired_frame(axis, arms)
    finish_panels(figure, axes, arms, "", [Line2D([], [], color=BLUE, label="share of modules fired")])
    return figure


def _fired_frame(axis: Axes, arms: list[ArmView]) -> None:
    axis.axhline(0.5, color=GREY, lw=0.8, ls=":", zorder=1)
    axis.set_xlim(0, _longest(arms))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
