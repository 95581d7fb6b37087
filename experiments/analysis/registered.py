"""Claims of a version 2 registration against the runs of its design: counts of outcome classes and exact tests.

Nothing is judged before every registered run of the arms concerned has ended (no look at a part of a batch). A run that
is hacking, collapsed or safe is so by run_outcomes.py; a failed run counts as collapsed where the design says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import isnan
from typing import Any

import numpy as np
from scipy import stats

from experiments.analysis import exact
from experiments.analysis.answers import State, Verdict, exceeds
from experiments.analysis.comparable import Chosen
from experiments.analysis.measures import Summary
from experiments.analysis.run_files import Run
from experiments.analysis.run_outcomes import Outcome, classify, contrast
from experiments.design.registration import (
    Capability,
    Design,
    DoseTrend,
    OutcomeCount,
    Registration,
    SafeContrast,
    SafeMargin,
    named,
)

Arms = dict[str, list[Summary]]
Classes = dict[str, dict[int, Outcome]]


def evaluate(registration: Registration, arms: Arms) -> list[Verdict]:
    """One Verdict per claim, in the file's order. `arms` holds the runs at hand, finished or not. Pure.

    The secondary tests are adjusted by Holm over all that were registered.
    """
    design = registration.design
    if design is None:
        return []
    classes = classes_of(registration, arms)
    judges: dict[type, Callable[..., Verdict]] = {
        SafeContrast: _contrast,
        SafeMargin: _margin,
        DoseTrend: _trend,
        OutcomeCount: _count,
        Capability: partial(_capability, arms),
    }
    found = []
    for name, claim in registration.claims.items():
        members = [member for arm in named(claim) for member in design.members(arm)]
        pending = [line for arm in members for line in _pending(arm, design, arms, classes)]
        if pending:
            found.append(Verdict(name, claim.claim, "not evaluable", "; ".join(pending)))
        else:
            verdict = judges[type(claim)](name, claim, registration, classes)
            found.append(replace(verdict, run_ids=_ids(arms, classes, members)))
    return _corrected(registration, found)


def unfinished(names: Iterable[str], by_name: Mapping[str, Sequence[Run]], design: Design) -> list[str]:
    """A line for each of `names` whose registered runs have not all ended: nothing of it is shown before."""
    lines = []
    for name in names:
        ended = {run.seed for run in by_name.get(name, ()) if run.finished or run.status.state == "failed"}
        missing = [seed for seed in design.arms[name] if seed not in ended]
        if missing:
            told = f"{len(design.arms[name]) - len(missing)} of {len(design.arms[name])} registered runs ended"
            lines.append(f"{name}: {told}, missing seeds {', '.join(map(str, missing))}")
    return lines


def ended(chosen: Chosen, design: Design | None) -> Chosen:
    """The arms and cells whose registered runs have all ended; without a design all of them."""
    if design is None:
        return chosen
    kept = {name: own for name, own in chosen.by_arm.items() if not unfinished([name], chosen.by_arm, design)}
    return replace(chosen, by_arm=kept)


def classes_of(registration: Registration, arms: Arms) -> Classes:
    """{arm: {seed: class}} of the registered runs that have ended; of a pool {number of the run: class}."""
    design = registration.design
    assert design is not None
    classes: Classes = {}
    for arm, seeds in design.arms.items():
        own: dict[int, Outcome] = {}
        for run in arms.get(arm, []):
            if run.seed in seeds and run.finished and run.steps_done == design.steps:
                own[run.seed] = classify(run, registration.outcomes)
            elif run.seed in seeds and run.state == "failed" and design.failed_counts_as_collapsed:
                own[run.seed] = "collapsed"
        classes[arm] = own
    # below 0, for these are no seeds: nothing in a pool may be taken for a pair
    number = {run: -1 - i for i, run in enumerate((arm, seed) for arm, seeds in design.arms.items() for seed in seeds)}
    for pool, members in design.pools.items():
        classes[pool] = {number[arm, seed]: found for arm in members for seed, found in classes[arm].items()}
    return classes


def _pending(arm: str, design: Design, arms: Arms, classes: Classes) -> list[str]:
    """Why the arm cannot be judged yet, one line at most of each kind."""
    lines = []
    seeds = design.arms[arm]
    long = [run for run in arms.get(arm, []) if run.seed in seeds and run.finished and run.steps_done != design.steps]
    if long:
        lines.append(f"{long[0].run_id} has {long[0].steps_done} steps, registered are {design.steps}")
    missing = [seed for seed in seeds if seed not in classes[arm]]
    if missing and not long:
        told = ", ".join(map(str, missing))
        lines.append(f"{arm}: {len(seeds) - len(missing)} of {len(seeds)} registered runs ended, missing seeds {told}")
    unknown = [str(seed) for seed, found in classes[arm].items() if found == "unknown"]
    if unknown:
        lines.append(f"{arm}: not evaluable: seeds {', '.join(unknown)} (hack, bare pass or truncation not measured)")
    return lines


def _contrast(name: str, claim: SafeContrast, registration: Registration, classes: Classes) -> Verdict:
    """With the p of the claim's own test in values["p"], uncorrected; `_corrected` settles the state."""
    ours, theirs = classes[claim.arm], classes[claim.baseline]
    c = contrast(claim.arm, ours, claim.baseline, theirs)
    low, high = exact.clopper_pearson(c.safe, c.n)
    p = {"mcnemar": c.mcnemar, "fisher": c.fisher, "boschloo": c.boschloo}[claim.test]
    numbers = (c.line(), f"P(safe | {claim.arm}) 95% [{low:.2f}, {high:.2f}]")
    hacking = sum(found == "hacking" for found in theirs.values())
    values: dict[str, Any] = {**asdict(c), "p": p, "safe_low": low, "safe_high": high}
    if hacking < claim.baseline_hacking_at_least:
        because = (
            f"{claim.baseline} hacks in {hacking} of {len(theirs)} runs, fewer than {claim.baseline_hacking_at_least}: "
            "there was nothing to suppress"
        )
        return Verdict(name, claim.claim, "not evaluable", because, numbers, values=values)
    lead = c.safe - c.baseline_safe
    if lead <= claim.falsified_lead_at_most:
        because = f"{lead:+d} safe runs against {claim.baseline}, at most {claim.falsified_lead_at_most} falsify"
        return Verdict(name, claim.claim, "falsified", because, numbers, values=values)
    return Verdict(name, claim.claim, "inconclusive", "", numbers, values=values)


def _corrected(registration: Registration, found: list[Verdict]) -> list[Verdict]:
    """Supported or inconclusive for the contrasts that are not falsified, p corrected over the whole family.

    The family is what was registered. A falsified claim stays in it and one without runs yet counts with p = 1, since a
    family that shrinks with the results would make the others' correction too mild.
    """
    secondary = [v for v in found if _level(registration.claims[v.name]) == "secondary"]
    corrected = exact.holm([v.values.get("p", 1.0) for v in secondary])
    adjusted = {v.name: p for v, p in zip(secondary, corrected, strict=True)}
    return [_settled(registration, v, adjusted) for v in found]


def _level(claim: object) -> str | None:
    if isinstance(claim, DoseTrend):
        return "secondary"
    return claim.level if isinstance(claim, SafeContrast) else None


def _settled(registration: Registration, verdict: Verdict, adjusted: dict[str, float]) -> Verdict:
    claim = registration.claims[verdict.name]
    if "p" not in verdict.values:
        return verdict
    if isinstance(claim, DoseTrend):
        return _settled_trend(registration, verdict, adjusted[verdict.name])
    assert isinstance(claim, SafeContrast)  # no other kind has a p
    raw = verdict.values["p"]
    p, bar, what = raw, registration.alpha, f"{claim.test} p = {raw:.3g}"
    if verdict.name in adjusted:
        p, bar = adjusted[verdict.name], registration.family_alpha
        what += f", Holm {p:.3g}"
    values = {**verdict.values, "p_adjusted": p}
    if verdict.because:
        return replace(verdict, because=f"{verdict.because} ({what})", values=values)
    safe, n = verdict.values["safe"], verdict.values["n"]
    bounds = f"95% [{verdict.values['safe_low']:.2f}, {verdict.values['safe_high']:.2f}]"
    enough = safe >= claim.supported_safe_at_least
    small = p < bar if verdict.name not in adjusted else p <= bar
    because = f"{claim.arm} safe in {safe} of {n} ({bounds}), {what}"
    if enough and small:
        return replace(verdict, state="supported", because=because, values=values)
    lacks = [f"needs {claim.supported_safe_at_least} safe"] * (not enough) + [f"p is not below {bar:g}"] * (not small)
    return replace(verdict, because=f"{because}; {' and '.join(lacks)}", values=values)


def _settled_trend(registration: Registration, verdict: Verdict, adjusted: float) -> Verdict:
    because = f"{verdict.because}; exact trend p = {verdict.values['p']:.3g}, Holm {adjusted:.3g}"
    values = {**verdict.values, "p_adjusted": adjusted}
    if verdict.state == "falsified":
        return replace(verdict, because=because, values=values)
    state: State = "supported" if adjusted <= registration.family_alpha else "inconclusive"
    return replace(verdict, state=state, because=because, values=values)


def _trend(name: str, claim: DoseTrend, registration: Registration, classes: Classes) -> Verdict:
    """With its p in values["p"], uncorrected; `_corrected` settles the state."""
    safe = {arm: {seed: found == "safe" for seed, found in classes[arm].items()} for arm in claim.ladder}
    rows = [[safe[arm][seed] for arm in claim.ladder] for seed in sorted(safe[claim.ladder[0]])]
    told = ", ".join(_share(arm, sum(safe[arm].values()), len(safe[arm])) for arm in claim.ladder)
    first, last = (sum(safe[arm].values()) for arm in (claim.ladder[0], claim.ladder[-1]))
    state: State = "falsified" if last <= first else "inconclusive"
    values = {"p": exact.trend(rows), "safe": [sum(safe[arm].values()) for arm in claim.ladder]}
    return Verdict(name, claim.claim, state, f"safe: {told}", values=values)


def _share(arm: str, k: int, n: int) -> str:
    low, high = exact.clopper_pearson(k, n)
    return f"{arm} {k} of {n} [{low:.2f}, {high:.2f}]"


def _margin(name: str, claim: SafeMargin, registration: Registration, classes: Classes) -> Verdict:
    c = contrast(claim.arm, classes[claim.arm], claim.baseline, classes[claim.baseline])
    lead = c.safe - c.baseline_safe
    state: State = "supported" if lead >= claim.supported_lead_at_least else "inconclusive"
    if lead <= claim.falsified_lead_at_most:
        state = "falsified"
    because = (
        f"{lead:+d} safe runs against {claim.baseline}; at least {claim.supported_lead_at_least:+d} support, at most "
        f"{claim.falsified_lead_at_most:+d} falsify (safe: {_share(claim.arm, c.safe, c.n)}, "
        f"{_share(claim.baseline, c.baseline_safe, c.baseline_n)}; one-sided McNemar p = {c.mcnemar:.3g})"
    )
    return Verdict(name, claim.claim, state, because, (c.line(),), values={**asdict(c), "lead": lead})


def _count(name: str, claim: OutcomeCount, registration: Registration, classes: Classes) -> Verdict:
    own = classes[claim.arm]
    k, n = sum(found == claim.outcome for found in own.values()), len(own)
    low, high = exact.clopper_pearson(k, n)
    because = f"{k} of {n} runs of {claim.arm} are {claim.outcome} (95% [{low:.2f}, {high:.2f}])"
    values = {"count": k, "n": n, "low": low, "high": high}
    if k >= claim.supported_at_least:
        return Verdict(name, claim.claim, "supported", because, values=values)
    if k <= claim.falsified_at_most:
        return Verdict(name, claim.claim, "falsified", because, values=values)
    because += f", between {claim.falsified_at_most} and {claim.supported_at_least}"
    return Verdict(name, claim.claim, "inconclusive", because, values=values)


def _capability(arms: Arms, name: str, claim: Capability, registration: Registration, classes: Classes) -> Verdict:
    """Bare held-out pass at the end, arm - baseline, pp; unpaired Welch interval. A run without it blocks the answer."""
    seeds = registration.design.arms if registration.design else {}
    ends = {
        arm: [100 * run.bare_end for run in arms.get(arm, []) if run.seed in seeds[arm]]
        for arm in (claim.arm, claim.baseline)
    }
    for arm, values in ends.items():
        if len(values) < 2 or any(isnan(value) for value in values):
            because = f"{arm} lacks a last bare evaluation in some run, or has fewer than two runs"
            return Verdict(name, claim.claim, "not evaluable", because)
    ours, theirs = ends[claim.arm], ends[claim.baseline]
    mean = float(np.mean(ours) - np.mean(theirs))
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        low = high = mean
        p = float(mean <= -claim.margin_pp)
    else:
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(claim.confidence)
        low, high = float(interval.low), float(interval.high)
        raised = np.add(ours, claim.margin_pp)
        p = float(stats.ttest_ind(raised, theirs, equal_var=False, alternative="greater").pvalue)
    because = f"bare pass {mean:+.1f} pp against {claim.baseline}, {claim.confidence:.0%} [{low:+.1f}, {high:+.1f}] pp"
    because += f", one-sided Welch p = {p:.3g} of a loss of {claim.margin_pp:g} pp or more"
    state: State = "supported" if exceeds(low, -claim.margin_pp) else "inconclusive"
    if exceeds(-claim.margin_pp, high):
        state = "falsified"
    values_ = {"mean": mean, "low": low, "high": high, "margin_pp": claim.margin_pp, "p_loss": p}
    return Verdict(name, claim.claim, state, because, values=values_)


def _ids(arms: Arms, classes: Classes, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(run.run_id for name in names for run in arms.get(name, []) if run.seed in classes[name])
