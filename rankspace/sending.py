"""A trainer's parameters on their way to a generation engine that knows nothing of adapters.

A trainer that walks over its model's own parameters sends W0, and delta_S, which the engine has no place for. Here,
parameter by parameter:

    <module>.weight of an adapted module      W0  ->  W0 + U diag(delta_S) Vh, rounded once to W0's dtype (merge.py)
    <module>.delta_S                          left out
    everything else                           as it is
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .adapter import PARAMETER, Adapter
from .errors import RankspaceError
from .merge import merged_weight


def merged_parameters(parameters: Iterable[tuple[str, Tensor]], adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as an engine knows them: adapted weights merged, delta_S left out. See the top of this file.

    Args:
        parameters: (name, whole tensor) of the adapter's model, in any order. Under FSDP2 gather each before it comes here.
        adapter: the one on that model. Under FSDP2 every rank must call this: delta_S is gathered.

    Raises:
        RankspaceError: once `parameters` is at its end, if an adapted weight did not come by under its own name, so that
            the engine would keep the old one.
    """
    return _merged(parameters, adapter, adapter.named_delta())  # gathered at the call, on whichever ranks go on to read


@torch.no_grad()
def _merged(
    parameters: Iterable[tuple[str, Tensor]], adapter: Adapter, deltas: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    missing = set(deltas)
    for name, tensor in parameters:
        module, _, last = name.rpartition(".")
        if last == PARAMETER:  # the engine has no such parameter and would refuse all of them
            continue
        if last == "weight" and module in deltas:
            missing.discard(module)
            U, Vh = adapter.basis(module)
            tensor = merged_weight(tensor.detach(), U, deltas[module].to(tensor.device), Vh)
        yield name, tensor
    if missing:
        raise RankspaceError(
            f"{len(missing)} adapted weights were not sent under their own names, {sorted(missing)[0]} first: the trainer"
            " wraps the model in a way that renames its parameters"
        )
