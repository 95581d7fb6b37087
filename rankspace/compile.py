"""torch.compile for the training step: each decoder layer as one graph, shared by all layers of a kind.

What it pays for is memory traffic: norms, rotary embedding, SwiGLU and residuals fuse, and the row sum of d_delta is
taken where UᵀG is made. The layers' weights are the merged ones of the adapter, updated in place, so nothing is traced
anew from step to step; a hook on the decoder sees to it that they are fresh before a compiled layer runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn

from .adapter import Adapter
from .causal_lm import CausalLM
from .errors import RankspaceError


def compile_layers(
    model: nn.Module, adapter: Adapter | None = None, backend: str = "inductor", dynamic: bool | None = None
) -> int:
    """Compile the decoder layers in place; returns how many. Costs tens of seconds at the first forward and backward.

    Args:
        model: a causal Hugging Face LM (`get_decoder().layers`). Activation checkpointing stays outside of the graphs.
        adapter: the one attached to it, if any; its form may not change afterwards.
        dynamic: True when batches differ in rows or length: one graph for all of them. None waits for a second shape.

    Raises:
        RankspaceError: the model has no decoder layers.
    """
    decoder = cast(CausalLM, model).get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if decoder is None or not layers:
        raise RankspaceError(f"{type(model).__name__} has no decoder layers to compile: leave compilation off")
    if adapter is not None:
        decoder.register_forward_pre_hook(lambda *_: adapter.merge())
    for layer in layers:
        layer.compile(backend=backend, dynamic=dynamic)
    return len(layers)


def eagerly() -> AbstractContextManager[None]:
    """A context in which compiled layers run as plain Python: for the odd forward that is not worth a graph."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def uncompile_layers(model: nn.Module) -> None:
    """Run the layers as plain Python again."""
    for layer in cast(Any, model).get_decoder().layers:
        # torch has no public way back from Module.compile
        layer._compiled_call_impl = None
