"""What a run shows to Prometheus. A gauge without a value this step is NaN, so that nobody reads an old one as new.

After a restart the gauges are replayed from the rows on disk and the counters continue from the checkpoint, so neither a
curve nor an alert that counts steps starts over.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.measurements import EVALUATIONS, MEASUREMENTS, Measurement
from common.metrics import GROUP_OUTCOMES, Metrics
from common.settings import TrainerSettings

MODULE_SERIES = 512
ONSET_WINDOW = 5
NULL_DEVIATIONS = 2.0
_LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


class Trend:
    """What the alerts ask about several steps. `null_steps`: consecutive steps with |mean cosine| within two null-band
    deviations; a step without a gradient neither counts nor interrupts. `recent`: mean of the last five hack rates.
    """

    def __init__(self) -> None:
        self.null_steps = 0
        self._hack: deque[float] = deque(maxlen=ONSET_WINDOW)

    def add(self, row: Mapping[str, Any]) -> None:
        if row["hack_strict"] is not None:
            self._hack.append(row["hack_strict"])
        if row["cos_mean"] is not None and row["null_band"] is not None:
            inside = abs(row["cos_mean"]) <= NULL_DEVIATIONS * row["null_band"]
            self.null_steps = self.null_steps + 1 if inside else 0

    @property
    def recent(self) -> float:
        """NaN before there are as many steps as the window is long."""
        return sum(self._hack) / ONSET_WINDOW if len(self._hack) == ONSET_WINDOW else math.nan


def series_of(names: Sequence[str], limit: int = MODULE_SERIES) -> list[tuple[str, str]]:
    """(layer, part) of each module: ("02", "mlp.up_proj"). Above `limit` modules the parts of a layer share one series."""
    found = [(m[1].zfill(2), m[2]) if (m := _LAYER.search(name)) else ("-", name) for name in names]
    return found if len(names) <= limit else [(layer, "all") for layer, _ in found]


class Gauges:
    """The trainer's metrics of one run."""

    def __init__(self, s: TrainerSettings, metrics: Metrics, names: Sequence[str]):
        self.metrics, self.labels = metrics, (s.run_id, s.arm, str(s.seed))
        self.series = series_of(names)
        self.trend = Trend()
        self._set("rs_probe_bound", s.probe_bound)

    def step(self, row: Mapping[str, Any], cos: Sequence[float] | None) -> None:
        """Show one row of metrics.jsonl and the per-module cosines of its step."""
        self.trend.add(row)
        self._set("rs_step", row["step"] + 1)
        self._set("rs_null_steps", self.trend.null_steps)
        self._set("rs_hack_rate_recent", self.trend.recent)
        for m in MEASUREMENTS:
            self._show(m, row)
        self._modules(cos)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Show one row of eval.jsonl."""
        for m in EVALUATIONS:
            self._show(m, row)

    def _show(self, m: Measurement, row: Mapping[str, Any]) -> None:
        """One key of a row; rows of an older version lack what is measured since."""
        if m.gauge is None:
            return
        label, _, value = m.label.partition("=")
        if m.kind == "map":
            for key, number in row[m.name].items():
                self._set(m.gauge, number, key)
        else:
            labels = (value or row[label],) if label else ()  # the label `mode` is a key of the row
            self._set(m.gauge, row.get(m.name), *labels)

    def count(self, outcomes: Mapping[str, int], tokens: int) -> None:
        """Raise the counters. Not called before a resumed run knows where it stood: a scrape that saw zero in between
        would take all of the past for new."""
        for outcome in dict.fromkeys(
            (*GROUP_OUTCOMES, *outcomes)
        ):  # a counter that appears with its first event hides that event
            self.metrics["rs_groups_total"].labels(*self.labels, outcome).inc(outcomes.get(outcome, 0))
        self.metrics["rs_tokens_total"].labels(*self.labels).inc(tokens)

    def replay(
        self,
        steps: Sequence[Mapping[str, Any]],
        modules: Sequence[Mapping[str, Any]],
        evaluations: Sequence[Mapping[str, Any]],
    ) -> None:
        """Show what the rows on disk say; without any, that the run stands at step 0."""
        self._set("rs_step", 0)
        for row in steps[:-1]:
            self.trend.add(row)
        if steps:
            last = [m["cos"] for m in modules if m["step"] == steps[-1]["step"]]
            self.step(steps[-1], last[0] if last else None)
        for row in evaluations:
            self.evaluation(row)

    def watch_gpu(self, memory: Mapping[str, Callable[[], float]]) -> None:
        """`memory`: kind -> function that returns bytes, called at each scrape."""
        for kind, read in memory.items():
            self.metrics["rs_trainer_gpu_bytes"].labels(*self.labels, kind).set_function(read)

    def _modules(self, cos: Sequence[float] | None) -> None:
        together = defaultdict(list)
        for key, value in zip(self.series, cos or [math.nan] * len(self.series), strict=True):
            together[key].append(value)
        for key, values in together.items():
            self._set("rs_cos_align_module", sum(values) / len(values), *key)

    def _set(self, name: str, value: float | None, *extra: str) -> None:
        self.metrics[name].labels(*self.labels, *extra).set(math.nan if value is None else value)
