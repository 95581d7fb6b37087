"""python -m experiments measure-cos: how far each completion of a training step points along v_hack.

    g[i, m]  = grad of NLL(completion i) wrt delta_S of module m,   NLL = mean over the completion's tokens
    cos[i]   = mean over modules of  g[i, m]·v_hack[m] / ‖g[i, m]‖

The sign is that of rankspace/direction.py, where v_hack = unit(mean grad NLL(hack) − mean grad NLL(clean)): positive means
that making this completion likelier makes hacks likelier. Taken at the delta_S that the step started from, when its
checkpoint is kept (`keep_checkpoints`), else at delta_S = 0; each row says which. Token ids are those that were sampled,
prompt and completion; nothing is tokenised again. Writes rollouts/cos_NNNNNN.jsonl in the run's directory, whole or not at
all: {group_id, index, step, cos, tokens (digest of the completion), at, direction, modules}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common import atomic_file
from common.errors import ConfigError
from common.model_names import local
from common.settings import TrainerSettings, build
from experiments.analysis.run_files import ROLLOUT_NAME, direction_file
from experiments.options import measure_cos as parser
from experiments.viewer.rows import RolloutRow, members, parse, token_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rankspace import Adapter
    from rankspace.direction import Direction

NAME = "cos_{:06d}.jsonl"


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: give at least 1")
    settings = _settings(options.run, options.v_hack, options.model)
    rows = training_rows(options.run, options.step)[: options.limit]
    from rankspace import RankspaceError

    try:
        path, at, values = measure(options.run, options.step, settings, rows)
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    above = sum(value > 0 for value in values)
    print(f"{path}: {len(values)} completions at {at}, mean cos {sum(values) / len(values):+.3f}, above 0 in {above}")
    return 0


def _settings(run: Path, v_hack: Path | None, model: str | None) -> TrainerSettings:
    try:
        values = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--run {run}: config.json cannot be read ({error}); give a run directory") from None
    v_hack = v_hack or direction_file(run, values)
    changed = {name: value for name, value in (("v_hack", v_hack), ("model", model)) if value is not None}
    settings = build(TrainerSettings, values | changed, str(run / "config.json"))
    if settings.v_hack is None:
        raise ConfigError(
            f"--run {run}: this run has no v_hack; give --v-hack FILE, made by `python -m rankspace extract`"
        )
    return settings


def training_rows(run: Path, step: int) -> list[RolloutRow]:
    """The completions of a training step, as written. ConfigError: none, or written without their prompts."""
    path = run / "rollouts" / ROLLOUT_NAME.format(step)
    if step < 0 or not path.is_file():
        raise ConfigError(f"--step {step}: no {path}; give a step that has been trained")
    lines = (line for member in members(path.read_bytes()) for line in (member.text or b"").splitlines() if line)
    rows = [
        row
        for row in map(parse, lines)
        if row is not None and row.purpose == "train" and row.step == step and row.token_ids
    ]
    if not rows:
        raise ConfigError(f"--step {step}: {path} holds no training completion; give a step below the run's last")
    if any(not row.prompt_ids for row in rows):
        raise ConfigError(
            f"{path}: its rows have no prompt_ids (an older trainer wrote them); run the step again to measure it"
        )
    return rows


def measure(run: Path, step: int, s: TrainerSettings, rows: list[RolloutRow]) -> tuple[Path, str, list[float]]:
    """(file written, which delta_S, cosines in order of `rows`). RankspaceError: direction or checkpoint do not fit."""
    from rankspace.direction import load_direction

    model, adapter = _policy(s)
    assert s.v_hack is not None
    direction = load_direction(s.v_hack, adapter.modules, adapter.fingerprint)
    at = _set_delta(adapter, run, step)
    values, lines = [], []
    for row, value in zip(rows, cosines(model, adapter, direction, rows), strict=True):
        values.append(value)
        lines.append({
            "group_id": row.group_id, "index": row.index, "step": row.step, "cos": round(value, 6),
            "tokens": token_digest(row.token_ids), "at": at, "direction": direction.kind, "modules": len(adapter.modules),
        })  # fmt: skip
    path = run / "rollouts" / NAME.format(step)
    atomic_file.write(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return path, at, values


def _policy(s: TrainerSettings) -> tuple[nn.Module, Adapter]:
    try:
        folder = local(s.model)
    except ConfigError as error:
        raise ConfigError(f"{error}; --model DIR says where the run's model is now") from None
    import torch

    import rankspace
    from rankspace.models import load_model

    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = wanted if s.device == "auto" or not torch.cuda.is_available() else s.device
    model = load_model(str(folder), device, s.dtype)
    return model, rankspace.attach(model, svd_cache_dir=s.svd_cache, form=s.adapter_form, kind=s.adapter)


def _set_delta(adapter: Adapter, run: Path, step: int) -> str:
    """The delta_S that the step started from, where it is kept; what it is, in words."""
    import numpy as np
    import torch

    path = run / "checkpoints" / f"step_{step:06d}" / "delta_S.f32"
    if not path.is_file():
        return "delta_S = 0"
    data = path.read_bytes()
    if len(data) % 4:
        raise ConfigError(
            f"{path}: {len(data)} bytes are no fp32 vector; the file is damaged, delete its folder to measure at 0"
        )
    adapter.set_flat(torch.from_numpy(np.frombuffer(data, dtype="<f4").copy()))
    return f"checkpoint {path.parent.name}"


def cosines(model: nn.Module, adapter: Adapter, direction: Direction, rows: list[RolloutRow]) -> Iterator[float]:
    """One a row: mean over modules of the cosine between its NLL gradient and the direction (its first vector, for a
    subspace). A module without gradient counts as 0. RankspaceError for a gradient that is not finite."""
    import torch

    from rankspace import RankspaceError
    from rankspace.direction import completion_nll
    from rankspace.projection import Layout, unit_rows

    layout = Layout.of(adapter.modules)
    v = unit_rows(layout.pad(direction.vectors if direction.vectors.ndim == 1 else direction.vectors[0]), layout.names)
    for row in rows:
        prompt = row.prompt_ids or []
        loss = completion_nll(model, [*prompt, *row.token_ids], len(prompt))
        found = torch.autograd.grad(loss, adapter.parameters(), allow_unused=True, materialize_grads=True)
        flat: Tensor = torch.cat([g.detach().float().cpu() for g in found])
        if not torch.isfinite(flat).all():
            raise RankspaceError(f"completion {row.index} of {row.group_id} gives a gradient with NaN or Inf")
        g = layout.pad(flat)
        yield float(((g * v).sum(dim=-1) / g.norm(dim=-1).clamp_min(1e-300)).mean())
