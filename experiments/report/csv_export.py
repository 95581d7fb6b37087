"""The numbers behind the figures as CSV, one row a step or an evaluation, so that nobody has to read them off a plot.

steps.csv         arm, seed, step, then every number of the run's metrics.jsonl that some run measured, six digits
evaluations.csv   arm, seed, step, mode, then the numbers of eval.jsonl (common/measurements.py)

A field is empty where nothing could be measured.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from common.measurements import EVALUATIONS
from experiments.analysis.run_files import Run

RATES = tuple(m.name for m in EVALUATIONS if m.kind == "number" and not m.later)
LATER = tuple(m.name for m in EVALUATIONS if m.kind == "number" and m.later)  # columns only where some run has them


def files(runs: Sequence[Run]) -> dict[str, bytes]:
    """Both files by name."""
    return {"steps.csv": _steps(runs), "evaluations.csv": _evaluations(runs)}


def _steps(runs: Sequence[Run]) -> bytes:
    measured = {name for run in runs for name, values in run.series.items() if any(map(math.isfinite, values))}
    names = [name for name in runs[0].series if name != "step" and name in measured]
    return as_csv(
        ["arm", "seed", "step", *names],
        (
            [run.arm, run.seed, int(run.series["step"][i]), *(_number(run.series[name][i]) for name in names)]
            for run in runs
            for i in range(run.steps_done)
        ),
    )


def _evaluations(runs: Sequence[Run]) -> bytes:
    measured = [name for name in LATER if any(getattr(row, name) is not None for run in runs for row in run.evals)]
    return as_csv(
        ["arm", "seed", "step", "mode", *RATES, *measured],
        (
            [run.arm, run.seed, row.step, row.mode, *(_number(getattr(row, name)) for name in (*RATES, *measured))]
            for run in runs
            for row in run.evals
        ),
    )


def as_csv(head: list[str], rows: Iterable[list[object]]) -> bytes:
    """Any table as the bytes of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
