"""A delta_S out of a training run's directory, as the trainer of this project leaves it.

<run>/config.json                          model, adapter, arm, seed, projection, v_hack
<run>/modules.json                         {"names": [...], "ranks": [...]}
<run>/v_hack.json                          metadata of the direction, with the fingerprint of the base; may be absent
<run>/v_hack.safetensors                   that direction; may be absent
<run>/checkpoints/step_NNNNNN/delta_S.f32  little-endian fp32, in the order of modules.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter_io import SavedDelta, describe
from .direction import load_direction
from .errors import RankspaceError

TOLD = ("arm", "run_id", "seed", "projection", "advantage", "steps", "lr", "dtype")


def of_run(run: str | Path, step: int | None = None) -> SavedDelta:
    """The delta_S of a checkpoint: that after `step` updates, or the newest.

    Raises:
        RankspaceError: no such run or step (lists the steps there are), a file that is missing or damaged; one line.
    """
    run = Path(run)
    if not run.is_dir():
        raise RankspaceError(f"no run at {run}: give the directory of a run, e.g. runs/<id>")
    config, modules = _object(run / "config.json"), _object(run / "modules.json")
    number, folder = _checkpoint(run, step)
    try:
        names = [(str(name), int(r)) for name, r in zip(modules["names"], modules["ranks"], strict=True)]
        model, kind = str(config["model"]), config.get("adapter", "antipasto")
    except (KeyError, TypeError, ValueError) as error:
        raise RankspaceError(
            f"{run} is no run of this project: its config.json or modules.json lacks {error}"
        ) from error
    flat = _vector(folder / "delta_S.f32", sum(r for _, r in names))
    direction, fingerprint = _direction(run, config)
    told = {key: config[key] for key in TOLD if config.get(key) is not None} | {"step": number}
    return SavedDelta(flat, names, kind, model, fingerprint, None, told | direction)


def checkpoints(run: str | Path) -> dict[int, Path]:
    """The checkpoints of a run that hold a delta_S, by the number of updates, oldest first; may be empty."""
    return {
        int(match[1]): path
        for path in sorted((Path(run) / "checkpoints").glob("step_*"))
        if (match := re.fullmatch(r"step_(\d+)", path.name)) and (path / "delta_S.f32").is_file()
    }


def _checkpoint(run: Path, step: int | None) -> tuple[int, Path]:
    found = checkpoints(run)
    if not found:
        raise RankspaceError(f"{run} has no checkpoint yet: let the run write one (checkpoint_every)")
    number = max(found) if step is None else step
    if number not in found:
        there = ", ".join(map(str, found))
        raise RankspaceError(f"--step {number} is not among the checkpoints of {run}: it has {there}")
    return number, found[number]


def _vector(path: Path, size: int) -> Tensor:
    data = bytearray(path.read_bytes())
    # the file has no header: its length says whether it is whole
    if len(data) != 4 * size:
        raise RankspaceError(f"{path} has {len(data)} bytes, its modules need {4 * size}: damaged, take another --step")
    if sys.byteorder == "big":
        data = bytearray(b"".join(bytes(data[i : i + 4][::-1]) for i in range(0, len(data), 4)))
    flat = torch.frombuffer(data, dtype=torch.float32).clone()
    if not torch.isfinite(flat).all():
        raise RankspaceError(f"{path} holds NaN or Inf: the training run diverged, take an earlier --step")
    return flat


def _direction(run: Path, config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """({"direction": what the card says of it}, fingerprint of the base); as much as the run's files tell."""
    path = run / "v_hack.json"
    meta = _object(path) if path.is_file() else {}
    fingerprint = meta.get("fingerprint")
    kept = run / "v_hack.safetensors"
    source = kept if kept.is_file() else config.get("v_hack")
    if source and Path(source).is_file():
        direction = load_direction(source)
        if direction.metadata.get("pairs_hash") == meta.get("pairs_hash"):  # else the file was made anew since
            return {"direction": describe(direction)}, fingerprint
    known = {key: meta[key] for key in ("pairs_hash", "seed") if key in meta}
    return ({"direction": {"kind": config.get("direction", "v_hack"), **known}} if known else {}), fingerprint


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RankspaceError(f"{path} cannot be read: give --run the directory of a run of this project") from error
    if not isinstance(value, dict):
        raise RankspaceError(f"{path} holds no JSON object: give --run the directory of a run of this project")
    return value
