"""What a run leaves behind: files under run_dir, Prometheus metrics, and a line on the terminal.

    config.json    resolved settings           metrics.jsonl   one row per optimizer step (numbered from 0)
    status.json    running | finished | ...    eval.jsonl      one row per evaluation and mode
    modules.json   module names and ranks      modules.jsonl   per-module cosines of each step
    rollouts/      step_000003.jsonl.gz, every completion with its verdicts
    tensorboard/   wandb/ wandb_run.json       where the settings ask for them (loggers.py)
    v_hack.json    metadata of the direction, with its held-out validation
    v_hack.safetensors, v_ref.safetensors      copies of the direction files, so that the run can be moved without .cache
    alarm.json     evidence of the alarm, where one rang

A step's rows are written before its checkpoint; after a crash the rows at or above the checkpoint's step are cut off, so
a resumed run has each step exactly once.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import atomic_file
from common.errors import ConfigError
from common.metrics import Metrics
from common.settings import TrainerSettings, changed, dump
from common.types import GradedGroup
from services.trainer.completions_table import chosen
from services.trainer.divergence import log_prob_sums
from services.trainer.gauges import Gauges
from services.trainer.loggers import Completions, Loggers, Past
from services.trainer.reseed import MODE, PURPOSE


def open_run(s: TrainerSettings) -> None:
    """Make run_dir with config.json, or check that the one there is of this very run. ConfigError naming the field."""
    path = s.run_dir / "config.json"
    if path.exists():
        old, new = json.loads(path.read_text()), json.loads(dump(s))
        difference = changed(old, new)
        if difference is not None:
            field, before, now = difference
            raise ConfigError(
                f"run_dir {s.run_dir} holds a run with {field}={before!r}, now {now!r}; resume with the same settings, or "
                "choose another run_id"
            )
    s.run_dir.mkdir(parents=True, exist_ok=True)
    atomic_file.write(path, dump(s))


def keep_directions(s: TrainerSettings) -> None:
    """Copy what the arm acts along and what positions are measured against, if files, into run_dir."""
    used = {
        "v_hack": s.v_hack if s.direction == "v_hack" else None,
        "v_ref": s.v_ref if s.direction != "none" else None,
    }
    for name, path in used.items():
        if path is not None:
            atomic_file.write(s.run_dir / f"{name}.safetensors", path.read_bytes())


@contextmanager
def full_disk_as_user_error(run_dir: Path) -> Iterator[None]:
    """Around everything that writes to run_dir: no room there is one line, and nothing of the run is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"run_dir {run_dir}: {error.strerror}; make room there and start the same command again: it goes on from the "
            "last checkpoint"
        ) from None


class Record:
    """Writes one run's files and metrics. Rank 0 only."""

    def __init__(
        self, s: TrainerSettings, metrics: Metrics, modules: list[tuple[str, int]], direction: dict[str, Any] | None
    ):
        self.s, self.dir = s, s.run_dir
        self.names = [name for name, _ in modules]
        self.gauges = Gauges(s, metrics, self.names)
        self.loggers = Loggers({})
        (self.dir / "rollouts").mkdir(exist_ok=True)
        atomic_file.write(
            self.dir / "modules.json", json.dumps({"names": self.names, "ranks": [r for _, r in modules]})
        )
        if direction is not None:
            atomic_file.write(self.dir / "v_hack.json", json.dumps(direction, default=str))

    def cut(self, next_step: int, evaluated: Sequence[int] = ()) -> None:
        """Forget rows that a crash left beyond the checkpoint."""
        for name in ("metrics.jsonl", "modules.jsonl"):
            _keep(self.dir / name, lambda row: row["step"] < next_step)
        _keep(self.dir / "eval.jsonl", lambda row: row["step"] in evaluated)
        for path in (self.dir / "rollouts").glob("step_*.jsonl.gz"):
            step = int(path.name[5:11])
            if step == next_step and step in evaluated:
                _keep_evaluation(path)  # it stands before the step of its number, so the checkpoint has it
            elif step >= next_step:
                path.unlink()

    def updates(self) -> int:
        """Optimizer updates that the rows on disk tell of."""
        return sum(row["optimised"] for row in _rows(self.dir / "metrics.jsonl"))

    def replay(self) -> None:
        """Let the gauges show again what the rows of a resumed run say, and start the loggers where those rows end."""
        steps, modules, evaluations = (_rows(self.dir / f"{name}.jsonl") for name in ("metrics", "modules", "eval"))
        self.gauges.replay(steps, modules, evaluations)
        self.loggers = Loggers.start(self.s, Past(steps, evaluations))

    def alarm(self, evidence: dict[str, Any] | None) -> None:
        """The evidence of the alarm; None takes back what a crash left of an alarm beyond the checkpoint."""
        path = self.dir / "alarm.json"
        if evidence is None:
            path.unlink(missing_ok=True)
        else:
            atomic_file.write(path, json.dumps(evidence, indent=1))

    def status(self, state: str, step: int, reason: str = "") -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"state": state, "step": step, "steps": self.s.steps, "reason": reason, "updated": now}
        atomic_file.write(self.dir / "status.json", json.dumps(row))

    def step(self, row: dict[str, Any], cos: Sequence[float] | None, update_cos: Sequence[float] | None) -> None:
        """One optimizer step: `row` is the metrics row, the cosines are per module."""
        _append(self.dir / "metrics.jsonl", row)
        if cos is not None:
            _append(self.dir / "modules.jsonl", {"step": row["step"], "cos": cos, "update_cos": update_cos})
        self.gauges.step(row, cos)
        self.loggers.step(row)

    def evaluation(self, row: dict[str, Any]) -> None:
        _append(self.dir / "eval.jsonl", row)
        self.gauges.evaluation(row)
        self.loggers.evaluation(row)

    def rollouts(
        self, step: int, groups: Sequence[GradedGroup], advantages: Sequence[Sequence[float]], mode: str
    ) -> None:
        """Append every completion of a step (or evaluation) to its file, as one gzip member."""
        rows = list(_rollout_rows(step, groups, advantages, mode))
        with open(self.dir / "rollouts" / f"step_{step:06d}.jsonl.gz", "ab") as file:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            file.write(gzip.compress(lines.encode("utf-8", "surrogatepass"), compresslevel=3))
        if self.s.log_completions and mode != MODE:
            self.loggers.completions(Completions(step, mode, chosen(rows, self.s.log_completions)))

    def close(self) -> None:
        """Let the loggers finish. The files are complete at any time."""
        self.loggers.close()

    def count(self, outcomes: Mapping[str, int], tokens: int) -> None:
        """Raise the counters; after a restart by what the checkpoint says, so that they continue."""
        self.gauges.count(outcomes, tokens)


def _rollout_rows(
    step: int, groups: Sequence[GradedGroup], advantages: Sequence[Sequence[float]], mode: str
) -> Iterator[dict[str, Any]]:
    for graded, group_advantages in zip(groups, advantages, strict=True):
        group = graded.group
        triples = zip(group.completions, graded.grades, group_advantages, strict=True)
        for index, (completion, grade, advantage) in enumerate(triples):
            yield {
                "group_id": group.group_id, "step": step, "purpose": PURPOSE if mode == MODE else group.purpose, "mode": mode,
                "problem_id": group.problem.id,
                "policy_version": group.policy_version, "index": index, "text": completion.text,
                "prompt_ids": group.prompt_ids, "token_ids": completion.token_ids,
                # rounded; the sums beside them are not, so KL can be computed again exactly
                "logprobs": [round(x, 5) for x in completion.logprobs], **log_prob_sums(completion),
                "finish_reason": completion.finish_reason, "reward": grade.reward,
                "advantage": None if math.isnan(advantage) else advantage, "label": grade.label,
                "test_modification": grade.test_modification, "oracle_correct": grade.oracle_correct,
                "published_correct": grade.published_correct, "evidence": grade.evidence, "status": grade.status,
                "reason": grade.reason,
            }  # fmt: skip


def _keep_evaluation(path: Path) -> None:
    """Leave the rows of the evaluation and drop those of the training step, which is done again."""
    kept: list[bytes] = []
    with (
        suppress(EOFError, gzip.BadGzipFile, zlib.error),
        gzip.open(path) as file,
    ):  # a kill may cut the last member off
        for line in file:
            if line.endswith(b"\n") and json.loads(line)["purpose"] == "eval":
                kept.append(line)
    atomic_file.write(path, gzip.compress(b"".join(kept), compresslevel=3))


def _append(path: Path, row: dict[str, Any]) -> None:
    """One line, on disk when this returns; a NaN is an error, not a number."""
    line = json.dumps(row, allow_nan=False) + "\n"
    with open(path, "a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _keep(path: Path, test: Callable[[dict[str, Any]], bool]) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the half-written last line of a killed process
            continue
        if test(row):
            kept.append(line + "\n")
    atomic_file.write(path, "".join(kept))
