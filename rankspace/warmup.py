"""The trusted subspace: what a short clean warm-up moves, per module. All else is taken out of every gradient (`span`).

    warm-up     N AdamW steps from delta_S = 0 on the clean completions of the pairs, mean NLL of a drawn batch
    u[t, m]     change of delta_S[m] in step t
    w_i[m]      top-k right singular vectors of the matrix u[:, m] (not centred), each turned towards the whole change
    span        g' = Σ_i (g·w_i) w_i, rescaled to ‖g‖

After TDGA (Deng et al. 2026, arXiv 2605.25189), which keeps the top-K output directions of a clean SFT update of the full
matrices, weighted by their singular values. Here the space is delta_S, and the weights are all 1.

delta_S is zero again afterwards. The same seed draws the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .direction import Direction, completion_nll, leading
from .errors import RankspaceError
from .pairs import TokenizedPair
from .projection import Layout

STEPS, BATCH, RATE = 20, 16, 1e-2


def warmup_direction(
    model: nn.Module,
    adapter: Adapter,
    pairs: Sequence[TokenizedPair],
    k: int,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Direction:
    """Direction of kind 'warmup', vectors [k, sum r], orthonormal per module.

    Raises:
        RankspaceError: no pairs, a delta_S that is not zero, k out of range, or a loss that is not finite.
    """
    if not pairs:
        raise RankspaceError("no pairs to warm up on: give a file with 60-80 contrastive pairs")
    if torch.any(adapter.get_flat()):
        raise RankspaceError("the warm-up starts at delta_S = 0: attach a fresh adapter before")
    was_training = model.training
    model.eval()
    try:
        updates = _updates(model, adapter, pairs, seed, progress)
    finally:
        model.train(was_training)
        adapter.set_flat(torch.zeros_like(adapter.get_flat()))
    return Direction("warmup", top_directions(updates, adapter.modules, k), adapter.modules,
                     {**(metadata or {}), "k": k, "seed": seed, "steps": STEPS, "batch": BATCH, "lr": RATE})  # fmt: skip


def top_directions(updates: Tensor, modules: Sequence[tuple[str, int]], k: int) -> Tensor:
    """w, fp32 [k, sum r], of the changes of all steps [N, sum r].

    Raises:
        RankspaceError: k is not in 2 .. min(N, smallest r − 1), or a module's changes span fewer dimensions.
    """
    layout = Layout.of(modules)
    most = min(len(updates), min(layout.ranks) - 1)
    if not 2 <= k <= most:
        raise RankspaceError(
            f"--k {k} must be between 2 and {most} ({len(updates)} steps, smallest r {min(layout.ranks)})"
        )
    parts = []
    for (name, _), u in zip(modules, torch.split(updates.double().cpu(), list(layout.ranks), dim=1), strict=True):
        top = leading(u, k)
        if top is None:
            raise RankspaceError(f"the warm-up moved {name} in fewer than {k} dimensions: lower --k")
        parts.append(top)
    return torch.cat(parts, dim=1).float()


def _updates(
    model: nn.Module,
    adapter: Adapter,
    pairs: Sequence[TokenizedPair],
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> Tensor:
    """Change of delta_S in each step, fp32 [STEPS, sum r]."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    places, changes = [adapter.get_flat().clone()], []
    for step in range(STEPS):
        batch = [pairs[int(i)] for i in torch.randperm(len(pairs), generator=generator)[:BATCH]]
        optimizer.zero_grad()
        for pair in batch:
            loss = completion_nll(model, pair.clean_ids, pair.start) / len(batch)
            if not torch.isfinite(loss):
                raise RankspaceError(
                    f"the clean completion of pair {pair.id} has no finite loss: load the model in fp32"
                )
            loss.backward()
        optimizer.step()
        adapter.refresh()
        places.append(adapter.get_flat().clone())
        changes.append(places[-1] - places[-2])
        if progress is not None:
            progress(step + 1, STEPS, f"loss {float(loss.detach()) * len(batch):.3f}")
    return torch.stack(changes)
