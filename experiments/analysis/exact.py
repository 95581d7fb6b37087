"""Exact tests and bounds for counts of runs. The unit is the run; an outcome is a category, never a mean.

    mcnemar          b = pairs where only ours is safe, c = pairs where only theirs is; one-sided
                     p = P(Bin(b + c, 1/2) >= b)                                     (scipy.stats.binomtest)
    fisher           one-sided, margins fixed, runs unpaired                         (scipy.stats.fisher_exact)
    boschloo         one-sided, unconditional, uniformly more powerful than Fisher   (scipy.stats.boschloo_exact)
    trend            Cochran-Armitage over ranks, T = Σ_seeds Σ_j j·safe[seed, j], doses exchanged within each seed,
                     one-sided p = P(T >= t), by convolution over the seeds
    page             L = Σ_seeds Σ_j j·rank[seed, j], ties share their mean rank, doses exchanged within each seed, one-sided
                     p = P(L >= l), by convolution over the seeds (E. B. Page, J. Am. Stat. Assoc. 58 (1963) 216)
    clopper_pearson  exact two-sided bounds of a proportion                          (scipy.stats.binomtest)
    holm             adjusted p_(i) = max over j <= i of (m - j + 1) p_(j), at most 1

Source: Holm, Scand. J. Statist. 6 (1979) 65; the others as scipy documents them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
from scipy import stats


def mcnemar(ours_only: int, theirs_only: int) -> float:
    """One-sided exact p of `ours_only` against `theirs_only` discordant pairs; 1.0 without a discordant pair."""
    pairs = ours_only + theirs_only
    return float(stats.binomtest(ours_only, pairs, 0.5, alternative="greater").pvalue) if pairs else 1.0


def fisher(ours: int, n_ours: int, theirs: int, n_theirs: int) -> float:
    """One-sided exact p that ours has no larger share than theirs; NaN when one side has no run."""
    if not n_ours or not n_theirs:
        return float("nan")
    return float(stats.fisher_exact([[ours, theirs], [n_ours - ours, n_theirs - theirs]], alternative="greater")[1])


def boschloo(ours: int, n_ours: int, theirs: int, n_theirs: int) -> float:
    """As `fisher`, with only the numbers of runs fixed; 1.0 when all runs of both sides agree."""
    if not n_ours or not n_theirs:
        return float("nan")
    if ours + theirs in (0, n_ours + n_theirs):
        return 1.0  # scipy answers NaN: the table has an empty row
    table = [[ours, theirs], [n_ours - ours, n_theirs - theirs]]
    return float(stats.boschloo_exact(table, alternative="greater").pvalue)


def trend(rows: Sequence[Sequence[bool]]) -> float:
    """One-sided exact p that `safe` does not rise with the dose.

    rows: one a seed, safe or not at each dose, lowest dose first. 1.0 when no seed's doses differ.
    """
    observed, distribution = 0, Counter({0: 1})
    for row in rows:
        observed += sum(rank for rank, safe in enumerate(row) if safe)
        distribution = _convolved(distribution, Counter(map(sum, combinations(range(len(row)), sum(row)))))
    return sum(times for t, times in distribution.items() if t >= observed) / distribution.total()


PAGE_DOSES = 7  # 5040 orders a seed


def page(rows: Sequence[Sequence[float]]) -> float:
    """One-sided exact p that a number does not rise with the dose.

    rows: one a seed, the number at each of at most seven doses, lowest dose first; finite. 1.0 when no seed's doses differ.

    Raises:
        ValueError: more than seven doses, or a value is not finite.
    """
    if any(len(row) > PAGE_DOSES or not np.isfinite(row).all() for row in rows):
        raise ValueError(f"page: at most {PAGE_DOSES} finite numbers a seed")
    observed, distribution = 0, Counter({0: 1})
    for row in rows:
        ranks = [round(2 * rank) for rank in stats.rankdata(row)]  # mean ranks are halves
        observed += sum(j * rank for j, rank in enumerate(ranks))
        own = Counter(sum(j * rank for j, rank in enumerate(order)) for order in permutations(ranks))
        distribution = _convolved(distribution, own)
    return sum(times for value, times in distribution.items() if value >= observed) / distribution.total()


def _convolved(a: Counter[int], b: Counter[int]) -> Counter[int]:
    """Distribution of the sum of two independent counts of cases."""
    mixed: Counter[int] = Counter()
    for x, times in a.items():
        for y, more in b.items():
            mixed[x + y] += times * more
    return mixed


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(lower, upper) bound of a proportion, fractions 0..1; (0, 1) without a run."""
    if not n:
        return 0.0, 1.0
    bounds = stats.binomtest(count, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(bounds.low), float(bounds.high)


def holm(p_values: list[float]) -> list[float]:
    """Holm-adjusted p-values in the order given; a NaN stays NaN and does not count."""
    adjusted = [float("nan")] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if np.isfinite(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
