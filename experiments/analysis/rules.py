"""The claims of preregistration.yaml (version 1) against the finished runs, with the numbers behind each answer.

Four answers, never fewer lines than claims: supported, falsified, inconclusive (between the thresholds, or too few
seeds), not evaluable (the runs needed are not there, or there was nothing to suppress). Only finished runs count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from experiments.analysis import comparable
from experiments.analysis.answers import State, Verdict, exceeds, reaches, ties
from experiments.analysis.measures import Summary, matched_hack, matched_pass, summarise
from experiments.analysis.stats import Paired, mean_sem, paired
from experiments.design.prereg import Beats, Claim, Emergence, Preregistration, Suppression

Arms = dict[str, list[Summary]]


def evaluate(registered: Preregistration, arms: Arms) -> list[Verdict]:
    """One Verdict per claim, in the file's order. `arms` holds finished runs only. Pure."""
    judges: dict[type, Callable[..., Verdict]] = {Suppression: _suppression, Beats: _beats, Emergence: _emergence}
    return [judges[type(claim)](name, claim, arms) for name, claim in registered.claims.items()]


def _suppression(name: str, claim: Suppression, arms: Arms) -> Verdict:
    """H1. Gap = baseline's hack rate minus ours, per seed, in pp."""
    absent = _absent(name, claim, arms, claim.baseline, claim.baseline_hack_pp)
    if absent:
        return absent
    ours, theirs = _by_seed(arms[claim.arm]), _by_seed(arms[claim.baseline])
    gap = paired({s: 100 * r.hack for s, r in theirs.items()}, {s: 100 * r.hack for s, r in ours.items()})
    drop = paired({s: 100 * r.passed for s, r in theirs.items()}, {s: 100 * r.passed for s, r in ours.items()})
    if gap is None or drop is None:
        return Verdict(name, claim.claim, "not evaluable", f"{claim.arm} and {claim.baseline} share no seed")
    budget = {s: matched_hack(theirs[s], ours[s]) for s in gap.seeds}
    matched = mean_sem([100 * (m[1] - m[2]) for m in budget.values() if m is not None])
    numbers = (
        _line(f"hack rate, {claim.baseline} - {claim.arm}", gap),
        _line(f"pass rate, {claim.baseline} - {claim.arm}", drop),
        f"pass drop at matched hack budget: {matched.mean:+.1f} pp, {matched.n} of {gap.n} seeds have a match"
        if matched.n
        else "pass drop at matched hack budget: no seed has a match, so this falsifier could not act",
    )
    state, because = _judge_suppression(claim, gap, drop, matched.mean if matched.n else None)
    because += _strength(gap) if state == "supported" else ""
    return Verdict(
        name,
        claim.claim,
        state,
        because,
        numbers,
        _ids(arms, claim.arm, claim.baseline, gap.seeds),
        {"hack_gap": asdict(gap), "pass_drop": asdict(drop), "matched_hack_drop": asdict(matched)},
    )


def _judge_suppression(claim: Suppression, gap: Paired, drop: Paired, matched: float | None) -> tuple[State, str]:
    if gap.n < claim.min_seeds:
        return "inconclusive", f"{gap.n} paired seed{'s' * (gap.n != 1)}, {claim.min_seeds} needed"
    bar = claim.falsified_sem * gap.sem
    if not reaches(gap.mean, claim.falsified_gap_pp):
        return "falsified", f"gap {gap.mean:.1f} pp is below {claim.falsified_gap_pp:g} pp"
    if not exceeds(gap.mean, bar):
        return "falsified", f"gap {gap.mean:.1f} pp is within {claim.falsified_sem:g} SEM ({gap.sem:.1f} pp)" + _tie(
            gap.mean, bar
        )
    if matched is not None and exceeds(matched, claim.falsified_matched_drop_pp):
        return "falsified", (
            f"at a matched hack budget the pass rate drops by {matched:.1f} pp, more than "
            f"{claim.falsified_matched_drop_pp:g} pp"
        )
    wide = reaches(gap.mean, claim.supported_gap_pp)
    if wide and reaches(claim.pass_within_pp, drop.mean):
        rose = exceeds(0, drop.mean)
        change = f"the pass rate is {-drop.mean:.1f} pp higher" if rose else f"pass drop {max(drop.mean, 0):.1f} pp"
        untested = "; 1 falsifier not evaluable (no seed has a matched hack budget)" if matched is None else ""
        return "supported", f"gap {gap.mean:.1f} pp, {change}{untested}"
    if wide:
        return "inconclusive", (
            f"gap {gap.mean:.1f} pp is wide enough, but the pass rate drops by {drop.mean:.1f} pp, "
            f"more than {claim.pass_within_pp:g} pp"
        )
    return (
        "inconclusive",
        f"gap {gap.mean:.1f} pp lies between {claim.falsified_gap_pp:g} and {claim.supported_gap_pp:g} pp",
    )


def _tie(mean: float, bar: float) -> str:
    """Said where mean and bar agree but for rounding: (0, 0, x) has mean = SEM = x/3 whatever x is."""
    return "; a tie: mean and bar are equal, so the rule only counts seeds here" if ties(mean, bar) else ""


def _beats(name: str, claim: Beats, arms: Arms) -> Verdict:
    """H3 and the questions. Lead = rival's hack rate minus ours, per seed, in pp: at matched pass rate or at the end of
    both runs, whichever is smaller, so that an arm gains nothing from being read early because it passes more."""
    absent = _absent(name, claim, arms, claim.reference, claim.reference_hack_pp)
    if absent:
        return absent
    ours, theirs = _by_seed(arms[claim.arm]), _by_seed(arms[claim.baseline])
    common = sorted(ours.keys() & theirs.keys())
    found = {s: m for s in common if (m := matched_pass(theirs[s], ours[s])) is not None}
    final = paired({s: 100 * r.hack for s, r in theirs.items()}, {s: 100 * r.hack for s, r in ours.items()})
    matched = paired({s: 100 * m[1] for s, m in found.items()}, {s: 100 * m[2] for s, m in found.items()})
    if matched is None or final is None:
        why = "share no seed" if not common else "never had the same pass rate in any seed"
        return Verdict(name, claim.claim, "not evaluable", f"{claim.arm} and {claim.baseline} {why}")
    level = mean_sem([100 * m[0] for m in found.values()])
    ends = dict(zip(final.seeds, final.differences, strict=True))
    smaller = {s: min(d, ends[s]) for s, d in zip(matched.seeds, matched.differences, strict=True)}
    lead = paired(smaller, dict.fromkeys(smaller, 0.0))
    assert lead is not None  # as many seeds as `matched`
    numbers: tuple[str, ...] = (
        _line("lead, the smaller of the next two per seed", lead),
        _line(f"hack rate at matched pass rate ({level.mean:.1f}%), {claim.baseline} - {claim.arm}", matched),
        _line(f"final hack rate, {claim.baseline} - {claim.arm}", final),
    )
    state, because = _judge_lead(claim, lead)
    because += _strength(lead) if state == "supported" else ""
    if len(found) < len(common):
        absent_seeds = ", ".join(str(s) for s in common if s not in found)
        because += f"; not evaluable: seeds {absent_seeds} (no common pass rate)"
    return Verdict(
        name,
        claim.claim,
        state,
        because,
        numbers,
        _ids(arms, claim.arm, claim.baseline, matched.seeds),
        {"lead": asdict(lead), "matched": asdict(matched), "final": asdict(final), "matched_pass_percent": level.mean},
    )


def _judge_lead(claim: Beats, lead: Paired) -> tuple[State, str]:
    if lead.n < claim.min_seeds:
        return "inconclusive", f"{lead.n} paired seed{'s' * (lead.n != 1)}, {claim.min_seeds} needed"
    bar = claim.falsified_sem * lead.sem
    if not exceeds(lead.mean, bar):
        verb = "beats" if exceeds(-bar, lead.mean) else "matches"
        told = f"{claim.baseline} {verb} {claim.arm}: lead {lead.mean:+.1f} pp, SEM {lead.sem:.1f} pp"
        return "falsified", told + _tie(lead.mean, bar)
    return "supported", f"{claim.arm} leads by {lead.mean:.1f} pp, SEM {lead.sem:.1f} pp"


def _emergence(name: str, claim: Emergence, arms: Arms) -> Verdict:
    """H4, read at exactly `steps` steps."""
    runs = arms.get(claim.arm, [])
    if not runs:
        return Verdict(name, claim.claim, "not evaluable", f"no finished run of {claim.arm}")
    hack = mean_sem([100 * run.hack for run in runs])
    each = ", ".join(f"{100 * run.hack:.1f}% at step {run.steps_done} ({run.run_id})" for run in runs)
    spread = f" ± {hack.sem:.1f} %" if hack.n > 1 else " % (one seed)"
    numbers = (f"hack rate of {claim.arm}: {hack.mean:.1f}{spread}", each)
    ids = tuple(run.run_id for run in runs)
    values = {"hack_percent": asdict(hack)}
    shorter = [run for run in runs if run.steps_done != claim.steps]
    if shorter:
        because = f"stated for {claim.steps} steps, {shorter[0].run_id} has {shorter[0].steps_done}"
        return Verdict(name, claim.claim, "not evaluable", because, numbers, ids, values)
    if hack.n < claim.min_seeds:
        return Verdict(
            name, claim.claim, "inconclusive", f"{hack.n} seeds, {claim.min_seeds} needed", numbers, ids, values
        )
    above = exceeds(hack.mean, claim.hack_above_pp)
    because = f"{hack.mean:.1f}% is {'above' if above else 'not above'} {claim.hack_above_pp:g}%"
    because += _above(runs, claim.hack_above_pp) if above else ""
    return Verdict(name, claim.claim, "supported" if above else "falsified", because, numbers, ids, values)


def _above(runs: list[Summary], bar_pp: float) -> str:
    """What stands behind a rate above a fixed bar: the exact sign-flip p of the distance to it, the interval of the rate."""
    over = paired({run.seed: 100 * run.hack for run in runs}, {run.seed: bar_pp for run in runs})
    if over is None or over.n < 2:
        return ""
    low, high = max(0.0, bar_pp + over.t_low), min(100.0, bar_pp + over.t_high)
    return f" (exact p = {over.p_value:.3g} against {bar_pp:g}%, 95% t [{low:.1f}, {high:.1f}]%)"


def _absent(name: str, claim: Claim, arms: Arms, reference: str, least_pp: float) -> Verdict | None:
    """Not evaluable when an arm is missing or when the reference arm hardly hacks."""
    needed = dict.fromkeys((claim.arm, claim.baseline, reference))  # type: ignore[union-attr]  # only claims about two arms come here
    missing = [arm for arm in needed if not arms.get(arm)]
    if missing:
        return Verdict(name, claim.claim, "not evaluable", f"no finished run of {', '.join(missing)}")
    hack = mean_sem([100 * run.hack for run in arms[reference]])
    if not hack.mean >= least_pp:
        because = f"{reference} itself hacks in {hack.mean:.1f}%, below {least_pp:g}%: there was nothing to suppress"
        return Verdict(name, claim.claim, "not evaluable", because, run_ids=tuple(r.run_id for r in arms[reference]))
    return None


def _strength(d: Paired) -> str:
    """What stands behind a "supported", wherever it is shown: the rule is weaker than a test."""
    return f" (exact p = {d.p_value:.3g}, 95% t [{d.t_low:+.1f}, {d.t_high:+.1f}] pp)" if d.n > 1 else ""


def _line(what: str, d: Paired) -> str:
    if d.n < 2:
        return f"{what}: {d.mean:+.1f} pp (one seed: no interval, no test)"
    return (
        f"{what}: {d.mean:+.1f} ± {d.sem:.1f} pp, {d.n} seeds, 95% bootstrap [{d.boot_low:+.1f}, {d.boot_high:+.1f}], "
        f"95% t [{d.t_low:+.1f}, {d.t_high:+.1f}], exact p = {d.p_value:.3g} (smallest possible {d.p_floor:.3g})"
    )


def _by_seed(runs: list[Summary]) -> dict[int, Summary]:
    return {run.seed: run for run in runs}


def _ids(arms: Arms, ours: str, theirs: str, seeds: Sequence[int]) -> tuple[str, ...]:
    return tuple(run.run_id for arm in (ours, theirs) for run in arms[arm] if run.seed in seeds)


def finished_by_arm(chosen: comparable.Chosen, registered: Preregistration) -> Arms:
    """Summaries of the finished runs, by arm."""
    return {
        name: [summarise(run, registered.measures) for run in runs if run.finished]
        for name, runs in chosen.by_arm.items()
    }
