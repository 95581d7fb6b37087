"""Which modules get an adapter, by name alone; needs no torch, so that a model can be checked from its file headers.

A pattern without a dot matches the last part of a module's name ("q_proj", "in_proj_*"), with a dot the whole name
("model.layers.1?.mlp.*"). lm_head, embeddings and vision or audio towers are never adapted.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

DEFAULT_TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj",  # attention: Llama, Qwen3, Qwen3.5
    "gate_proj", "up_proj", "down_proj",  # MLP
    "in_proj_*", "out_proj",  # Qwen3.5 and Qwen3-Next linear attention
)  # fmt: skip
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
