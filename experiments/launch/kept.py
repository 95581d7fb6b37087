"""Planned runs that are kept already, so that a sweep does not make them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.scopes import Scope, fields
from common.settings import TrainerSettings, changed
from experiments.analysis import slim
from experiments.design.plan import Plan
from experiments.launch.given import generator_changed
from rankspace.run_source import name_of

_ELSEWHERE = fields(TrainerSettings, Scope.INPUT)  # paths of files whose content decides: each machine has its own


def kept(planned: Sequence[Plan], folders: Sequence[Path]) -> set[str]:
    """The run_ids that are kept in the folders. ConfigError where a kept run has other settings than the planned one."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--kept {folder}: no such directory; give a folder of kept runs, or leave it out")
        found |= {name_of(path): path for path in slim.kept_in(folder)}
    there = [plan for plan in planned if plan.trainer.run_id in found]
    for plan in there:
        _check_same(plan, found[plan.trainer.run_id])
    return {plan.trainer.run_id for plan in there}


def _check_same(planned: Plan, path: Path) -> None:
    files = slim.contents(path)
    held = files.get("config.json")
    if held is None:
        raise ConfigError(f"{path}: has no config.json; restore the file, or delete it and keep the run anew")
    old, new = _compared(json.loads(held)), _compared(slim.config(json.loads(planned.trainer.model_dump_json())))
    difference = changed(old, new, finished=True) or generator_changed(_run_file(files), planned)
    if difference is not None:
        field, was, now = difference
        raise ConfigError(
            f"{path} is a kept run with {field}={was!r}, now {now!r}; give the same settings, or another --name for "
            "another run"
        )


def _run_file(files: dict[str, bytes]) -> dict[str, Any]:
    found = yaml.safe_load(files.get(slim.TEXT, b""))
    return found if isinstance(found, dict) else {}


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ELSEWHERE}
