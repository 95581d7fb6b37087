"""Statistics over seeds and over trajectories. Values in, values out; nothing here knows what an arm is.

    SEM             s / sqrt(n), s with n-1 in the denominator (scipy.stats.sem)
    paired          d_i = x_i - y_i per seed; mean, SEM, 95% bootstrap percentile interval (scipy.stats.bootstrap),
                    95% t interval, and the exact permutation p-value over all 2^n sign flips
                    (scipy.stats.permutation_test)
    matched         piecewise-linear trajectory (level_t, value_t), read at the last t where level_t = L
    survival        Kaplan-Meier (scipy.stats.ecdf of right-censored data)

With k non-zero differences the smallest two-sided p an exact test can give is 2 / 2^k: 0.0625 for five, 0.5 where only
two of three seeds differ (flipping the sign of a zero changes nothing). The bootstrap interval of so few values is too
narrow (it cannot look beyond the extremes); the t interval stands beside it for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
EXACT_UP_TO = 16  # seeds; 2^16 sign flips
ROUNDING = 1e-12  # relative; a smaller difference is what subtraction leaves of two equal rates


@dataclass(frozen=True)
class Mean:
    """mean ± sem over n values. sem is NaN when n < 2, mean NaN when n = 0."""

    mean: float
    sem: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Paired differences x - y over common seeds. Intervals and p are NaN when n < 2."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    sem: float
    boot_low: float
    boot_high: float
    t_low: float
    t_high: float
    p_value: float
    p_floor: float

    @property
    def n(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Survival:
    """Kaplan-Meier estimate: share of runs that have not begun to hack after `steps[i]`; starts at (0, 1)."""

    steps: np.ndarray
    share: np.ndarray


def mean_sem(values: list[float]) -> Mean:
    """Mean and SEM of the finite values."""
    kept = np.array([value for value in values if np.isfinite(value)])
    mean = float(kept.mean()) if len(kept) else float("nan")
    return Mean(mean, float(stats.sem(kept)) if len(kept) > 1 else float("nan"), len(kept))


def paired(x: dict[int, float], y: dict[int, float]) -> Paired | None:
    """x - y over the seeds that both have (finite values only); None when they share none."""
    seeds = tuple(sorted(s for s in x.keys() & y.keys() if np.isfinite(x[s]) and np.isfinite(y[s])))
    if not seeds:
        return None
    d = np.array([_difference(x[s], y[s]) for s in seeds])
    both = tuple(float(v) for v in d)
    if len(d) < 2:
        nan = float("nan")
        return Paired(seeds, both, float(d.mean()), nan, nan, nan, nan, nan, nan, 1.0)
    boot = stats.bootstrap(
        (d,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    sem = float(stats.sem(d))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(d) - 1)) * sem
    return Paired(
        seeds, both, float(d.mean()), sem, float(boot.low), float(boot.high),
        float(d.mean()) - half, float(d.mean()) + half, _permutation_p(d), min(1.0, 2.0 / 2 ** np.count_nonzero(d)),
    )  # fmt: skip


def _difference(x: float, y: float) -> float:
    return 0.0 if abs(x - y) <= ROUNDING * max(abs(x), abs(y)) else x - y


def _permutation_p(d: np.ndarray) -> float:
    """Two-sided exact p of the mean paired difference under exchange of the two arms within a seed."""
    result = stats.permutation_test(
        (d, np.zeros_like(d)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples", vectorized=True, alternative="two-sided",
        n_resamples=np.inf if len(d) <= EXACT_UP_TO else RESAMPLES, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def false_discovery(p_values: list[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values; NaN stays NaN and does not count."""
    p = np.array(p_values, dtype=float)
    adjusted, finite = p.copy(), np.isfinite(p)
    if finite.any():
        adjusted[finite] = stats.false_discovery_control(p[finite])
    return [float(value) for value in adjusted]


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """out[t] = mean of values[max(0, t-window+1) .. t], NaN left out; NaN where all are NaN."""
    out = np.full(len(values), np.nan)
    for t in range(len(values)):
        part = values[max(0, t - window + 1) : t + 1]
        part = part[np.isfinite(part)]
        if len(part):
            out[t] = part.mean()
    return out


def value_at_level(level: np.ndarray, value: np.ndarray, target: float) -> float | None:
    """`value` at the last time that the trajectory's `level` equals `target`, linear between steps; None if never.

    The last time, because the comparison is between the policies that training arrives at, not those it passes early.
    """
    for t in range(len(level) - 1, -1, -1):
        if np.isclose(level[t], target, rtol=0, atol=1e-12):
            return float(value[t])
        if t and (level[t - 1] - target) * (level[t] - target) < 0:
            share = (target - level[t - 1]) / (level[t] - level[t - 1])
            return float(value[t - 1] + share * (value[t] - value[t - 1]))
    return None


def onset_step(rates: np.ndarray, threshold: float, window: int) -> int | None:
    """First step whose trailing mean over a full `window` reaches `threshold`; None if none does."""
    smooth = trailing_mean(rates, window)
    for t in range(window - 1, len(rates)):
        if smooth[t] >= threshold - 1e-12:
            return t
    return None


def survival(onsets: list[int | None], last_steps: list[int]) -> Survival:
    """Kaplan-Meier over runs; a run without onset is censored at its last step."""
    times = [last if onset is None else onset for onset, last in zip(onsets, last_steps, strict=True)]
    censored = np.array([onset is None for onset in onsets])
    times_array = np.array(times, dtype=float)
    data = stats.CensoredData.right_censored(times_array, censored)
    curve = stats.ecdf(data).sf
    return Survival(np.concatenate([[0.0], curve.quantiles]), np.concatenate([[1.0], curve.probabilities]))


def pareto_front(gains: list[float], costs: list[float]) -> list[int]:
    """Indices not dominated by any other (gain no lower, cost no higher, one of them better), by rising gain."""
    points = list(zip(gains, costs, strict=True))
    front = [
        i
        for i, (gain, cost) in enumerate(points)
        if np.isfinite(gain)
        and np.isfinite(cost)
        and not any(g >= gain and c <= cost and (g > gain or c < cost) for g, c in points)
    ]
    return sorted(front, key=lambda i: points[i])
