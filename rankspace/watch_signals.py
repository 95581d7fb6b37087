"""What a HackWatch can watch: the signals, the keys they are read from, and rows of a run's files. No torch.

level    x_t
change   x_t − x at the last step that has one       of what adds up over the run: delta_S along v
slope    least squares over the last ten values      of what moves too slowly to be seen in one step
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import RankspaceError
from .run_source import RunSource, open_source

SLOPE_WINDOW = 10

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Signal:
    """One thing that is watched.

    key: of the row. toward: +1 up is towards the hack, −1 down is, 0 either may be. form: the value itself, its change
    since the last step that has one, or its least-squares slope a step over the last ten. least: smallest spread, in the
    signal's unit, so that a rate that is always 0 in clean runs does not count its first rollout as infinitely strange.
    """

    key: str
    toward: Literal[-1, 0, 1]
    form: Literal["level", "change", "slope"]
    least: float


SIGNALS: dict[str, Signal] = {
    "update_ref_cos_mean": Signal("update_ref_cos_mean", 1, "level", 0.005),
    "displacement_ref": Signal("displacement_ref", -1, "change", 1e-4),
    "update_cos_mean": Signal("update_cos_mean", 1, "level", 0.005),
    "displacement_own": Signal("displacement_own", -1, "change", 1e-4),
    "nll_margin": Signal("nll_margin", 1, "level", 0.005),
    "hack_loose": Signal("hack_loose", 1, "level", 0.005),
    "hack_strict": Signal("hack_strict", 1, "level", 0.005),
    "forged_rate": Signal("forged_rate", 1, "level", 0.005),
    "kl_all": Signal("kl_all", 1, "level", 1e-4),
    "kl": Signal("kl", 1, "level", 1e-4),
    "entropy": Signal("entropy", 0, "level", 1e-3),
    "length_mean": Signal("length_mean", 0, "level", 0.1),
    "reward_slope": Signal("reward_mean", 1, "slope", 1e-3),
}
"""Every signal by name; all but reward_slope are named as their key of metrics.jsonl (nll_margin: of eval.jsonl)."""

DEFAULT = ("update_ref_cos_mean", "displacement_ref", "nll_margin", "hack_loose", "hack_strict", "forged_rate")
OWN = {"update_ref_cos_mean": "update_cos_mean", "displacement_ref": "displacement_own"}
"""What stands in by default where no reference was measured: the same against the run's own direction."""
WEIGHTS = ("update_ref_cos_mean", "displacement_ref")

OTHER_KEYS = frozenset((
    "policy_version", "optimised", "updates", "pass_oracle", "pass_published", "oracle_weak", "reward_std",
    "truncated_rate", "groups", "trained_groups", "zero_variance_groups", "refill_sampled", "refill_kept", "reseeded",
    "reseed_logprob",
    "infra_errors", "staleness_mean", "staleness_max", "tokens", "label_counts", "loss", "ratio_mean", "ratio_max",
    "clip_frac", "weight_capped", "lr", "cos_mean", "cos_std", "frac_fired", "grad_norm_mean", "drift_cos_mean",
    "null_band", "drift_ref_cos_mean", "delta_norm", "intervened", "alarm_ratio", "dropped_groups",
    "duplicate_groups", "probe_gap", "push_bytes", "push_s", "seconds",
))  # fmt: skip
"""Keys of metrics.jsonl that no signal reads. Any other key is taken for a misspelling."""
_KNOWN = OTHER_KEYS | {"step"} | {s.key for s in SIGNALS.values()}


def readable(row: Row) -> dict[str, Any]:
    """What a signal may be read from: a row that a trainer wrote, which may be a newer one that says more."""
    return {key: x for key, x in row.items() if key in _KNOWN}


class Reader:
    """Rows in, signals out: checks keys and keeps what `change` and `slope` need of earlier steps."""

    def __init__(self, signals: Iterable[str]):
        self.signals = tuple(signals)
        require_signals(self.signals)
        self.last: dict[str, float] = {}
        self.recent: dict[str, list[list[float]]] = {}
        self.step = -1

    def read(self, row: Row) -> dict[str, float]:
        """{signal: value} for those that the row has. RankspaceError: a key nobody knows, steps that go back, NaN."""
        for key in row.keys() - _KNOWN:
            raise RankspaceError(
                f"row has the key {key!r}, which is no signal and no key of metrics.jsonl{_near(key, _KNOWN)}"
            )
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step <= self.step:
            raise RankspaceError(f"row has step {step!r} after step {self.step}: give whole numbers that rise, from 0")
        self.step = step
        values = {}
        for name in self.signals:
            x = _number(row, SIGNALS[name].key)
            x = None if x is None else self._formed(name, x)
            if x is not None:
                values[name] = x
        return values

    def _formed(self, name: str, x: float) -> float | None:
        form = SIGNALS[name].form
        if form == "change":
            # delta_S starts at zero, so the first change is the value itself
            before, self.last[name] = self.last.get(name, 0.0), x
            return x - before
        if form == "slope":
            kept = self.recent[name] = [*self.recent.get(name, []), [float(self.step), x]][-SLOPE_WINDOW:]
            return _slope(kept) if len(kept) == SLOPE_WINDOW else None
        return x


def read_rows(run: Path | str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run directory or a kept run (run_source), each with the `nll_margin` of the evaluation
    before it where eval.jsonl has one.

    A step that was written again after a resume counts once, as written last; a half-written last line is left out.
    """
    source = open_source(Path(run))
    rows = {row["step"]: readable(row) for row in _lines(source, "metrics.jsonl")}
    for row in _lines(source, "eval.jsonl", optional=True):
        if row.get("nll_margin") is not None and row["step"] in rows:
            rows[row["step"]]["nll_margin"] = row["nll_margin"]
    return [rows[step] for step in sorted(rows)]


def _lines(source: RunSource, name: str, optional: bool = False) -> list[dict[str, Any]]:
    path = source.path / name
    try:
        data = source.read(name)
    except OSError as error:
        raise RankspaceError(f"{path}: {error.strerror}; give the directory of a run") from None
    if data is None:
        if optional:
            return []
        raise RankspaceError(f"{path}: No such file or directory; give the directory of a run")
    lines = data.decode().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):  # a live run may be writing its last line
                raise RankspaceError(f"{path} line {number}: not JSON") from None
    return rows


def _slope(points: Sequence[Sequence[float]]) -> float:
    t, x = (math.fsum(p[i] for p in points) / len(points) for i in (0, 1))
    return math.fsum((p[0] - t) * (p[1] - x) for p in points) / math.fsum((p[0] - t) ** 2 for p in points)


def _number(row: Row, key: str) -> float | None:
    x = row.get(key)
    if x is None:
        return None
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
        raise RankspaceError(f"row has {key} = {x!r}: give a finite number, or None where nothing was measured")
    return float(x)


def require_signals(names: Iterable[str]) -> None:
    for name in names:
        if name not in SIGNALS:
            raise RankspaceError(f"no signal {name!r}{_near(name, SIGNALS)}; there are {', '.join(SIGNALS)}")


def _near(name: object, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
