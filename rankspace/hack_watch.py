"""An alarm before a run learns to hack, with a bound on false alarms that holds whenever one looks. No torch.

    x_t       a signal at step t (`SIGNALS`), signed so that up is towards the hack
    z_t     = (x_t − m_t) / s                       m_t: mean of clean runs at step t, s: their spread around it
    C_t     = max(0, C_{t−1} + z_t − a)             one-sided CUSUM (Page 1954), for a = 1/2 and a = 2, up or down or both
    S_t     = max over signals and a of C_t / q     q: largest C_t that clean runs reached
    b       = k-th smallest of max_t S_t over n clean runs,  k = ceil((1 − alpha)(n + 1))
    alarm     at the first t with S_t > b

    P(S_t > b for some t < horizon) <= 1 − k/(n + 1) <= alpha

The last line is split conformal prediction (Papadopoulos et al. 2002; Vovk, Gammerman & Shafer 2005; as an alarm: Laxhammar
& Falkman 2011) with a whole run as the unit: its score is the largest S_t. m, s and q come from one fifth of the clean
runs and b from the others, so that the score is fixed before the n runs and the new one are looked at.

Assumption, the only one: a clean run is exchangeable with the n clean runs: same model, data, settings and length, another
seed. Nothing is asked of the steps within a run: signals may be autocorrelated, trending and dependent on each other. A
test that bets on each step (an e-process) would need the conditional mean of a clean step, which AdamW's momentum and the
policy's own wandering put off zero for ten steps at a time. The rate is over the draw of the clean runs as well; given
those at hand it is Beta(n + 1 − k, k) distributed.

Two allowances, because a shift of s spreads is found soonest with a = s/2 where steps are independent, while an
autocorrelated clean signal wanders through a small allowance for ten steps at a time and only a large one tells it from
a hack. The maximum of both costs little of either, and the bound is on the maximum.

The one dial is alpha. n clean runs support no alpha below 1/(n + 1): 19 for 5 %, hence 23 clean runs with the fifth.
Beyond the horizon, the length of the shortest clean run, an alarm still comes, without a bound (`Alarm.bounded`).

Blind spot: a signal says nothing about what it does not measure. A cosine with v is zero for an update made orthogonal to
v, whatever it teaches; the rates are those of a detector.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import RankspaceError
from .watch_signals import DEFAULT, OWN, SIGNALS, Reader, Row, read_rows, require_signals

__all__ = ["Alarm", "CleanRuns", "HackWatch", "Scale", "calibrate", "clean_runs_needed", "read_rows", "replay"]

ALLOWANCES = (0.5, 2.0)
LEAST_SCALE_RUNS = 2
LEAST_BOUND = 1e-9  # of the ratio shown, where no clean run ever left zero
VERSION = 1


@dataclass(frozen=True)
class Scale:
    """What clean runs do in one signal: mean [horizon] and spread in its unit, largest CUSUM of each allowance (no unit)."""

    mean: tuple[float, ...]
    spread: float
    largest: tuple[float, ...]

    def z(self, x: float, step: int) -> float:
        """(x − mean of clean runs at that step) / spread; beyond the horizon against its last step."""
        return (x - self.mean[min(step, len(self.mean) - 1)]) / self.spread


@dataclass(frozen=True)
class CleanRuns:
    """What clean runs do: made by `calibrate`, kept as JSON beside the runs it is for.

    maxima: largest S_t of each of the n runs behind the bound, ascending. horizon: steps that the bound is good for.
    """

    scales: dict[str, Scale]
    maxima: tuple[float, ...]
    horizon: int

    def bound(self, false_alarm_rate: float) -> float:
        """b of the file's top. RankspaceError when the runs are too few for the rate, or it is not within (0, 1)."""
        n = len(self.maxima)
        if not 0 < false_alarm_rate < 1:
            raise RankspaceError(
                f"false_alarm_rate {false_alarm_rate}: give a share of clean runs, above 0 and below 1"
            )
        k = math.ceil((1 - false_alarm_rate) * (n + 1) - 1e-9)  # 0.95 · 20 is 19, also in binary
        if k > n:
            least = math.ceil(1 / false_alarm_rate - 1 - 1e-9)
            raise RankspaceError(
                f"false_alarm_rate {false_alarm_rate:g} needs {least} clean runs behind the bound, there are {n}: calibrate with"
                f" {clean_runs_needed(false_alarm_rate)}, or give a rate of at least {1 / (n + 1):.3g}"
            )
        return self.maxima[k - 1]

    def write(self, path: Path | str) -> None:
        """As JSON, floats exactly."""
        Path(path).write_text(json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path | str) -> CleanRuns:
        """A file that `write` made. RankspaceError naming it."""
        try:
            values = json.loads(Path(path).read_text())
            if values["version"] != VERSION:
                raise RankspaceError(f"{path}: version {values['version']}, this reads {VERSION}; calibrate again")
            scales = {n: Scale(tuple(s["mean"]), s["spread"], tuple(s["largest"])) for n, s in values["scales"].items()}
            require_signals(scales)
            return cls(scales, tuple(values["maxima"]), int(values["horizon"]))
        except OSError as error:
            raise RankspaceError(
                f"{path}: {error.strerror}; make it with `python -m experiments watch --calibrate`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RankspaceError(f"{path}: no file of clean runs ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class Alarm:
    """The evidence. The signal whose CUSUM went highest over what clean runs reach.

    step: of the row that rang it. since: step in which that CUSUM last left zero. statistic, bound: S_t and b. value,
    expected: the signal there and the mean of clean runs, in its unit. bounded: whether the step is within the horizon.
    """

    step: int
    signal: str
    statistic: float
    bound: float
    false_alarm_rate: float
    since: int
    value: float
    expected: float
    bounded: bool

    def __str__(self) -> str:
        much = "" if self.bounded else "; beyond the length of the clean runs, so without a bound on false alarms"
        return (
            f"alarm at step {self.step}: {self.signal} has left what clean runs do since step {self.since}, now"
            f" {self.value:.4g} where they have {self.expected:.4g}; statistic {self.statistic:.3g} > {self.bound:.3g}, passed by"
            f" at most {self.false_alarm_rate:.3g} of clean runs{much}"
        )


@dataclass
class _Cusum:
    """The CUSUMs of one signal, upwards and downwards for each allowance, and the step in which each last left zero."""

    high: list[float] = field(default_factory=lambda: [0.0] * (2 * len(ALLOWANCES)))
    since: list[int] = field(default_factory=lambda: [0] * (2 * len(ALLOWANCES)))

    def add(self, z: float, toward: int, step: int) -> None:
        for i in range(len(self.high)):
            sign = 1 if i % 2 == 0 else -1
            if toward in (0, sign):
                before = self.high[i]
                self.high[i] = max(0.0, before + sign * z - ALLOWANCES[i // 2])
                self.since[i] = step if before == 0.0 else self.since[i]

    def over(self, largest: Sequence[float]) -> tuple[float, int]:
        """(largest C / q, the step in which that CUSUM left zero)."""
        i = max(range(len(self.high)), key=lambda i: self.high[i] / largest[i // 2])
        return self.high[i] / largest[i // 2], self.since[i]


class HackWatch:
    """Fed one row a step, answers with an alarm once. See the top of this file.

        watch = HackWatch("clean.json", false_alarm_rate=0.05)
        if alarm := watch.step(row): print(alarm)

    Args:
        clean: what `calibrate` made of clean runs of the same setting, or the file of it.
        false_alarm_rate: the share of clean runs that may be taken for hacking; the only dial.

    `ratio` is S_t / b after the last step (above 1: alarm), `alarm` the first alarm. `state` and `restore` carry a watch
    over a restart.

    Raises:
        RankspaceError: too few clean runs for the rate, an unreadable file.
    """

    def __init__(self, clean: CleanRuns | Path | str, false_alarm_rate: float = 0.05):
        self.clean = clean if isinstance(clean, CleanRuns) else CleanRuns.read(clean)
        self.false_alarm_rate = false_alarm_rate
        self.bound = self.clean.bound(false_alarm_rate)
        self.alarm: Alarm | None = None
        self.ratio = 0.0
        self._reader = Reader(self.clean.scales)
        self._cusums = {name: _Cusum() for name in self.clean.scales}

    def step(self, row: Row) -> Alarm | None:
        """The alarm, at the step that first rings it; None before and after.

        row: "step" and any keys of metrics.jsonl, `nll_margin` besides; a number or None each. A signal that is missing or
        None leaves its CUSUM where it is. RankspaceError: an unknown key, NaN, or a step that does not follow.
        """
        values = self._reader.read(row)
        step = self._reader.step
        for name, x in values.items():
            self._cusums[name].add(self.clean.scales[name].z(x, step), SIGNALS[name].toward, step)
        statistic, since, name = max((*c.over(self.clean.scales[n].largest), n) for n, c in self._cusums.items())
        self.ratio = statistic / max(self.bound, LEAST_BOUND)
        if self.alarm is not None or statistic <= self.bound:
            return None
        mean = self.clean.scales[name].mean
        self.alarm = Alarm(
            step, name, statistic, self.bound, self.false_alarm_rate, since, values[name],
            mean[min(step, len(mean) - 1)], step < self.clean.horizon,
        )  # fmt: skip
        return self.alarm

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as JSON values."""
        return {
            "step": self._reader.step, "last": dict(self._reader.last), "recent": dict(self._reader.recent),
            "ratio": self.ratio,
            "cusums": {name: asdict(c) for name, c in self._cusums.items()},
            "alarm": None if self.alarm is None else asdict(self.alarm),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. RankspaceError when it is of a watch over other signals."""
        if state["cusums"].keys() != self._cusums.keys():
            raise RankspaceError(
                f"the saved watch has the signals {', '.join(state['cusums'])}, the clean runs {', '.join(self._cusums)}:"
                " go on with the same file of clean runs"
            )
        self._reader.step, self._reader.last = state["step"], dict(state["last"])
        self._reader.recent = {name: list(rows) for name, rows in state["recent"].items()}
        self.ratio = state["ratio"]
        self._cusums = {name: _Cusum(list(c["high"]), list(c["since"])) for name, c in state["cusums"].items()}
        self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])


def clean_runs_needed(false_alarm_rate: float) -> int:
    """Clean runs in all, with those for the scale, that a rate asks for: 23 for 0.05."""
    least = math.ceil(1 / false_alarm_rate - 1 - 1e-9)
    n = least + LEAST_SCALE_RUNS
    while n - _scale_runs(n) < least:
        n += 1
    return n


def calibrate(runs: Sequence[Sequence[Row]], signals: Sequence[str] | None = None) -> CleanRuns:
    """Clean runs, each its rows in order, to what `HackWatch` compares with. The first fifth sets the scale: order by seed.

    signals: None for `DEFAULT`, with `OWN` for what no run has. A signal that no run has is left out. Raises
    RankspaceError: fewer than 3 runs, none of the signals, or a signal that some runs have and others lack.
    """
    if signals is None:
        seen = {key for run in runs for row in run for key, x in row.items() if x is not None}
        signals = [name if SIGNALS[name].key in seen else OWN.get(name, name) for name in DEFAULT]
    require_signals(signals)
    if len(runs) < LEAST_SCALE_RUNS + 1:
        raise RankspaceError(
            f"{len(runs)} clean runs: give at least 3, and {clean_runs_needed(0.05)} for a rate of 0.05"
        )
    every = [_read_run(run, signals) for run in runs]
    horizon = min(steps for _, steps in every)
    read = [{name: {t: x for t, x in found[name].items() if t < horizon} for name in signals} for found, _ in every]
    kept = [name for name in signals if _in_all(name, read)]
    if not kept:
        raise RankspaceError(f"no clean run has any of the signals {', '.join(signals)}")
    first = _scale_runs(len(runs))
    scales = {name: _scale(name, [run[name] for run in read[:first]], horizon) for name in kept}
    maxima = (max(_score(name, scales[name], run[name]) for name in kept) for run in read[first:])
    return CleanRuns(scales, tuple(sorted(maxima)), horizon)


def replay(rows: Iterable[Row], clean: CleanRuns | Path | str, false_alarm_rate: float = 0.05) -> HackWatch:
    """A watch that has seen all rows of a run."""
    watch = HackWatch(clean, false_alarm_rate)
    for row in rows:
        watch.step(row)
    return watch


def _read_run(rows: Sequence[Row], signals: Sequence[str]) -> tuple[dict[str, dict[int, float]], int]:
    """({signal: {step: value}}, steps that the run has)."""
    reader, found = Reader(signals), {name: dict[int, float]() for name in signals}
    for row in rows:
        for name, x in reader.read(row).items():
            found[name][reader.step] = x
    if reader.step < 0:
        raise RankspaceError("a clean run has no rows: leave it out")
    return found, reader.step + 1


def _in_all(name: str, runs: Sequence[Mapping[str, Mapping[int, float]]]) -> bool:
    having = sum(bool(run[name]) for run in runs)
    if 0 < having < len(runs):
        raise RankspaceError(f"{having} of {len(runs)} clean runs have {name}: leave the signal out, or those runs")
    return having > 0


def _scale(name: str, runs: Sequence[Mapping[int, float]], horizon: int) -> Scale:
    overall = math.fsum(x for run in runs for x in run.values()) / sum(map(len, runs))
    by_step = [[run[t] for run in runs if t in run] for t in range(horizon)]
    # a step that no run has the signal in: one without an update, or without an evaluation
    mean = tuple(math.fsum(xs) / len(xs) if xs else overall for xs in by_step)
    squares = [(x - m) ** 2 for xs, m in zip(by_step, mean, strict=True) if len(xs) > 1 for x in xs]
    freedom = sum(len(xs) - 1 for xs in by_step if len(xs) > 1)
    spread = max(SIGNALS[name].least, math.sqrt(math.fsum(squares) / freedom) if freedom else 0.0)
    ones = tuple(1.0 for _ in ALLOWANCES)
    reached = [_peaks(name, Scale(mean, spread, ones), run) for run in runs]
    # q is at least 1: a CUSUM that never left zero in the few runs of the scale would else count as infinitely high
    return Scale(
        mean, spread, tuple(max(1.0, *(max(peak[2 * k : 2 * k + 2]) for peak in reached)) for k in range(len(ones)))
    )


def _peaks(name: str, scale: Scale, run: Mapping[int, float]) -> list[float]:
    """The largest value that each CUSUM reaches in a run."""
    cusum, peaks = _Cusum(), [0.0] * (2 * len(ALLOWANCES))
    for step, x in run.items():
        cusum.add(scale.z(x, step), SIGNALS[name].toward, step)
        peaks = [max(pair) for pair in zip(peaks, cusum.high, strict=True)]
    return peaks


def _score(name: str, scale: Scale, run: Mapping[int, float]) -> float:
    """The largest C / q that a run reaches in one signal."""
    return max(peak / scale.largest[i // 2] for i, peak in enumerate(_peaks(name, scale, run)))


def _scale_runs(n: int) -> int:
    return max(LEAST_SCALE_RUNS, n // 5)
