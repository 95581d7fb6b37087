"""Runs out of the CSV files of a report, where the run directories are gone: runs.csv, steps.csv, evaluations.csv (if any).

What those files do not hold is absent: settings, rollouts, cosines of single modules, commands, packages. A number that an
older report did not write is NaN and shown as not measured.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from common.errors import ConfigError
from common.measurements import EVALUATIONS, MEASUREMENTS
from common.settings import TrainerSettings, explain
from experiments.analysis import comparable
from experiments.analysis.comparable import Chosen
from experiments.analysis.run_files import PHASES, EvalRow, Provenance, Run, Status
from experiments.design import arms as arm_table
from experiments.design import presets

FILES = ("runs.csv", "steps.csv")
EVALUATED = "evaluations.csv"  # the first reports had none
OLDER = {"grad_norm_mean": "grad_norm"}  # column of today: its name in the first reports
Row = dict[str, str]


def choose(folder: Path) -> Chosen:
    """The runs of a report, by arm in table order. ConfigError naming file and column."""
    runs, steps = (_rows(folder / name) for name in FILES)
    evaluations = _rows(folder / EVALUATED) if (folder / EVALUATED).exists() else []
    written = {(row.get("arm"), row.get("seed")) for row in steps}
    kept = [row for row in runs if (row.get("arm"), row.get("seed")) in written]
    left_out = [f"{row.get('run_id')} is {row.get('state')} after {row.get('steps')} steps, which steps.csv has not"
                for row in runs if row not in kept]  # fmt: skip
    found = [_run(folder, row, steps, evaluations) for row in kept]
    names = sorted({run.preset for run in found})
    if len(names) != 1:
        raise ConfigError(f"--from-csv {folder}: runs.csv holds runs of presets {', '.join(names) or '(none)'}")
    by_arm = {name: tuple(r for r in found if r.arm == name) for name in arm_table.order([r.arm for r in found])}
    return Chosen(
        names[0], by_arm, tuple(left_out), (*_said(folder, found), *comparable.check_seeds(by_arm, allow=True))
    )


def _said(folder: Path, runs: list[Run]) -> list[str]:
    made = ", ".join(sorted({str(run.provenance.git_commit) for run in runs}))
    said = [
        f"Made from the CSV files of an earlier report of these runs (commit {made}): settings, packages and problems could "
        "not be compared anew; rollouts, commands and figures by module are in that report only."
    ]
    if not (folder / EVALUATED).exists():
        said.append(
            f"That report wrote no {EVALUATED}: nothing is known of held-out problems, nor which runs are safe."
        )
    return said


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"--from-csv: {path}: {error.strerror}; give the folder of a report") from None


def _run(folder: Path, row: Row, steps: list[Row], evaluations: list[Row]) -> Run:
    try:
        arm, seed, done = row["arm"], int(row["seed"]), row["steps"].partition("/")
        own = sorted((r for r in steps if (r["arm"], r["seed"]) == (arm, row["seed"])), key=lambda r: int(r["step"]))
        evals = [r for r in evaluations if (r["arm"], r["seed"]) == (arm, row["seed"])]
        preset = row["run_id"].removesuffix(f"-{arm}-s{seed}")
        then = datetime.min.replace(tzinfo=UTC)
        status = Status(state=row["state"], step=int(done[0]), steps=int(done[2]), reason="", updated=then)
        commit, _, dirt = row["commit"].partition(" + ")
        made = Provenance(
            command="", git_commit=commit, git_dirty=bool(dirt), packages={}, prereg_sha256=row["prereg"], started=then,
            preset=preset, arm=arm, seed=seed,
        )  # fmt: skip
        if len(own) != status.step:
            raise ConfigError(
                f"{folder / 'steps.csv'}: {len(own)} steps of {row['run_id']}, runs.csv says {status.step}"
            )
        return Run(
            folder, row["run_id"], _planned(preset, arm), made, status, _series(own), {}, tuple(_evaluated(evals))
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"--from-csv {folder}: no column {error} in the files of this report") from None
    except ValidationError as error:
        raise ConfigError(f"--from-csv {folder}: runs.csv: {explain(error, Status)}") from None
    except ValueError as error:
        raise ConfigError(f"--from-csv {folder}: {error}") from None


def _planned(preset: str, arm: str) -> dict[str, Any]:
    """What the reader of runs asks of their settings: groups a step as the preset has it, and what the arm fixes."""
    known, of_arm = presets.PRESETS.get(preset), arm_table.ARMS.get(arm)
    groups = TrainerSettings.model_fields["groups_per_step"].default
    planned = {} if known is None else {"groups_per_step": known.values.get("groups_per_step", groups)}
    return planned | (dict(of_arm.overrides) if of_arm else {})


def _series(rows: list[Row]) -> dict[str, np.ndarray]:
    names = [m.name for m in MEASUREMENTS if m.kind != "map"] + [f"seconds_{p}" for p in (*PHASES, "total")]
    return {
        name: np.array([_number(row.get(name) or row.get(OLDER.get(name, ""))) for row in rows], dtype=float)
        for name in names
    }


def _evaluated(rows: list[Row]) -> list[EvalRow]:
    """Rows by mode and step; what the file does not hold is null, and counts that it does not hold are 0."""
    found = []
    for row in sorted(rows, key=lambda r: (r["mode"], int(r["step"]))):
        values = {m.name: float(row[m.name]) if row.get(m.name) else None for m in EVALUATIONS if m.kind == "number"}
        counts = {"problems": 0, "samples": 0, "infra_errors": 0, "label_counts": {}}
        found.append(EvalRow.model_validate({"step": int(row["step"]), "mode": row["mode"], **counts, **values}))
    return found


def _number(text: str | None) -> float:
    return float(text) if text else float("nan")
