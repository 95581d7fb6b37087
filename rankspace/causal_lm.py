"""What is asked of a Hugging Face causal LM beyond nn.Module. transformers itself is not imported."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class CausalLM(Protocol):
    """`get_decoder()` ends in the last hidden state; `get_output_embeddings()` is the lm_head."""

    def get_decoder(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module: ...
