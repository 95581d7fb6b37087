"""Tensors that FSDP2 (`fully_shard`) has cut over the ranks: read whole, write back in parts. Plain tensors pass through.

    whole(t)        all of it on every rank      a collective for a DTensor: every rank must call it, in the same order
    fill(t, x)      t <- x                       no communication: every rank holds x and keeps its own part

The projection is not linear in a module's gradient (it has a max and a norm), so it cannot be taken shard by shard. delta_S
is small, some hundred thousand numbers, so gathering it costs little beside gathering the weights.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """A DTensor, told by its method: importing torch.distributed.tensor costs every user half a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on every rank. Needs every rank for a DTensor."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_sharded(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Put `values`, the same on every rank and of the full size, in `tensor` in place, cast to its dtype."""
    if not is_sharded(tensor):
        tensor.copy_(values.view_as(tensor))
        return
    from torch.distributed.tensor import distribute_tensor

    there = cast(Any, tensor)
    values = values.to(device=there.to_local().device, dtype=tensor.dtype).view(tensor.shape)
    # src_data_rank=None: cut what this rank holds, send nothing
    cut = distribute_tensor(values, there.device_mesh, there.placements, src_data_rank=None)
    there.to_local().copy_(cut.to_local())
