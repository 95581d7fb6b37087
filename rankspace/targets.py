"""Which modules get an adapter, by name alone; needs no torch, so that a model can be checked from its file headers.

A pattern without a dot matches the last part of a module's name ("q_proj", "in_proj_*"), with a dot the whole name
("model.layers.1?.mlp.*"). lm_head, embeddings and vision or audio towers are never adapted.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

DEFAULT_TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj",  # attention: Llama, Qwen3, Qwen3.5
    "gate_proj", "up_proj", "down_proj",  # MLP
    "in_proj_*", "out_proj",  # Qwen3.5 and Qwen3-Next linear attention
)  # fmt: skip
EXCLUDED_PARTS = ("lm_head", "embed_out", "visual", "vision", "vision_tower", "vision_model", "audio", "audio_tower")


def hits(name: str, patterns: Sequence[str] = DEFAULT_TARGETS) -> list[str]:
    """The patterns that the module `name` matches; none when a part of the name is excluded."""
    if set(name.split(".")) & set(EXCLUDED_PARTS):
        return []
    last = name.rsplit(".", 1)[-1]
    return [p for p in patterns if fnmatch.fnmatchcase(name if "." in p else last, p)]
