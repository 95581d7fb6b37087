"""Tiny models made from scratch, one thread."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def _qwen3(dtype=torch.float32, **changes):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    config = Qwen3Config(**({"vocab_size": 64, "num_hidden_layers": 2} | shape | changes))
    return Qwen3ForCausalLM(config).to(dtype).eval()


def _llama(dtype=torch.float32):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def _qwen3_5(dtype=torch.float32):
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, layer_types=["linear_attention"] * 3 + ["full_attention"],
    )  # fmt: skip
    return Qwen3_5ForCausalLM(config).to(dtype).eval()


def _qwen3_next(dtype=torch.float32):
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).to(dtype).eval()


MAKERS = {"qwen3": _qwen3, "llama": _llama, "qwen3_5": _qwen3_5, "qwen3_next": _qwen3_next}


@pytest.fixture
def make():
    """make(family, dtype=fp32) -> a tiny causal LM in eval mode, the same weights each time."""
    return lambda family, *args: MAKERS[family](*args)


@pytest.fixture
def tiny_qwen3():
    return _qwen3


@pytest.fixture
def tiny_pairs():
    """Eight pairs of token ids whose hacks are of ids 40-49 and clean completions of ids 20-29."""
    from rankspace import TokenizedPair

    g = torch.Generator().manual_seed(5)

    def draw(low: int, high: int, n: int) -> list[int]:
        return torch.randint(low, high, (n,), generator=g).tolist()

    pairs = []
    for i in range(8):
        prompt = draw(1, 20, 4)
        pairs.append(TokenizedPair(f"p{i}", prompt + draw(40, 50, 5), prompt + draw(20, 30, 6), len(prompt)))
    return pairs
