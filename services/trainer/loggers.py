"""Optional loggers beside the run's own files and Prometheus: TensorBoard and Weights & Biases. Rank 0 only (Record).

    loggers=[tensorboard]   run_dir/tensorboard, one folder for the whole run
    loggers=[wandb]         project WANDB_PROJECT (default rankspace); the run's id is kept in run_dir/wandb_run.json

Each gets the rows of metrics.jsonl and eval.jsonl as they are written, numbers only, and a table of a few completions a
step (`log_completions`; completions_table.py chooses). What is missing or refuses to start
is an error before the first step. After that a logger can do no harm: it works in a thread of its own, and one that
raises or falls behind is named once on the terminal and left out; the files of the run stay complete.

A resumed run goes on in the same place, with each step once. TensorBoard is told from which step on the earlier values
are void (its own mechanism) and gets the new ones. Weights & Biases cannot take a row back: a step that was logged
before the crash is not logged again, so what it shows there is the first of the two computations. A logger that is
switched on later gets the rows it has missed; completions of the past it does not get.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from common import atomic_file
from common.errors import ConfigError
from common.settings import RedisSettings, TrainerSettings
from services.trainer import completions_table

Row = Mapping[str, Any]

BEHIND = 1000  # rows; a step takes longer than any logger needs, so one that is so far behind hangs
CLOSE_S = 60.0
PRIVATE = set(RedisSettings.model_fields)


@dataclass(frozen=True)
class Completions:
    """Rollout rows of one step, of training (mode "train") or of one evaluation."""

    step: int
    mode: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        return "train/completions" if self.mode == "train" else f"eval/{self.mode}/completions"


class Logger(Protocol):
    """What a logger must do. It may raise anything; it may be slow."""

    def step(self, row: Row) -> None: ...

    def evaluation(self, row: Row) -> None: ...

    def completions(self, table: Completions) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Past:
    """The rows on disk when a run starts or resumes: every step before the next one, and the evaluations that count."""

    steps: Sequence[Row] = ()
    evaluations: Sequence[Row] = ()

    @property
    def next_step(self) -> int:
        return self.steps[-1]["step"] + 1 if self.steps else 0


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """(name, number) of a row; `seconds` and `label_counts` become seconds/train and so on. What is null is left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{part}", float(number)) for part, number in value.items())
        elif isinstance(value, int | float):
            yield name, float(value)


class TensorBoard:
    """Event files that TensorBoard reads: train/..., eval/<mode>/..."""

    def __init__(self, s: TrainerSettings, past: Past):
        from torch.utils.tensorboard import SummaryWriter

        folder = s.run_dir / "tensorboard"
        goes_on = any(folder.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(str(folder), purge_step=past.next_step if goes_on else None)
        for row in () if goes_on else past.steps:
            self.step(row)
        for row in past.evaluations:  # one at next_step counts, but was made void with the steps
            if not goes_on or row["step"] >= past.next_step:
                self.evaluation(row)

    def step(self, row: Row) -> None:
        self._add("train", row)

    def evaluation(self, row: Row) -> None:
        self._add(f"eval/{row['mode']}", row)

    def completions(self, table: Completions) -> None:
        self.writer.add_text(table.name, completions_table.markdown(table.rows), table.step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _add(self, head: str, row: Row) -> None:
        for name, value in scalars(row):
            if name != "step":
                self.writer.add_scalar(f"{head}/{name}", value, row["step"])
        self.writer.flush()  # a killed trainer writes nothing more


class WandB:
    """One Weights & Biases run: train/... over train/step, eval/<mode>/... over eval/step. Online, offline: WANDB_MODE.

    `logged` is what it has been given so far, kept on disk and written before the row is: a crash in between loses a
    row here, it doubles none. Its own step counts rows, so that a part written offline continues the one before.
    """

    def __init__(self, s: TrainerSettings, past: Past):
        import wandb

        self.note = s.run_dir / "wandb_run.json"
        self.logged: dict[str, Any] = (
            json.loads(self.note.read_text()) if self.note.exists() else {"id": secrets.token_hex(4)}
        )
        self.logged = {"rows": 0, "next_step": 0, "evaluations": [], "completions": [], **self.logged}
        config = s.model_dump(mode="json", exclude=PRIVATE)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "rankspace"), id=self.logged["id"], resume="allow", name=s.run_id,
                group=s.arm, dir=str(s.run_dir), config=config,
                settings=wandb.Settings(
                    console="off", disable_git=True, save_code=False, x_disable_stats=True, silent=True, finish_timeout=CLOSE_S,
                ),
            )  # fmt: skip
        except wandb.Error as error:
            raise ConfigError(
                f"field 'loggers': wandb did not start ({' '.join(str(error).split())}); log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None
        for head in ("train", "eval"):
            self.run.define_metric(f"{head}/step", hidden=True)
            self.run.define_metric(f"{head}/*", step_metric=f"{head}/step")
        self._catch_up(past)

    def step(self, row: Row) -> None:
        if row["step"] >= self.logged["next_step"]:
            self._log({f"train/{name}": value for name, value in scalars(row)}, next_step=row["step"] + 1)

    def evaluation(self, row: Row) -> None:
        key = [row["step"], row["mode"]]
        if key not in self.logged["evaluations"]:
            values = {f"eval/{row['mode']}/{name}": value for name, value in scalars(row) if name != "step"}
            self._log({"eval/step": row["step"], **values}, evaluations=[*self.logged["evaluations"], key])

    def completions(self, table: Completions) -> None:
        import wandb

        key = [table.step, table.mode]
        if key not in self.logged["completions"]:
            data = [completions_table.cells(row) for row in table.rows]
            made = wandb.Table(columns=list(completions_table.COLUMNS), data=data)
            self._log({table.name: made}, completions=[*self.logged["completions"], key])

    def close(self) -> None:
        self.run.finish()

    def _catch_up(self, past: Past) -> None:
        for row in past.steps:
            self.step(row)
        for row in past.evaluations:
            self.evaluation(row)

    def _log(self, values: dict[str, Any], **logged: Any) -> None:
        number = self.logged["rows"]
        self.logged |= {"rows": number + 1, **logged}
        atomic_file.write(self.note, json.dumps(self.logged))
        self.run.log(values, step=number, commit=True)


KINDS: dict[str, Callable[[TrainerSettings, Past], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}


def require(names: Sequence[str]) -> None:
    """ConfigError when the package of a logger is missing. Imports none of them."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"field 'loggers': the package {name} is not installed; run `pip install {name}` (extra: pip install "
                "'.[loggers]'), or leave it out"
            )


class Lane:
    """One logger and the thread it works in."""

    def __init__(self, name: str, logger: Logger):
        self.name, self.logger = name, logger
        self.queue: SimpleQueue[tuple[str, Row | Completions | None]] = SimpleQueue()
        self.failed = False
        self.thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self.thread.start()

    def put(self, what: str, row: Row | Completions | None = None) -> None:
        """Returns at once. What a failed logger is given is thrown away."""
        if not self.failed and self.queue.qsize() > BEHIND:
            self._give_up(f"it is {BEHIND} rows behind")
        if not self.failed:
            self.queue.put((what, row))

    def close(self, patience_s: float) -> None:
        """Let it finish what it was given, as far as patience goes."""
        self.put("close")
        self.thread.join(0.0 if self.failed else patience_s)
        if not self.failed and self.thread.is_alive():
            self._give_up(f"it did not finish within {patience_s:.0f} s")

    def _work(self) -> None:
        what = ""
        while what != "close" and not self.failed:
            what, row = self.queue.get()
            try:
                getattr(self.logger, what)(*(() if row is None else (row,)))
            except Exception as error:  # whatever a logger does, the run goes on
                self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _give_up(self, reason: str) -> None:
        self.failed = True
        print(f"warning: logger {self.name} failed ({reason}); the run goes on without it", file=sys.stderr, flush=True)


class Loggers:
    """The loggers a run asked for, behind the interface of one; none of its methods raises or waits, but close."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self.lanes = [Lane(name, logger) for name, logger in loggers.items()]

    @classmethod
    def start(cls, s: TrainerSettings, past: Past) -> Loggers:
        """Those of the settings, caught up with the rows on disk. ConfigError for one that does not start."""
        return cls({name: KINDS[name](s, past) for name in s.loggers})

    def step(self, row: Row) -> None:
        for lane in self.lanes:
            lane.put("step", row)

    def evaluation(self, row: Row) -> None:
        for lane in self.lanes:
            lane.put("evaluation", row)

    def completions(self, table: Completions) -> None:
        for lane in self.lanes:
            lane.put("completions", table)

    def close(self, patience_s: float = CLOSE_S) -> None:
        """Wait for each to finish, at most `patience_s` seconds."""
        for lane in self.lanes:
            lane.close(patience_s)
