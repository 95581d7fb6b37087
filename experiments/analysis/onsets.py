"""When runs begin to hack: an exact log-rank test of an arm against vanilla, by exchange within seeds.

    U = Σ over onset times t of  d_ours(t) − d(t)·n_ours(t)/n(t)        d: onsets at t, n: runs at risk just before t

U < 0: ours begin later. A run that never reaches the threshold is censored at its last step: it is at risk until then and
drops out of nothing else. Under the null the two arms of a seed may be exchanged, so the distribution of U is that over
all 2^k exchanges of k seeds; two-sided p = share with |U'| >= |U|. The smallest p is 2 / 2^k.
Source: Mantel, Cancer Chemother. Rep. 50 (1966) 163, with the exchange in place of his asymptotic variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from experiments.analysis.measures import Summary

EXACT_UP_TO = 16  # seeds; 2^16 exchanges
ROUNDING = 1e-9
Time = tuple[int, bool]
"""(step, begun): the onset, or the last step of a run without one."""


@dataclass(frozen=True)
class Onsets:
    """Onsets of an arm against a baseline over common seeds; None: never. NaN p without two common seeds or an onset."""

    arm: str
    baseline: str
    ours: tuple[int | None, ...]
    theirs: tuple[int | None, ...]
    statistic: float
    p_value: float
    p_floor: float

    def line(self) -> str:
        """'Onset of hacking, projected: never, never; vanilla: 11, 14; exact log-rank ...'."""
        told = f"Onset of hacking, {self.arm}: {_steps(self.ours)}; {self.baseline}: {_steps(self.theirs)}"
        if self.p_value != self.p_value:
            return f"{told}; no test (needs two common seeds and an onset)"
        side = "later" if self.statistic < 0 else "earlier"
        return (
            f"{told}; log-rank, {self.arm} {side}, exact two-sided p {self.p_value:.3g} (smallest {self.p_floor:.3g})"
        )


def time_of(run: Summary) -> Time:
    """The onset of a run, or where it is censored."""
    return (max(0, run.steps_done - 1), False) if run.onset is None else (run.onset, True)


def statistic(ours: Sequence[Time], theirs: Sequence[Time]) -> float:
    """U of the module's docstring."""
    total = 0.0
    for t in sorted({step for step, begun in (*ours, *theirs) if begun}):
        risk_ours, risk = sum(step >= t for step, _ in ours), sum(step >= t for step, _ in (*ours, *theirs))
        at_ours, at = sum(one == (t, True) for one in ours), sum(one == (t, True) for one in (*ours, *theirs))
        total += at_ours - at * risk_ours / risk
    return total


def exchange_p(pairs: Sequence[tuple[Time, Time]]) -> float:
    """Two-sided exact p of U over all exchanges within the pairs (ours, theirs)."""
    observed = abs(statistic(*_sides(pairs, [False] * len(pairs))))
    found = [abs(statistic(*_sides(pairs, swapped))) for swapped in product((False, True), repeat=len(pairs))]
    return sum(value >= observed - ROUNDING for value in found) / len(found)


def compare(arm: str, ours: Mapping[int, Summary], baseline: str, theirs: Mapping[int, Summary]) -> Onsets:
    """The test over the seeds that both have (the first 16 of them)."""
    seeds = sorted(ours.keys() & theirs.keys())[:EXACT_UP_TO]
    pairs = [(time_of(ours[seed]), time_of(theirs[seed])) for seed in seeds]
    mine, other = (tuple(side[seed].onset for seed in seeds) for side in (ours, theirs))
    nan = float("nan")
    testable = len(pairs) > 1 and any(begun for pair in pairs for _, begun in pair)
    return Onsets(
        arm, baseline, mine, other,
        statistic(*_sides(pairs, [False] * len(pairs))) if testable else nan,
        exchange_p(pairs) if testable else nan,
        2 / 2 ** sum(a != b for a, b in pairs) if testable and any(a != b for a, b in pairs) else 1.0,
    )  # fmt: skip


def _sides(pairs: Sequence[tuple[Time, Time]], swapped: Sequence[bool]) -> tuple[list[Time], list[Time]]:
    turned = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
    return [a for a, _ in turned], [b for _, b in turned]


def _steps(onsets: Sequence[int | None]) -> str:
    return ", ".join("never" if onset is None else str(onset) for onset in onsets) or "no common seed"
