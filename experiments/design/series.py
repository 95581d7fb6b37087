"""The runs that a registration names, whatever its version: one part a group, arm or cell, with the sweep that makes it.

version 2    the arms and cells of its design, whatever --name they have
version 3    the groups of its settings (alarm.yaml), by --name
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.settings import TrainerSettings
from experiments.design import alarm_registration, presets, registration
from experiments.design.alarm_registration import AlarmRegistration
from experiments.design.registration import Design, Registration, read_values


@dataclass(frozen=True)
class Part:
    """Runs that differ by seed alone. name: their --name, None where any will do. settings: those that say which part a run
    is of. fixed: those it must have besides. options: of the sweep that makes them, beside preset, arm and seeds.
    failed_count: a failed run is a result, too.
    """

    label: str
    preset: str
    arm: str
    seeds: tuple[int, ...]
    name: str | None
    settings: Mapping[str, Any]
    fixed: Mapping[str, Any]
    options: tuple[str, ...]
    failed_count: bool = False

    def has(self, preset: str, name: str, arm: str, seed: int, config: Mapping[str, Any]) -> bool:
        """Whether a run is one of these."""
        here = (preset, arm) == (self.preset, self.arm) and self.name in (None, name) and seed in self.seeds
        return here and all(config.get(key) == value for key, value in self.settings.items())

    def fault(self, config: Mapping[str, Any]) -> str:
        """Which settings are not the registered ones; empty when all are."""
        wrong = {key: value for key, value in self.fixed.items() if config.get(key) != value}
        return "; ".join(f"{key}={config.get(key)!r}, registered {value!r}" for key, value in wrong.items())


def parts(path: Path) -> list[Part]:
    """The parts of a registration file, in its order. ConfigError when it names no runs."""
    version = read_values(path).get("version")
    if version == 3:
        return _of_alarm(alarm_registration.load(path))
    found = registration.load_any(path)
    if not isinstance(found, Registration) or found.design is None:
        raise ConfigError(f"registration {path}: has no design, so nothing says which runs belong to it")
    return _of_design(found.design)


def sweeps(missing: Sequence[tuple[Part, Sequence[int]]], more: str = "") -> list[str]:
    """Commands that make these seeds of these parts: one for arms that need the same. more: added to each."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for part, seeds in missing:
        if seeds:
            alike.setdefault((part.preset, ranges(seeds), *part.options), []).append(part.arm)
    return [
        " ".join(part for part in (
            "python -m experiments sweep --preset", preset, "--arms", ",".join(arms), "--seeds", seeds,
            *map(shlex.quote, options), more,
        ) if part)
        for (preset, seeds, *options), arms in alike.items()
    ]  # fmt: skip


def ranges(seeds: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> '0-2,7', as --seeds reads it."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)


def _of_alarm(found: AlarmRegistration) -> list[Part]:
    made = []
    for title, setting in found.settings.items():
        for group in (*setting.clean, *setting.hacking, *setting.blind):
            fixed = {"steps": setting.steps} | group.set
            own = {key: value for key, value in fixed.items() if key != "steps" or value != _steps(setting.preset)}
            options = ([] if group.name == setting.preset else ["--name", group.name]) + _set(own)
            seeds = tuple(range(group.seeds[0], group.seeds[1] + 1))
            made.append(Part(f"{title} {group.label}", setting.preset, group.arm, seeds, group.name, {}, fixed,
                             tuple(options)))  # fmt: skip
    return made


def _of_design(design: Design) -> list[Part]:
    made = []
    steps = {} if design.steps == _steps(design.preset) else {"steps": design.steps}
    for name, seeds in design.arms.items():
        # a cell has the name that --grid gives it, so that runs of several doses lie beside each other
        cell = design.cells[name].settings if name in design.cells else {}
        grid = [word for key, value in cell.items() for word in ("--grid", f"{key}={value}")]
        made.append(Part(
            name, design.preset, design.arm_of(name), seeds, None, design.settings_of(name), {"steps": design.steps},
            (*grid, *_set(steps)), design.failed_counts_as_collapsed,
        ))  # fmt: skip
    return made


def _set(values: Mapping[str, Any]) -> list[str]:
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [word for key, value in said.items() for word in ("--set", f"{key}={value}")]


def _steps(preset: str) -> int:
    found = presets.get(preset).values.get("steps", TrainerSettings.model_fields["steps"].default)
    return int(found)
