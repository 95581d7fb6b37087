"""One row of metrics.jsonl from what a step produced. Pure; `null` where a number does not exist."""

from __future__ import annotations

from collections import Counter
from typing import Any

from common.measurements import from_source
from services.trainer.collate import TrainBatch
from services.trainer.publish import Publisher
from services.trainer.rollouts import Collected

GRADING = tuple(m.key for m in from_source("grading"))
LOSS = tuple(m.key for m in from_source("loss"))
PROJECTION = {m.name: m.key for m in from_source("hook")}


def step_row(
    k: int,
    collected: Collected,
    batch: TrainBatch,
    metrics: dict[str, Any] | None,
    seconds: dict[str, float],
    publisher: Publisher,
    outcomes: Counter[str],
    updates: int,
) -> dict[str, Any]:
    """`metrics` is None when no group had variance and no step was made. `updates`: made so far, with this step's."""
    found = metrics or {}
    row: dict[str, Any] = {"step": k, "policy_version": k + 1, "optimised": metrics is not None, "updates": updates}
    row |= {name: batch.stats[name] for name in GRADING}
    row["trained_groups"] = batch.stats["trained_groups"] if metrics is not None else 0
    row |= {name: found.get(name) for name in LOSS}
    row |= {name: found.get(source) for name, source in PROJECTION.items()}
    row |= {
        "dropped_groups": outcomes["dropped"] + outcomes["stale"], "duplicate_groups": outcomes["duplicate"],
        "alarm_ratio": None,  # alarm.py puts it in, from the rest of the row
        "probe_gap": publisher.last_gap, "push_bytes": publisher.last_bytes, "push_s": publisher.last_seconds,
    }  # fmt: skip
    return row | {"seconds": {name: round(value, 4) for name, value in (seconds | service_seconds(collected)).items()}}


def service_seconds(collected: Collected) -> dict[str, float]:
    """Time the services were busy for this step; it overlaps with the trainer's own `wait`.

    generate: until the last of the step's groups was sampled and scored, added over the generators: a group's own time is
    that until it was ready, and groups of a batch run side by side. grade: the graders' time, divided by their number.
    """
    longest: dict[str, float] = {}
    for graded in collected.groups:
        replica = graded.group.replica
        longest[replica] = max(longest.get(replica, 0.0), graded.group.generate_s)
    workers = {g.worker for g in collected.groups}
    return {
        "generate": sum(longest.values()),
        "grade": sum(g.grade_s for g in collected.groups) / max(1, len(workers)),
    }
