"""Which modules get an adapter, by name alone; needs no torch, so that a model can be checked from its file headers.

A pattern without a dot matches the last part of a module's name ("q_proj", "in_proj_*"), with a dot the whole name
("model.layers.1?.mlp.*"). lm_head, embeddings and vision or audio towers are never adapted.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from .errors import RankspaceError

DEFAULT_TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj",  # attention: Llama, Qwen3, Qwen3.5
    "gate_proj", "up_proj", "down_proj",  # MLP
    "qkv_proj", "gate_up_proj",  # the same in one matrix: Phi-3
    "in_proj_*", "out_proj",  # Qwen3.5 and Qwen3-Next linear attention
)  # fmt: skip
_IN_A_LAYER = re.compile(r"(^|\.)\d+\.")  # model.layers.3., transformer.h.3., blocks.3.
MAY_BE_LEFT_OUT = 0.1  # share of a model's matrices: routers, convolutions and the like
Kind = Literal["antipasto", "pissa_freeze_a"]
PISSA_RANK = 16
EXCLUDED_PARTS = ("lm_head", "embed_out", "visual", "vision", "vision_tower", "vision_model", "audio", "audio_tower")


def delta_size(shape: Sequence[int], kind: Kind = "antipasto") -> int:
    """How many numbers train on a weight [out, in]: its rank r, or out · k for PiSSA with A frozen (pissa.py)."""
    out, inner = shape
    return min(out, inner) if kind == "antipasto" else out * min(PISSA_RANK, out, inner)


def hits(name: str, patterns: Sequence[str] = DEFAULT_TARGETS) -> list[str]:
    """The patterns that the module `name` matches; none when a part of the name is excluded."""
    if set(name.split(".")) & set(EXCLUDED_PARTS):
        return []
    last = name.rsplit(".", 1)[-1]
    return [p for p in patterns if fnmatch.fnmatchcase(name if "." in p else last, p)]


def left_out(shapes: Mapping[str, Sequence[int]]) -> tuple[float, str]:
    """(share of the numbers in the layers' matrices that no adapter would get, name of the largest such matrix).

    shapes: every tensor of a checkpoint. The experts of a mixture are one stacked parameter in the model, whatever the
    checkpoint calls them, and cannot be adapted.
    """
    sizes = {
        name: _product(shape)
        for name, shape in shapes.items()
        if len(shape) >= 2 and _IN_A_LAYER.search(name) and not set(name.split(".")) & set(EXCLUDED_PARTS)
    }
    free = {
        name: size
        for name, size in sizes.items()
        if ".experts." in name or not name.endswith(".weight") or not hits(name.removesuffix(".weight"))
    }
    largest = max(free, key=free.__getitem__, default="")
    return sum(free.values()) / max(sum(sizes.values()), 1), largest


def require_covered(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise RankspaceError when the default targets would leave out more than MAY_BE_LEFT_OUT of a checkpoint's matrices."""
    share, largest = left_out(shapes)
    if share > MAY_BE_LEFT_OUT:
        raise RankspaceError(
            f"{share:.0%} of its matrices would be left without an adapter (the largest: {largest} "
            f"{tuple(shapes[largest])}); the adapter knows {', '.join(DEFAULT_TARGETS)}; take a dense Llama- or Qwen-like model"
        )


def _product(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
