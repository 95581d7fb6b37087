"""Reading run directories: what the trainer wrote, checked, as plain arrays. Writes nothing.

    kept/<run_id>.tar.xz                                         a kept run: some of these files in one (`keep`)
    runs/<run_id>/config.json, provenance.json, status.json      one object each
                  metrics.jsonl, modules.jsonl, eval.jsonl       one row a line; steps count from 0
                  modules.json, v_hack.json                      one object each; may be absent
                  v_hack.safetensors                             the direction acted along; older runs lack it
                  rollouts/step_000003.jsonl.gz                  one row a completion
                  rollouts/cos_000003.jsonl                      by measure-cos, for the viewer; may be absent

A half-written last line is what a live (or killed) run looks like: it is left out, and `Run.notes` says so. A bad line
anywhere else, or at the end of a finished run, is an error that names file and line. After a resume the trainer may
write a step again: the later row counts, and `Run.notes` says how many were replaced.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from common.errors import ConfigError
from common.measurements import MEASUREMENTS, Measurement
from common.settings import explain
from rankspace.errors import RankspaceError
from rankspace.run_source import RunSource, name_of, open_source

State = Literal["running", "finished", "failed", "stopped"]
PHASES = ("generate", "grade", "shape", "train", "push", "wait")
ROLLOUT_NAME = "step_{:06d}.jsonl.gz"


class _Row(BaseModel):
    """Unknown fields are kept out of our way, missing ones are an error: a newer trainer may say more, never less."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Provenance(_Row):
    command: str
    git_commit: str | None
    git_dirty: bool
    packages: dict[str, str]
    prereg_sha256: str
    started: datetime
    preset: str
    arm: str
    seed: int
    name: str | None = None  # the --name of the run; the preset's without one; missing in older runs
    registrations: dict[str, str] = Field(default_factory=dict)  # file name: sha256; older runs lack it


class Status(_Row):
    state: State
    step: int
    steps: int
    reason: str
    updated: datetime


_TYPES: dict[str, Any] = {"number": float | None, "count": int, "map": dict[str, int]}
_SECONDS = dict[str, float]


def _field(m: Measurement) -> tuple[Any, Any]:
    """Type and default of one key of the row; a key that rows of older versions lack is null there."""
    kind = _SECONDS if m.name == "seconds" else _TYPES[m.kind]
    return (kind | None, None) if m.later else (kind, ...)


_FIELDS: dict[str, Any] = {m.name: _field(m) for m in MEASUREMENTS}
MetricsRow = create_model("MetricsRow", __base__=_Row, **_FIELDS)
"""One step, a field a row of common/measurements.py. Rates are fractions 0..1; None where nothing could be measured."""


class ModulesRow(_Row):
    step: int
    cos: list[float | None]
    update_cos: list[float | None] | None


class EvalRow(_Row):
    """One evaluation of one mode; its fields are the rows of EVALUATIONS (a test holds them against it)."""

    step: int
    mode: str
    problems: int
    samples: int
    pass_oracle: float | None
    pass_published: float | None
    hack_strict: float | None
    hack_loose: float | None
    forged_rate: float | None
    length_mean: float | None
    infra_errors: int
    label_counts: dict[str, int]
    dropped_groups: int | None = None  # rows of an older version lack it, and the next two
    oracle_weak: float | None = None
    nll_margin: float | None = None
    tests_written: float | None = None  # rows of other modes lack it
    tests_honest: float | None = None


@dataclass(frozen=True)
class Run:
    """One run directory. `series[name]` is float64 [steps done], NaN for null; `cos` is [steps, modules]."""

    path: Path
    run_id: str
    config: dict[str, Any]
    provenance: Provenance
    status: Status
    series: dict[str, np.ndarray]
    label_counts: dict[str, int]
    evals: tuple[EvalRow, ...]
    module_names: tuple[str, ...] = ()
    module_steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cos: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    update_cos: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    direction: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def arm(self) -> str:
        return self.provenance.arm

    @property
    def seed(self) -> int:
        return self.provenance.seed

    @property
    def preset(self) -> str:
        return self.provenance.preset

    @property
    def called(self) -> str:
        """Its --name, the preset's without one."""
        return self.provenance.name or self.run_id.removesuffix(f"-{self.arm}-s{self.seed}")

    @property
    def folder(self) -> str:
        """Name of its directory, also where it is kept as one file."""
        return name_of(self.path)

    @property
    def finished(self) -> bool:
        return self.status.state == "finished"

    @property
    def steps_done(self) -> int:
        return len(self.series["step"])

    @property
    def alarm_step(self) -> int | None:
        """Step of the run's own alarm (`alarm_clean`): the first whose statistic is above its bound."""
        above = np.flatnonzero(self.series["alarm_ratio"] > 1)
        return int(self.series["step"][above[0]]) if len(above) else None


def read_run(path: Path, up_to: int | None = None) -> Run:
    """One run, checked. ConfigError naming file (and line) for whatever is missing or malformed.

    path: a run directory or a kept run.
    up_to: a run with more steps is read as if it had been one of so many steps and had finished them.
    """
    path = Path(path)
    try:
        source = open_source(path)
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    status = _model(source, "status.json", Status)
    provenance = _model(source, "provenance.json", Provenance)
    config = _object(source, "config.json")
    live = status.state != "finished"
    notes: list[str] = []
    metrics = _by_step(_rows(source, "metrics.jsonl", MetricsRow, live, notes), path / "metrics.jsonl", notes)
    modules = _by_step(_rows(source, "modules.jsonl", ModulesRow, live, notes), path / "modules.jsonl", [], gaps=True)
    names = tuple(_object(source, "modules.json")["names"]) if source.read("modules.json") is not None else ()
    direction = _object(source, "v_hack.json") if source.read("v_hack.json") is not None else None
    evals = _last_of_each(_rows(source, "eval.jsonl", EvalRow, live, notes))
    _check_names(path, config, provenance)
    if not live and len(metrics) != status.steps:
        raise ConfigError(
            f"{path / 'metrics.jsonl'}: {len(metrics)} steps in a finished run of {status.steps}; run it again"
        )
    if up_to is not None and len(metrics) >= up_to:
        metrics, modules = metrics[:up_to], [row for row in modules if row.step < up_to]
        evals = tuple(row for row in evals if row.step <= up_to)
        status = status.model_copy(update={"state": "finished", "step": up_to, "steps": up_to})
        config = config | {"steps": up_to}
    return Run(
        path=path,
        run_id=str(config["run_id"]),
        config=config,
        provenance=provenance,
        status=status,
        series=_series(metrics),
        label_counts=_sum_counts([row.label_counts for row in metrics]),
        evals=evals,
        module_names=names,
        module_steps=np.array([row.step for row in modules], dtype=float),
        cos=_matrix([row.cos for row in modules], len(names), path),
        update_cos=_matrix([row.update_cos or [None] * len(names) for row in modules], len(names), path),
        direction=direction,
        notes=tuple(notes),
    )


def read_rollouts(run: Run, step: int) -> list[dict[str, Any]]:
    """The completions of one step, as written. Empty when the step has no file; ConfigError when it is damaged."""
    path = run.path / "rollouts" / ROLLOUT_NAME.format(step)
    if not path.is_file():
        return []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (EOFError, OSError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        if not run.finished and step >= max(rollout_steps(run)):
            return []  # the live run is writing it now
        raise ConfigError(f"{path}: damaged ({type(error).__name__}: {error}); delete the file or restore it") from None


def direction_file(run: Path, config: dict[str, Any]) -> Path | None:
    """The file of the direction that a run acts along: its own copy, else the one that its settings name, if any."""
    kept, named = run / "v_hack.safetensors", config.get("v_hack")
    return kept if kept.is_file() else None if named is None else Path(str(named))


def rollout_steps(run: Run) -> list[int]:
    """Steps that have a rollout file, ascending."""
    return sorted(int(path.name[5:11]) for path in (run.path / "rollouts").glob("step_??????.jsonl.gz"))


def _check_names(path: Path, config: dict[str, Any], provenance: Provenance) -> None:
    for name, said in (("arm", provenance.arm), ("seed", provenance.seed)):
        if config.get(name) != said:
            raise ConfigError(
                f"{path}: config.json says {name} {config.get(name)!r}, provenance.json {said!r}; "
                "the directory holds two runs, delete it and run again"
            )
    if "run_id" not in config:
        raise ConfigError(f"{path / 'config.json'}: field 'run_id' is missing")


def _object(source: RunSource, name: str) -> dict[str, Any]:
    path = source.path / name
    try:
        data = source.read(name)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; is this a run directory?") from None
    if data is None:
        raise ConfigError(f"{path}: No such file or directory; is this a run directory?")
    return json_object(path, data)


def json_object(path: Path, data: bytes) -> dict[str, Any]:
    """The object that a JSON file holds. ConfigError naming the file when it holds none."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold an object, not {type(value).__name__}")
    return value


def _model(source: RunSource, name: str, kind: type[_Row]) -> Any:
    try:
        return kind.model_validate(_object(source, name))
    except ValidationError as error:
        raise ConfigError(f"{source.path / name}: {explain(error, kind)}") from None


def _rows(source: RunSource, name: str, kind: type[_Row], live: bool, notes: list[str]) -> list[Any]:
    """Rows of a JSON-lines file; [] when absent. Only a live run may end in the middle of a line."""
    rows: list[Any] = []
    for number, line, whole in _lines(source.read(name) or b""):
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            if live and not whole and error.errors()[0]["type"] == "json_invalid":
                notes.append(f"{name}: line {number} is half-written and left out")
                continue
            raise ConfigError(f"{source.path / name}:{number}: {explain(error, kind)}") from None
    return rows


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """(line number from 1, line, ends in a newline)."""
    for number, line in enumerate(io.BytesIO(data), start=1):
        yield number, line.rstrip(b"\n"), line.endswith(b"\n")


def _by_step(rows: list[Any], path: Path, notes: list[str], gaps: bool = False) -> list[Any]:
    """Rows in order of step, the later of two for one step. A missing step is an error unless `gaps`."""
    latest = {row.step: row for row in rows}
    if len(latest) < len(rows):
        notes.append(f"{path.name}: {len(rows) - len(latest)} steps were written twice (resume); the later row counts")
    steps = sorted(latest)
    if not gaps and steps and steps != list(range(len(steps))):
        missing = next(step for step in range(len(steps) + 1) if step not in latest)
        raise ConfigError(
            f"{path}: step {missing} is missing but step {steps[-1]} is there; the run has a hole, run it again"
        )
    return [latest[step] for step in steps]


def _last_of_each(rows: list[EvalRow]) -> tuple[EvalRow, ...]:
    latest = {(row.mode, row.step): row for row in rows}
    return tuple(latest[key] for key in sorted(latest))


def _series(rows: list[Any]) -> dict[str, np.ndarray]:
    scalars = [m.name for m in MEASUREMENTS if m.kind != "map"]
    series = {name: _floats([getattr(row, name) for row in rows]) for name in scalars}
    names = [*PHASES, "total"]
    return series | {f"seconds_{name}": _floats([row.seconds.get(name) for row in rows]) for name in names}


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _matrix(rows: list[list[float | None]], width: int, path: Path) -> np.ndarray:
    for row in rows:
        if len(row) != width:
            raise ConfigError(
                f"{path / 'modules.jsonl'}: a row has {len(row)} cosines, modules.json names {width} modules"
            )
    return np.array([_floats(row) for row in rows]).reshape(len(rows), width)


def _sum_counts(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for label, number in one.items():
            total[label] = total.get(label, 0) + number
    return total


def age_seconds(status: Status, now: datetime | None = None) -> float:
    """Seconds since the run last wrote its status."""
    now = now or datetime.now(UTC)
    updated = status.updated if status.updated.tzinfo else status.updated.replace(tzinfo=UTC)
    return max(0.0, (now - updated).total_seconds())
