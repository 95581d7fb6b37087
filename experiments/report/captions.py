"""The sentences of the report: what was averaged, over what, and what it does not prove."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.measurements import Column
from experiments.analysis.stats import Mean, Paired
from experiments.design.prereg import Measures
from experiments.report.tables import ArmView, drift_series, number, with_sem
from tasks import modes

TITLES = {
    "headline": "Hacking against solving",
    "trajectories": "Hack rate and pass rate over training",
    "cosines": "Alignment of the gradient with v over training",
    "drift": "Drift along v",
    "firing": "How often the projection fires",
    "histogram": "Held-out alignment of v_hack",
    "heat_map": "Alignment by module",
    "onset": "Onset of hacking",
    "phases": "Where the time goes",
}


def seeds(arms: list[ArmView]) -> list[int]:
    """All seeds that any number rests on."""
    return sorted({summary.seed for arm in arms for summary in arm.counted})


def how_many(arms: list[ArmView]) -> str:
    """'3 seeds', or '2 to 3 seeds an arm' where arms have unlike numbers of counted runs."""
    fewest, most = (choose(len(arm.counted) for arm in arms) for choose in (min, max))
    return f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds an arm"


def lead(arms: list[ArmView]) -> str:
    """The result in a sentence, for a reader who reads one sentence."""
    by_name = {arm.name: arm for arm in arms}
    named = [by_name[name] for name in ("vanilla", "projected") if name in by_name]
    if not named:
        return ""
    parts = []
    for arm in named:
        hack, passed = (arm.mean(value) for value in (lambda s: 100 * s.hack, lambda s: 100 * s.passed))
        parts.append(f"{arm.label} hacks {with_sem(hack, 1)}% and solves {with_sem(passed, 1)}%")
    own = seeds(arms)
    tail = f"Seed {own[0]} only: one seed proves nothing." if len(own) == 1 else f"{how_many(named)}, mean ± SEM."
    return f"Final training rollouts: {'; '.join(parts)}. {tail}"


def banners(arms: list[ArmView]) -> list[str]:
    """What a reader must know before believing a number."""
    lines = []
    own = seeds(arms)
    if len(own) == 1:
        lines.append(
            f"One seed ({own[0]}) proves nothing: single RL runs differ from seed to seed by more than most effects. "
            "No error bars, intervals or tests can be given; treat every difference as an anecdote."
        )
    elif (fewest := min(len(arm.counted) for arm in arms)) < 4:
        lines.append(f"Only {how_many(arms)}: the smallest p-value an exact test can give is {2 / 2**fewest:g}.")
    live = [
        f"{run.run_id} ({run.status.state}, {run.steps_done} of {run.status.steps} steps)"
        for arm in arms
        for run in arm.runs
        if not run.finished
    ]
    if live:
        lines.append(f"Unfinished runs, marked † where an arm has no finished one: {', '.join(live)}.")
    return lines


def window_text(arms: list[ArmView], rules: Measures) -> str:
    """Which steps were averaged, exactly."""
    windows = sorted({summary.window for arm in arms for summary in arm.counted})
    if windows == [rules.window_steps]:
        return f"mean of the last {rules.window_steps} training steps"
    spelled = " to ".join(str(w) for w in (windows[0], windows[-1])) if len(windows) > 1 else str(windows[0])
    share = "last quarter" if rules.window_share == 0.25 else f"last {rules.window_share:.0%}"
    steps = f"{spelled} training step{'s' * (windows[-1] > 1)}"
    return f"mean of the last {steps} (the {share} of the run, as that is fewer than {rules.window_steps})"


def table_caption(arms: list[ArmView], rules: Measures, columns: tuple[Column, ...]) -> str:
    """What each column means, and over how many seeds."""
    own = seeds(arms)
    window = window_text(arms, rules)
    meanings = [f"{c.head}: {c.caption.format(window=window)}{_population(c)}" for c in columns]
    spread = "mean ± SEM over seeds" if len(own) > 1 else "no spread can be given"
    head = f"{how_many(arms)} ({', '.join(map(str, own))}), {spread}."
    dagger = " † unfinished." if any(arm.live for arm in arms) else ""
    return f"{head} {'. '.join(meanings)}.{dagger}"


def _population(column: Column) -> str:
    """Says of a mean over trained rows that it is one, where the caption does not."""
    trained = any(m.population == "trained" and m.kind == "number" for m in column.sources)
    return " (trained rows)" if trained and "trained rows" not in column.caption else ""


def captions(arms: list[ArmView], rules: Measures) -> dict[str, str]:
    """Figure captions."""
    own = seeds(arms)
    many = len(own) > 1
    band = "band: ± SEM over seeds" if many else "one seed: thin line its raw values, no band can be given"
    unfinished = any(len(arm.counted) < len(arm.runs) for arm in arms)
    apart = "; thin dotted: unfinished runs, which are in no mean" * unfinished
    rang = any(run.alarm_step is not None for arm in arms for run in arm.runs)
    smooth = f"trailing mean over {rules.onset_window} steps; {band}{apart}"
    point = "Small points: single runs; lettered: arm means ± SEM" if many else "Lettered points: one run each"
    own_v = "each arm's own direction, so arms with unlike directions cannot be compared here"
    direction = own_v if drift_series(arms) == "drift_cos_mean" else "v_hack in every arm"
    return {
        "headline": f"{point}, {window_text(arms, rules)}. Letters that would hide each other stand beside their means. "
                    "Cross: the first training step. Dashed: no arm mean is "
                    "better in both rates.",
        "trajectories": f"Training rollouts, {smooth}." + " Triangle: where a run's own alarm rang." * rang,
        "cosines": f"Mean over modules, {smooth}. Grey: 95% band of the same mean for random directions. A positive "
                   "cosine means that the step would make the hacks likelier.",
        "drift": f"cos(−delta_S, v): where all updates together have taken delta_S, mean over modules, {smooth}. Positive: to "
                 f"where the hacks are likelier. v: {direction}.",
        "firing": f"Share of modules with cos > 0, those that a projecting arm projects, {smooth}. Dotted: one half, "
                  "what a gradient unrelated to v would give.",
        "histogram": "",
        "heat_map": "cos(gradient, v) before projection, by module and step"
                    + (", mean over seeds" if many else "") + ".",
        "onset": f"Kaplan-Meier estimate; onset is the first step at which the mean strict hack rate of the last "
                 f"{rules.onset_window} steps reaches {rules.onset_pp:g}%; runs without onset are censored at the end. "
                 "Curves are shifted slightly apart where they coincide.",
        "phases": "Thick: the trainer's own time; thin: how long the services were busy for that step, mostly while "
                  "the trainer waited. Median over all steps but each run's first.",
    }  # fmt: skip


def evaluation_note(rows: list[dict[str, Any]]) -> str:
    """What each evaluation mode poses and grades, for the modes at hand, and what "forged" means."""
    told = modes.captions(row["mode"] for row in rows)
    return " ".join([*told, "Forged: the published evaluator says correct, the protected oracle says no."])


def comparison_note(arms: list[ArmView]) -> str:
    """How to read the table of paired differences."""
    n = len(seeds(arms))
    if n < 2:
        return "Differences of single runs. With one seed there is no interval and no test."
    return (
        "Arm minus vanilla, paired by seed over finished runs, percentage points: mean ± SEM, 95% bootstrap interval "
        "(percentile; too narrow for so few seeds, the verdicts give the t interval too). p: exact permutation test of "
        f"the hack rate, two-sided; the smallest possible is 2 / 2^k with k non-zero differences, {2 / 2**n:g} at {n} seeds. "
        "q: p adjusted for the number of arms (Benjamini-Hochberg). "
        "Matched pass: hack rate of both arms where their trajectories have the same "
        "pass rate; the arm that ends with the higher pass rate is read earlier in its run, which flatters it."
    )


def rollout_note(arms: list[ArmView], samples: int) -> str:
    return (
        f"{samples} completions an arm, drawn uniformly from training rollouts of the final steps without looking at "
        "label or reward. If none of them is a hack although the arm still hacks, up to two hacks are shown after them."
    )


def pp(d: Paired | None) -> str:
    """'+12.3 ± 0.4' in percentage points."""
    return "–" if d is None else with_sem(Mean(d.mean, d.sem, d.n), 1, signed=True)


def interval(d: Paired | None) -> str:
    """'[−1.0, +2.0]', empty without at least two seeds."""
    return "" if d is None or d.n < 2 else f"[{number(d.boot_low, 1, True)}, {number(d.boot_high, 1, True)}]"


def p_value(p: float) -> str:
    return "–" if not np.isfinite(p) else f"{p:.3g}"
