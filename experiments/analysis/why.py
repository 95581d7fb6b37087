"""Numbers behind docs/results/why: dose-response, timing, matrix of mechanisms, cosines between directions. Pure.

dose        displacement_ref of the last step: component of delta_S along v_hack, all modules, > 0 away from the hack
isotonic    hack rate against displacement, the falling step function nearest to the points (scipy)
trend       exact p of Page's L over the ladder, ranks exchanged within seeds (exact.page)
timing      first and last step at which the arm acted, and the hack rate at the switch
matrix      runs by (mechanism trained on, mechanism of v's pairs)
cosines     of two directions: mean over modules of v[m]·w[m]. Files hold unit vectors, so a cosine of the whole
            difference, in which modules weigh by their norm, cannot be had from them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from experiments.analysis import exact
from experiments.analysis.measures import Summary, summarise
from experiments.analysis.run_files import Run
from experiments.analysis.run_outcomes import Outcome, classify
from experiments.design.prereg import Measures
from experiments.design.registration import DoseTrend, OutcomeRules, Registration
from tasks.loopholes import LOOPHOLES

if TYPE_CHECKING:
    from rankspace.direction import Direction


@dataclass(frozen=True)
class Row:
    """One run in numbers; rates as fractions. name: arm or cell. acted_from, acted_to: steps, None where it never acted.

    switch: 5-step mean hack rate just before acting began, or where it ended, just before that; NaN without either.
    """

    name: str
    run: Run
    summary: Summary
    outcome: Outcome
    displacement: float
    norm: float
    acted_from: int | None
    acted_to: int | None
    switch: float


@dataclass(frozen=True)
class Trend:
    """Page's L of one quantity over a ladder. expected: 'falls' or 'rises', the side that was tested."""

    quantity: str
    expected: str
    seeds: int
    p: float


@dataclass(frozen=True)
class Cosine:
    """Of two directions: mean over modules; spread: standard deviation over modules; null: that of the mean for random ones."""

    one: str
    other: str
    per_module: float
    spread: float
    null: float


def row(name: str, run: Run, measures: Measures, rules: OutcomeRules) -> Row:
    """A run's line. A run without positions (an old one) has NaN there."""
    summary = summarise(run, measures)
    acted = run.series.get("intervened", np.full(run.steps_done, np.nan)) == 1.0
    steps = np.flatnonzero(acted)
    first, last = (int(steps[0]), int(steps[-1])) if len(steps) else (None, None)
    hack, window = run.series["hack_strict"], measures.onset_window
    switch = nan
    if first is not None and last is not None:
        at = first if first > 0 else last + 1
        switch = _mean(hack[max(0, at - window) : at]) if 0 < at < run.steps_done else nan
    return Row(name, run, summary, classify(summary, rules), _last(run, "displacement_ref"), _last(run, "delta_norm"),
               first, last, switch)  # fmt: skip


def rows(by_name: Mapping[str, Sequence[Run]], registration: Registration) -> list[Row]:
    """Runs that have ended, in the order of arms and cells. A failed one is collapsed where the design says so; else it has
    no row."""
    design = registration.design
    counted = design is not None and design.failed_counts_as_collapsed
    found = []
    for name, runs in by_name.items():
        for run in runs:
            if run.finished:
                found.append(row(name, run, registration.measures, registration.outcomes))
            elif run.status.state == "failed" and counted:
                cut_short = row(name, run, registration.measures, registration.outcomes)
                found.append(replace(cut_short, outcome="collapsed"))
    return found


def ladder(registration: Registration) -> tuple[str, ...]:
    """The arms and cells of the first dose trend; () without one."""
    return next((c.ladder for c in registration.claims.values() if isinstance(c, DoseTrend)), ())


def trends(found: Sequence[Row], names: Sequence[str]) -> list[Trend]:
    """Hack rate (falls) and bare pass (falls: what it costs) over the ladder, seeds that every dose has finished."""
    return [
        _trend(found, names, "hack_strict", lambda r: r.summary.hack),
        _trend(found, names, "bare pass", lambda r: r.summary.bare_end),
    ]


def _trend(found: Sequence[Row], names: Sequence[str], quantity: str, value: Any) -> Trend:
    by_seed: dict[int, dict[str, float]] = {}
    for one in found:
        if one.name in names and isfinite(value(one)):
            by_seed.setdefault(one.run.seed, {})[one.name] = value(one)
    whole = [[-own[name] for name in names] for own in by_seed.values() if len(own) == len(names)]
    return Trend(quantity, "falls", len(whole), exact.page(whole) if whole else nan)


def isotonic(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(x sorted, the non-increasing fit of y at them), both float64 [n]; equal x share one value."""
    places, where = np.unique(np.asarray(x, dtype=float), return_inverse=True)
    weights = np.bincount(where).astype(float)
    means = np.bincount(where, weights=np.asarray(y, dtype=float)) / weights
    return places, isotonic_regression(means, weights=weights, increasing=False).x


def mechanisms(run: Run) -> tuple[str, str] | None:
    """(mechanism that the run was trained on, that of the pairs of its v_hack); None where there is no loophole."""
    loophole = run.config.get("loophole")
    if loophole not in LOOPHOLES:
        return None
    return LOOPHOLES[loophole].mechanism, run.config.get("pairs_mechanism") or "own_tests"


def matrix(found: Sequence[Row], arm: str) -> dict[tuple[str, str], list[Row]]:
    """{(trained, pairs): rows} of one arm."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for one in found:
        place = mechanisms(one.run)
        if one.run.arm == arm and place is not None:
            cells.setdefault(place, []).append(one)
    return cells


def cosines(directions: Mapping[str, Direction]) -> list[Cosine]:
    """Every pair, in the order given.

    Raises:
        ValueError: they are not for the same modules, or hold several vectors a module; one line.
    """
    from rankspace import Layout
    from rankspace.projection import unit_rows_of

    names = list(directions)
    modules = {name: d.modules for name, d in directions.items()}
    for name in names:
        if directions[name].vectors.ndim != 1:
            raise ValueError(f"direction {name} holds several vectors per module; give one with one")
        if modules[name] != modules[names[0]]:
            raise ValueError(f"directions {names[0]} and {name} are not for the same modules")
    layout = Layout.of(modules[names[0]])
    units = {name: unit_rows_of(d.vectors, layout, d.vectors.device)[0] for name, d in directions.items()}
    null = float(layout.null_std().square().sum().sqrt()) / len(layout.names)
    found = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            c = (units[one] * units[other]).sum(dim=-1)
            found.append(Cosine(one, other, float(c.mean()), float(c.std(correction=0)), null))
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else nan


def _last(run: Run, name: str) -> float:
    values = run.series.get(name, np.zeros(0))
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else nan
