"""Padded batches: log-probs equal those of each sequence alone, by length and never by pad id."""

import pytest
import torch
from torch.nn import functional as F

from rankspace import RankspaceError
from rankspace.batch import batch_logprobs, pad_batch

PROMPTS = [[3, 4, 5], [6], [7, 8]]
COMPLETIONS = [[9, 10], [11, 12, 13, 0], []]  # a real token 0, the pad id; and an empty completion


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen3_5"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_each_sequence_alone(make, family, temperature):
    model = make(family)
    batch = pad_batch(PROMPTS, COMPLETIONS)
    with torch.no_grad():
        logprobs, entropy = batch_logprobs(model, batch, temperature)
        for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            n = len(completion)
            assert not torch.any(logprobs[i, n:]) and batch.mask[i].sum() == n
            if not n:
                continue
            alone = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            table = F.log_softmax(alone / temperature, dim=-1)
            assert torch.allclose(logprobs[i, :n], table[range(n), completion], atol=1e-5)
            assert torch.allclose(entropy[i, :n], -(table.exp() * table).sum(-1), atol=1e-5)


def test_gradient_reaches_the_model_only_through_completions(make):
    model = make("qwen3")
    logprobs, entropy = batch_logprobs(model, pad_batch(PROMPTS, COMPLETIONS))
    logprobs.sum().backward()
    assert torch.any(model.model.layers[0].mlp.up_proj.weight.grad) and not entropy.requires_grad


@pytest.mark.parametrize(("prompts", "completions"), [([], []), ([[]], [[1]]), ([[1]], [[1], [2]])])
def test_misuse(prompts, completions):
    with pytest.raises(RankspaceError, match="non-empty prompts"):
        pad_batch(prompts, completions)
