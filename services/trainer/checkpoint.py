"""Checkpoints: everything that decides what happens next, written so that a reader finds all of it or none.

    run_dir/checkpoints/step_000012/   delta_S, Adam moments, RNG (safetensors); state.json last, then the folder is renamed

The state says which step comes next; groups of earlier steps are trained. A rank saves its own optimizer partition, so a
run is resumed with the number of ranks it was started with.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from rankspace.atomic_dir import sync
from services.trainer.policy import Policy

if TYPE_CHECKING:
    import torch


@dataclass
class State:
    """Where the run stands. `next_step`: steps done so far, which is also the policy version.

    `updates`: optimizer updates made, fewer than steps; None in a checkpoint that did not count them.
    `hack_rates`: strict hack rate of every step so far that has one (window.py). `alarm`: the watch (alarm.py), None
    without one.
    """

    next_step: int = 0
    ranks: int = 1
    expected: dict[str, list[Any]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    updates: int | None = 0
    evaluated: list[int] = field(default_factory=list)
    hack_rates: list[float] = field(default_factory=list)
    alarm: dict[str, Any] | None = None


def save(policy: Policy, state: State, run_dir: Path, keep: int) -> None:
    """Collective: each rank writes its part, rank 0 completes the folder and removes old ones.

    ConfigError when it cannot be written (disk full); the checkpoints before it stay as they are.
    """
    from safetensors import SafetensorError

    try:
        _save(policy, state, run_dir, keep)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the checkpoint of step {state.next_step} cannot be written to {run_dir}: {reason}; make room there and start "
            "the same command again: it goes on from the last checkpoint"
        ) from None


def _save(policy: Policy, state: State, run_dir: Path, keep: int) -> None:
    import torch
    from safetensors.torch import save_file

    from common import failpoints

    final = _folder(run_dir, state.next_step)
    draft = final.with_name(final.name + ".draft")
    if policy.rank == 0:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    _barrier()
    tensors = _optimizer_tensors(policy) | {"rng": torch.get_rng_state()}
    if policy.settings.refresh_every:
        assert policy.direction is not None  # there is one to refresh
        tensors["direction"] = policy.direction.vectors
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / f"rank{policy.rank}.safetensors")
    vector = policy.vector()
    _barrier()
    if policy.rank != 0:
        return
    (draft / "delta_S.f32").write_bytes(vector)
    # after the second barrier: every rank has written its part
    (draft / "state.json").write_text(json.dumps(asdict(state), indent=1))
    for path in draft.iterdir():
        sync(path)
    failpoints.reached("checkpoint_written")
    former = final.with_name(final.name + ".former.draft")
    if final.exists():  # the same step again, with an evaluation more
        os.replace(final, former)
    os.replace(draft, final)
    shutil.rmtree(former, ignore_errors=True)
    sync(final.parent)
    # removed last: until the new one is on disk the old ones are what a resume needs
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (p for p in (Path(run_dir) / "checkpoints").glob("step_*") if p.is_dir() and p.suffix != ".draft")
    return sorted(found)


def load(policy: Policy, run_dir: Path) -> State | None:
    """Put the newest readable checkpoint into the policy; None when there is none. Collective.

    A damaged one is passed over for the one before it, with a warning; if all are damaged that is a ConfigError.
    """
    if policy.rank == 0:
        _tidy(Path(run_dir) / "checkpoints")
    _barrier()
    found = checkpoints(run_dir)
    if found and policy.settings.zero_stage == 3:
        # ZeRO-3 keeps Adam's moments where this file does not find them; a resumed run would quietly be another one.
        raise ConfigError(
            f"{run_dir} cannot be resumed under ZeRO-3 (field zero_stage); start a new run_id, or use stage 2"
        )
    for folder in reversed(found):
        try:
            return _load_one(policy, folder)
        except _Damaged as error:
            print(f"warning: checkpoint {folder.name} is damaged ({error}); trying the one before it", flush=True)
    if found:
        raise ConfigError(f"every checkpoint in {run_dir}/checkpoints is damaged; start again under a new run_id")
    return None


def _tidy(folder: Path) -> None:
    """After a crash in the middle of `save`: put back what was being replaced, remove what was being written."""
    for former in folder.glob("step_*.former.draft"):
        final = former.with_name(former.name.removesuffix(".former.draft"))
        if not final.exists():
            os.replace(former, final)
    for draft in folder.glob("step_*.draft"):
        shutil.rmtree(draft)


class _Damaged(Exception):
    """This checkpoint cannot be used; an older one may."""


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """State as today's fields: checkpoints before 0.2 said `fates` for `outcomes` and did not count updates."""
    return {"updates": None} | {"outcomes" if name == "fates" else name: value for name, value in fields.items()}


def _load_one(policy: Policy, folder: Path) -> State:
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from rankspace import RankspaceError
    from rankspace.ds_hook import scatter_delta

    try:
        state = State(**_renamed(json.loads((folder / "state.json").read_text())))
        tensors = load_file(folder / f"rank{policy.rank}.safetensors")
        flat = torch.from_numpy(np.frombuffer((folder / "delta_S.f32").read_bytes(), dtype="<f4").copy())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}"[:120]) from None
    if state.ranks != policy.ranks:
        raise ConfigError(
            f"{folder} was written by {state.ranks} ranks, now there are {policy.ranks}; resume with {state.ranks}"
        )
    try:
        scatter_delta(policy.engine, policy.adapter, flat.to(policy.device))
    except RankspaceError as error:
        raise _Damaged(str(error)) from None
    # after scatter_delta, which may refuse: a checkpoint that is passed over must not leave its RNG
    torch.set_rng_state(tensors.pop("rng"))
    if policy.settings.refresh_every:
        policy.set_direction(tensors.pop("direction"))
    _restore_optimizer(policy, tensors)
    return state


def _optimizer(policy: Policy) -> torch.optim.Optimizer:
    """The torch optimizer inside whatever DeepSpeed wrapped around it."""
    outer = policy.engine.optimizer
    inner: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
    return inner


def _optimized(policy: Policy) -> list[torch.Tensor]:
    """The tensors that the torch optimizer steps on, in a fixed order: the keys of its state."""
    return [p for group in _optimizer(policy).param_groups for p in group["params"]]


def _optimizer_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """This rank's optimizer state: {"<parameter number>/<name>": tensor}."""
    import torch

    state, out = _optimizer(policy).state, {}
    for number, parameter in enumerate(_optimized(policy)):
        for name, value in state.get(parameter, {}).items():
            out[f"{number}/{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
    return out


def _restore_optimizer(policy: Policy, tensors: dict[str, torch.Tensor]) -> None:
    state, parameters = _optimizer(policy).state, _optimized(policy)
    for key, value in tensors.items():
        number, name = key.split("/", 1)
        parameter = parameters[int(number)]
        # Adam's step counter lives on the CPU, its moments beside the parameter.
        state[parameter][name] = value if name == "step" else value.to(parameter.device)


def _folder(run_dir: Path, step: int) -> Path:
    return Path(run_dir) / "checkpoints" / f"step_{step:06d}"


def _barrier() -> None:
    import torch

    if torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()
