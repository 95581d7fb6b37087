"""What the terminal shows while a run trains: a live bar on a terminal, a plain line every few steps elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from common.settings import TrainerSettings
from rankspace.progress import span

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_EVERY = 5


class Progress:
    """Context manager; `show(row)` after each step."""

    def __init__(self, s: TrainerSettings):
        self.s, self.started = s, time.monotonic()
        self.bar: Bar | None = None
        self.first: int | None = None  # step

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.s.run_id, total=self.s.steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        done = row["step"] + 1
        if self.first is None:
            self.first, self.started = row["step"], time.monotonic()
        line = f"{self.s.run_id}  {describe(row)}{self._speed(row)}"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=line)
        elif done % PLAIN_EVERY == 0 or done in (1, self.s.steps):
            print(f"step {done}/{self.s.steps}  {line}", flush=True)

    def _speed(self, row: dict[str, Any]) -> str:
        assert self.first is not None, "show has set it"
        elapsed, steps = time.monotonic() - self.started, row["step"] - self.first
        if not steps or not elapsed:
            return ""
        left = (self.s.steps - row["step"] - 1) * elapsed / steps
        return f"  {steps / elapsed:.2f} steps/s" + (f"  {span(left)} left" if left else "")


def describe(row: dict[str, Any]) -> str:
    """hack, pass, cos_align and frac_fired of a step, in words short enough for a bar."""

    def percent(value: float | None) -> str:
        return "  -" if value is None else f"{100 * value:3.0f}%"

    cos = "" if row["cos_mean"] is None else f"  cos {row['cos_mean']:+.3f}  fired {percent(row['frac_fired'])}"
    return f"hack {percent(row['hack_strict'])}  pass {percent(row['pass_oracle'])}{cos}"
