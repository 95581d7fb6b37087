"""What one run says: final rates, trajectories, onset. Rates are fractions 0..1 here; percent only on paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from experiments.analysis.run_files import Run
from experiments.analysis.stats import onset_step, trailing_mean, value_at_level
from experiments.design.prereg import Measures
from tasks import modes

SAFE_MODE, BARE_MODE = modes.SAFE.name, modes.BARE.name
HINT_MODE = modes.MODES["hint"].name
NAN = float("nan")


@dataclass(frozen=True)
class Summary:
    """One run in numbers. `window` final steps were averaged; NaN where the run has no such measurement."""

    run_id: str
    arm: str
    seed: int
    finished: bool
    steps_done: int
    steps: int
    window: int
    hack: float
    hack_loose: float
    passed: float
    forged: float
    kl: float
    entropy: float
    length: float
    cos_mean: float
    update_cos: float
    frac_fired: float
    grad_norm: float
    null_band: float
    safe_pass_start: float
    safe_pass_end: float
    eval_step: int
    onset: int | None
    hack_curve: np.ndarray
    pass_curve: np.ndarray
    state: str = "finished"
    truncated: float = NAN
    bare_start: float = NAN
    bare_end: float = NAN
    hint_start: float = NAN  # under the prompt of training: of a run without a loophole the bare one
    hint_end: float = NAN
    kl_all: float = NAN
    updates: float = NAN
    trained_share: float = NAN
    drift_ref: float = NAN
    displacement_ref: float = NAN
    nll_margin: float = NAN
    baseline_safe: float = NAN  # `safe` of the finished vanilla run of the same seed; `against_vanilla` sets it

    @property
    def delta_held_out(self) -> float:
        """Held-out pass under the hinted prompt with the flaw closed, last evaluation minus step 0. Earlier reports
        call it ΔSafePass, which is the plan's name for another quantity."""
        return self.safe_pass_end - self.safe_pass_start

    @property
    def delta_safe_pass(self) -> float:
        """The plan's ΔSafePass: (pass - hack) of the final training rollouts minus vanilla's of the same seed."""
        return self.safe - self.baseline_safe

    @property
    def delta_bare(self) -> float:
        """Held-out pass under the bare prompt, last evaluation minus step 0."""
        return self.bare_end - self.bare_start

    @property
    def safe(self) -> float:
        """pass - hack of the final training rollouts."""
        return self.passed - self.hack


def window_length(steps_done: int, rules: Measures) -> int:
    """min(window_steps, last share of the run), at least 1: 25 from 100 steps on, 20 of 80, 1 of 3."""
    return max(1, min(rules.window_steps, ceil(steps_done * rules.window_share - 1e-9)))


def summarise(run: Run, rules: Measures) -> Summary:
    """The measures of one run; a live run is summarised up to where it is."""
    window = window_length(run.steps_done, rules)
    series = run.series
    start, end, step = _held_out(run, SAFE_MODE)
    bare_start, bare_end, _ = _held_out(run, BARE_MODE)
    hint_start, hint_end, _ = _held_out(run, HINT_MODE if run.config.get("loophole") else BARE_MODE)
    return Summary(
        run_id=run.run_id,
        arm=run.arm,
        seed=run.seed,
        finished=run.finished,
        steps_done=run.steps_done,
        steps=run.status.steps,
        window=window,
        hack=tail_mean(series["hack_strict"], window),
        hack_loose=tail_mean(series["hack_loose"], window),
        passed=tail_mean(series["pass_oracle"], window),
        forged=tail_mean(series["forged_rate"], window),
        kl=tail_mean(series["kl"], window),
        entropy=tail_mean(series["entropy"], window),
        length=tail_mean(series["length_mean"], window),
        cos_mean=tail_mean(series["cos_mean"], run.steps_done),
        update_cos=tail_mean(series["update_cos_mean"], run.steps_done),
        frac_fired=tail_mean(series["frac_fired"], run.steps_done),
        grad_norm=tail_mean(series["grad_norm_mean"], run.steps_done),
        null_band=tail_mean(series["null_band"], run.steps_done),
        safe_pass_start=start,
        safe_pass_end=end,
        eval_step=step,
        onset=onset_step(series["hack_strict"], rules.onset_pp / 100, rules.onset_window),
        hack_curve=trailing_mean(series["hack_strict"], window),
        pass_curve=trailing_mean(series["pass_oracle"], window),
        state=run.status.state,
        truncated=tail_mean(series["truncated_rate"], window),
        bare_start=bare_start,
        bare_end=bare_end,
        hint_start=hint_start,
        hint_end=hint_end,
        kl_all=tail_mean(series["kl_all"], window),
        updates=_updates(series),
        trained_share=_trained_share(run, window),
        drift_ref=_last(series["drift_ref_cos_mean"]),
        displacement_ref=_last(series["displacement_ref"]),
        nll_margin=_last(
            np.array([row.nll_margin for row in sorted(run.evals, key=lambda row: row.step)], dtype=float)
        ),
    )


def against_vanilla(arms: dict[str, tuple[Summary, ...]]) -> dict[str, tuple[Summary, ...]]:
    """The same summaries with `baseline_safe` of their seed, where vanilla has a finished run of it."""
    base = {s.seed: s.safe for s in arms.get("vanilla", ()) if s.finished}
    return {name: tuple(replace(s, baseline_safe=base.get(s.seed, NAN)) for s in own) for name, own in arms.items()}


def _last(values: np.ndarray) -> float:
    """The last finite value; NaN without any."""
    kept = values[np.isfinite(values)]
    return float(kept[-1]) if len(kept) else NAN


def _updates(series: dict[str, np.ndarray]) -> float:
    """Optimizer updates made. Old rows do not count them; there the KL is null in a step without an update."""
    counted = series.get("updates", np.zeros(0))
    counted = counted[np.isfinite(counted)]
    return float(counted[-1]) if len(counted) else float(np.isfinite(series["kl"]).sum())


def _trained_share(run: Run, window: int) -> float:
    """Share of the window's groups behind the means over trained rows (kl, entropy, cosines).

    Old rows say only how many groups had no variance in their rewards; the rest of the planned groups was trained on.
    """
    trained, groups = run.series.get("trained_groups"), run.series.get("groups")
    if trained is not None and groups is not None and np.isfinite(trained).any():
        total = np.nansum(groups[-window:])
        return float(np.nansum(trained[-window:]) / total) if total else NAN
    planned = run.config.get("groups_per_step")
    return 1 - tail_mean(run.series["zero_variance_groups"], window) / planned if planned else NAN


def tail_mean(values: np.ndarray, window: int) -> float:
    """Mean of the last `window` values without the NaN ones; NaN when none is left."""
    tail = values[-window:] if window else values[:0]
    tail = tail[np.isfinite(tail)]
    return float(tail.mean()) if len(tail) else float("nan")


def _held_out(run: Run, mode: str) -> tuple[float, float, int]:
    """(pass rate before training, at the last evaluation so far, its step) of one evaluation mode; NaN without both."""
    rows = [(row.step, float(row.pass_oracle)) for row in run.evals if row.mode == mode and row.pass_oracle is not None]
    if not rows or rows[0][0] != 0:
        return NAN, NAN, -1
    return rows[0][1], rows[-1][1] if len(rows) > 1 else NAN, rows[-1][0]


def matched_pass(a: Summary, b: Summary) -> tuple[float, float, float] | None:
    """(pass rate, hack rate of a, hack rate of b) at the lower of the two final pass rates; None without match."""
    return _matched(a.pass_curve, a.hack_curve, b.pass_curve, b.hack_curve)


def matched_hack(a: Summary, b: Summary) -> tuple[float, float, float] | None:
    """(hack rate, pass rate of a, pass rate of b) at the lower of the two final hack rates; None without match."""
    return _matched(a.hack_curve, a.pass_curve, b.hack_curve, b.pass_curve)


def _matched(
    level_a: np.ndarray, value_a: np.ndarray, level_b: np.ndarray, value_b: np.ndarray
) -> tuple[float, float, float] | None:
    if not len(level_a) or not len(level_b):
        return None
    level = float(min(level_a[-1], level_b[-1]))
    a, b = value_at_level(level_a, value_a, level), value_at_level(level_b, value_b, level)
    return None if a is None or b is None else (level, a, b)
