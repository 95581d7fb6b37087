"""The run's own alarm (rankspace/hack_watch.py): one row a step, and what follows from it.

    on_alarm     off       the watch, if alarm_clean gives it clean runs, only writes and shows
                 stop      the step is finished and saved, then the run ends; started again it ends again, unless
                           go_past_alarm says that somebody has looked
                 project   the projection acts from the step after the alarm on, and in no step before

Everything the next step depends on is in the checkpoint: a resumed run rings, stops and projects as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from common.errors import ConfigError
from common.settings import TrainerSettings
from rankspace import RankspaceError
from rankspace.hack_watch import HackWatch
from rankspace.watch_signals import readable


def check(s: TrainerSettings) -> None:
    """ConfigError when the clean runs cannot be read, are too few for the rate, or too short to act on."""
    watch = _watch(s)
    if watch is not None and s.on_alarm != "off" and watch.clean.horizon < s.steps:
        raise ConfigError(
            f"field 'alarm_clean': its clean runs have {watch.clean.horizon} steps, this run {s.steps}, and beyond them nothing "
            "bounds false alarms; calibrate with runs as long, or give fewer steps"
        )


class RunAlarm:
    """The watch of one run; without `alarm_clean` it sees nothing and never rings."""

    def __init__(self, s: TrainerSettings):
        self.s = s
        self.watch = _watch(s)
        self._margin: float | None = None

    @property
    def rung(self) -> bool:
        return self.watch is not None and self.watch.alarm is not None

    @property
    def stops(self) -> bool:
        """Whether the run must end here."""
        return self.rung and self.s.on_alarm == "stop" and not self.s.go_past_alarm

    @property
    def reason(self) -> str:
        return str(self.watch.alarm) if self.watch is not None and self.watch.alarm is not None else ""

    def evidence(self) -> dict[str, Any] | None:
        """What alarm.json holds; None before an alarm."""
        if self.watch is None or self.watch.alarm is None:
            return None
        return asdict(self.watch.alarm) | {"on_alarm": self.s.on_alarm, "text": self.reason}

    def evaluation(self, row: dict[str, Any]) -> None:
        """The NLL margin of an evaluation belongs to the step that follows it."""
        self._margin = row.get("nll_margin", self._margin)

    def step(self, row: dict[str, Any]) -> bool:
        """Add `alarm_ratio` to a row of metrics.jsonl; whether this step is the one that rings."""
        if self.watch is None:
            return False
        margin, self._margin = self._margin, None
        rings = self.watch.step(readable(row) | {"nll_margin": margin}) is not None
        row["alarm_ratio"] = self.watch.ratio
        return rings

    def state(self) -> dict[str, Any] | None:
        """For the checkpoint."""
        return None if self.watch is None else {"watch": self.watch.state(), "margin": self._margin}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a checkpoint; ConfigError when its watch is of other clean runs. None: it had no watch."""
        if self.watch is None or state is None:
            return
        self._margin = state["margin"]
        try:
            self.watch.restore(state["watch"])
        except RankspaceError as error:
            raise ConfigError(f"field 'alarm_clean': {error}") from None


def _watch(s: TrainerSettings) -> HackWatch | None:
    if s.alarm_clean is None:
        return None
    try:
        return HackWatch(s.alarm_clean, s.false_alarm_rate)
    except RankspaceError as error:
        raise ConfigError(f"field 'alarm_clean': {error}") from None
