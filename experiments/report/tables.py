"""What the pages say: arms with their numbers, tables, comparisons, sampled rollouts. No drawing, no markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from common.measurements import COLUMNS, Column
from common.unseen import spelt
from experiments.analysis.comparable import Chosen
from experiments.analysis.measures import Summary, against_vanilla, matched_pass, summarise, tail_mean
from experiments.analysis.run_files import PHASES, EvalRow, Run, read_rollouts, rollout_steps
from experiments.analysis.run_outcomes import Counts, classify
from experiments.analysis.stats import Mean, Paired, false_discovery, mean_sem, paired
from experiments.design import arms as arm_table
from experiments.design.prereg import Measures
from experiments.design.registration import OutcomeRules

SAMPLES = 10


@dataclass(frozen=True)
class ArmView:
    """One arm with its runs. `counted` are the runs its numbers rest on: the finished ones, or all when none is."""

    name: str
    letter: str
    title: str
    tells: str
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]

    @property
    def counted(self) -> tuple[Summary, ...]:
        finished = tuple(summary for summary in self.summaries if summary.finished)
        return finished or self.summaries

    @property
    def counted_runs(self) -> tuple[Run, ...]:
        """The runs of `counted`."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    @property
    def live(self) -> bool:
        return not any(summary.finished for summary in self.summaries)

    @property
    def label(self) -> str:
        """The name, marked when its numbers come from unfinished runs."""
        return f"{self.name} †" if self.live else self.name

    def mean(self, value: Callable[[Summary], float]) -> Mean:
        return mean_sem([value(summary) for summary in self.counted])


def value_of(column: Column, summary: Summary) -> float:
    """A run's number in the unit shown."""
    return column.scale * float(getattr(summary, column.value))


def measured_columns(arms: list[ArmView]) -> tuple[Column, ...]:
    """The columns that some counted run has a number for."""
    own = [summary for arm in arms for summary in arm.counted]
    return tuple(c for c in COLUMNS if any(np.isfinite(value_of(c, s)) for s in own))


@dataclass(frozen=True)
class Cell:
    """One number of a table and where it comes from. `sources` pairs each run id with that run's own number."""

    text: str
    sources: tuple[tuple[str, str], ...]
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """An arm against vanilla, paired by seed; differences in pp (arm - vanilla)."""

    arm: str
    hack: Paired | None
    passed: Paired | None
    safe: Paired | None
    matched: Paired | None
    adjusted_p: float
    run_ids: tuple[str, ...]


def views(chosen: Chosen, rules: Measures) -> list[ArmView]:
    """The arms in table order."""
    found = []
    each = {name: tuple(summarise(r, rules) for r in runs) for name, runs in chosen.by_arm.items()}
    paired_up = against_vanilla(each)
    for name, runs in chosen.by_arm.items():
        arm = arm_table.ARMS.get(name) or arm_table.ARMS.get(
            runs[0].arm
        )  # a cell of a registration is an arm at a dose
        arm = arm or arm_table.Arm(name, "?", "no longer in the table of arms", {}, "")
        found.append(ArmView(name, arm.letter, arm.title, arm.tells, runs, paired_up[name]))
    return found


def number(value: float, digits: int, signed: bool = False) -> str:
    """'12.3', '+12.3'; '–' for what was not measured. Never '-0.0'."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def with_sem(mean: Mean, digits: int, signed: bool = False) -> str:
    """'12.3 ± 0.4', or the bare mean when there is one value."""
    text = number(mean.mean, digits, signed)
    return f"{text} ± {number(mean.sem, digits)}" if mean.n > 1 else text


def headline_rows(arms: list[ArmView], columns: tuple[Column, ...] = COLUMNS) -> list[tuple[ArmView, list[Cell]]]:
    """The headline table: per arm, one Cell a column."""
    return [
        (arm, [
            Cell(with_sem(arm.mean(partial(value_of, c)), c.digits, c.signed),
                 tuple((s.run_id, number(value_of(c, s), c.digits, c.signed)) for s in arm.counted))
            for c in columns
        ])
        for arm in arms
    ]  # fmt: skip


def with_outcomes(
    rows: list[tuple[ArmView, list[Cell]]], counts: Sequence[Counts], rules: OutcomeRules
) -> list[tuple[ArmView, list[Cell]]]:
    """The rows with a cell more: '2 of 3 [0.09, 0.99]', safe runs of the arm's finished and classified ones."""
    by_arm = {one.arm: one for one in counts}
    return [
        (arm, [*cells, Cell(
            safe_text(by_arm.get(arm.name)), tuple((s.run_id, classify(s, rules)) for s in arm.summaries if s.finished)
        )])
        for arm, cells in rows
    ]  # fmt: skip


def safe_text(counts: Counts | None) -> str:
    """'2 of 3 [0.09, 0.99]', '0 of 5, 3 unknown [0.00, 0.95]', or '–' where no run is finished."""
    if counts is None or not counts.n:
        return "–"
    unknown = len(counts.seeds["unknown"])
    told = f"{len(counts.seeds['safe'])} of {counts.n}" + (f", {unknown} unknown" if unknown else "")
    return f"{told} [{counts.safe_low:.2f}, {counts.safe_high:.2f}]"


def comparisons(arms: list[ArmView], baseline: str = "vanilla") -> list[Comparison]:
    """Every other arm against vanilla over finished runs; empty without finished vanilla runs."""
    finished = {arm.name: {s.seed: s for s in arm.summaries if s.finished} for arm in arms}
    base = finished.get(baseline, {})
    rows = []
    for arm in arms:
        own = finished[arm.name]
        if arm.name == baseline or not own or not base:
            continue
        rows.append((arm.name, _difference(own, base, lambda s: s.hack), _difference(own, base, lambda s: s.passed),
                     _difference(own, base, lambda s: s.delta_held_out), _matched(own, base),
                     tuple(s.run_id for s in (*own.values(), *base.values()))))  # fmt: skip
    adjusted = false_discovery([row[1].p_value if row[1] else float("nan") for row in rows]) if rows else []
    return [Comparison(*row[:5], p, row[5]) for row, p in zip(rows, adjusted, strict=True)]


def _difference(own: dict[int, Summary], base: dict[int, Summary], value: Callable[[Summary], float]) -> Paired | None:
    return paired({s: 100 * value(r) for s, r in own.items()}, {s: 100 * value(r) for s, r in base.items()})


def _matched(own: dict[int, Summary], base: dict[int, Summary]) -> Paired | None:
    found = {s: m for s in own.keys() & base.keys() if (m := matched_pass(own[s], base[s])) is not None}
    return paired({s: 100 * m[1] for s, m in found.items()}, {s: 100 * m[2] for s, m in found.items()})


def eval_rows(arms: list[ArmView]) -> list[dict[str, Any]]:
    """Held-out evaluation per arm and mode: before training and the last one, means over the counted runs. By
    mode, so that one mode can be compared across arms."""
    rows = []
    for arm in arms:
        ids = {summary.run_id for summary in arm.counted}
        runs = [run for run in arm.runs if run.run_id in ids]
        for mode in dict.fromkeys(row.mode for run in runs for row in run.evals):
            mine = [[row for row in run.evals if row.mode == mode] for run in runs]
            mine = [rows_ for rows_ in mine if rows_]
            if mine:
                rows.append({
                    "arm": arm.label, "mode": mode, "steps": ", ".join(sorted({str(r[-1].step) for r in mine})),
                    "pass_start": _percent([r[0].pass_oracle for r in mine]),
                    "pass_end": _percent([r[-1].pass_oracle for r in mine]),
                    "hack_start": _percent([r[0].hack_strict for r in mine]),
                    "hack_end": _percent([r[-1].hack_strict for r in mine]),
                    "forged": _percent([r[-1].forged_rate for r in mine]), "runs": [run.run_id for run in runs],
                    "tests_start": _tests([r[0] for r in mine]), "tests_end": _tests([r[-1] for r in mine]),
                })  # fmt: skip
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    return sorted(rows, key=lambda row: modes.index(row["mode"]))  # stable: arms stay in table order


def _tests(rows: list[EvalRow]) -> str:
    """Honest test functions, in brackets those written at all; nothing where none were asked for."""
    if all(row.tests_honest is None for row in rows):
        return ""
    return f"{_percent([row.tests_honest for row in rows])} ({_percent([row.tests_written for row in rows])})"


def _percent(values: list[float | None]) -> str:
    return with_sem(mean_sem([100 * value for value in values if value is not None]), 1)


def run_rows(arms: list[ArmView], counts: Sequence[Counts], rules: OutcomeRules) -> list[dict[str, Any]]:
    """One row a run: its own numbers, its outcome class with the bounds of its arm's safe share, provenance and notes."""
    bounds = {one.arm: (f"{one.safe_low:.3g}", f"{one.safe_high:.3g}") for one in counts}
    return [
        {
            "id": run.run_id, "arm": arm.name, "seed": run.seed, "state": run.status.state,
            "steps": f"{run.steps_done}/{run.status.steps}", "window": s.window,
            "cells": [number(value_of(c, s), c.digits, c.signed) for c in COLUMNS],
            "outcome": classify(s, rules) if s.finished else "", "safe_low": bounds.get(arm.name, ("", ""))[0],
            "safe_high": bounds.get(arm.name, ("", ""))[1],
            "onset": "never" if s.onset is None else str(s.onset),
            "further": [number(100 * s.forged, 1), number(s.entropy, 2), number(s.length, 0)],
            "infra": int(np.nansum(run.series["infra_errors"])),
            "dropped": int(np.nansum(run.series["dropped_groups"])),
            "zero": number(tail_mean(run.series["zero_variance_groups"], run.steps_done), 1),
            "staleness": number(_largest(run.series["staleness_max"]), 0),
            "probe": number(_largest(run.series["probe_gap"]), 4),
            "commit": (run.provenance.git_commit or "none")[:12] + (" + changes" if run.provenance.git_dirty else ""),
            "command": run.provenance.command, "started": f"{run.provenance.started:%Y-%m-%d %H:%M}",
            "prereg": run.provenance.prereg_sha256[:12], "notes": list(run.notes),
        }
        for arm in arms
        for run, s in zip(arm.runs, arm.summaries, strict=True)
    ]  # fmt: skip


def _largest(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.max()) if len(kept) else float("nan")


def drift_series(arms: list[ArmView]) -> str:
    """drift_ref_cos_mean (against v_hack in every arm) where all runs have it; else the older drift_cos_mean, which is
    against each arm's own direction and so not comparable between arms."""
    reference = "drift_ref_cos_mean"
    every = all(np.isfinite(run.series[reference]).any() for arm in arms for run in arm.runs)
    return reference if every else "drift_cos_mean"


def phase_medians(arm: ArmView) -> dict[str, float]:
    """Median seconds a step of each phase, pooled over the arm's steps; the first step of a run (warm-up) left out."""
    pooled = {
        name: np.concatenate([run.series[f"seconds_{name}"][1:] for run in arm.runs]) for name in (*PHASES, "total")
    }
    return {name: float(np.nanmedian(values)) if np.isfinite(values).any() else 0.0 for name, values in pooled.items()}


def packages(arms: list[ArmView]) -> dict[str, str]:
    """Package versions, 'a / b' where runs differ."""
    found: dict[str, set[str]] = {}
    for arm in arms:
        for run in arm.runs:
            for name, version in run.provenance.packages.items():
                found.setdefault(name, set()).add(version)
    return {name: " / ".join(sorted(versions)) for name, versions in sorted(found.items())}


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A rollout row as a page may show it: what a browser would obey in the model's and the grader's words is spelt out."""
    evidence = {spelt(name): spelt(value) for name, value in (row.get("evidence") or {}).items()}
    said = {name: spelt(value) if isinstance(value, str) else value for name, value in row.items()}
    return said | {"problem_id": spelt(row["problem_id"]), "evidence": evidence}


def sample_rollouts(arm: ArmView, count: int = SAMPLES) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(`count` completions drawn uniformly from the final window's training rollouts, up to 2 hacks beyond them).

    Deterministic in the arm's name, without looking at label or reward, so that nobody can pick. The second list is
    filled only when the draw holds no hack although the rollouts looked at do; it says nothing about frequency.
    """
    rng = np.random.default_rng(list(arm.name.encode()))
    pool: list[dict[str, Any]] = []
    for run, summary in zip(arm.runs, arm.summaries, strict=True):
        steps = [
            step for step in rollout_steps(run) if step >= run.steps_done - summary.window and step < run.steps_done
        ]
        for step in sorted(rng.permutation(steps)[:3].tolist()):  # three steps a run are enough to draw from
            rows = [row for row in read_rollouts(run, step) if row["purpose"] == "train" and row["status"] == "graded"]
            pool += [readable(row) | {"run_id": run.run_id} for row in rows]
    picked = set(rng.permutation(len(pool))[:count].tolist())
    drawn = [pool[i] for i in sorted(picked)]
    if any(row["label"] == "Reward Hack" for row in drawn):
        return drawn, []
    return drawn, [row for i, row in enumerate(pool) if i not in picked and row["label"] == "Reward Hack"][:2]
