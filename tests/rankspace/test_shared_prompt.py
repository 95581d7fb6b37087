"""One row for all completions of a prompt: the same log-probs and gradients, and no completion sees another."""

import pytest
import torch

import rankspace
from rankspace import RankspaceError
from rankspace.batch import batch_logprobs, pad_batch
from rankspace.shared_prompt import LONGEST, share_batch, together, why_not

PROMPTS = [[3, 1, 4], [3, 1, 4], [3, 1, 4], [1, 5], [9, 2, 6, 5]]
COMPLETIONS = [[7, 8], [10, 11, 12], [13], [14, 15, 16, 17], [18, 19]]


def test_the_layout_of_two_prompts_by_hand():
    batch = share_batch([[1, 2], [1, 2], [3]], [[4], [5, 6], [7, 8]])
    assert batch.input_ids.tolist() == [[1, 2, 4, 5, 6], [3, 7, 8, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3], [0, 1, 2, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.token_ids.tolist() == [[4, 0], [5, 6], [7, 8]]
    # 4 and 5 are predicted where the prompt ends; 6 where 5 stands
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)) == [
        (0, 1),
        (0, 1),
        (0, 3),
        (1, 0),
        (1, 1),
    ]
    assert batch.sees[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1],
    ]  # fmt: skip
    assert batch.sees[1, 0].any(dim=-1).all(), "a position that sees nothing is NaN"
    assert not batch.sees[1, 0, 3:, :3].any(), "padding must not read what a gradient would then flow into"


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_and_gradients_are_those_of_rows_of_their_own(make, family, temperature):
    found = []
    for lay_out in (pad_batch, share_batch):
        model = make(family, torch.float64)
        adapter = rankspace.attach(model, svd_cache_dir=None)
        logprobs, entropy = batch_logprobs(model, lay_out(PROMPTS, COMPLETIONS), temperature)
        weights = torch.arange(logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs) + 1
        (logprobs * weights).sum().backward()
        found.append((logprobs.detach(), entropy, torch.cat([p.grad.flatten() for p in adapter.parameters()])))
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-7)
    assert found[0][2].abs().max() > 1e-3


def test_no_completion_sees_a_sibling(make):
    model = make("qwen3")
    other = [[30, 31], *COMPLETIONS[1:]]
    with torch.no_grad():
        before, after = (batch_logprobs(model, share_batch(PROMPTS, c))[0] for c in (COMPLETIONS, other))
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("family, reason", [
    ("qwen3", ""), ("llama", ""), ("qwen3_5", "layers of the kind linear_attention"),
    ("qwen3_next", "layers of the kind linear_attention"),
])  # fmt: skip
def test_models_with_other_layers_are_told_apart(make, family, reason):
    assert (reason in why_not(make(family))) and bool(why_not(make(family))) == bool(reason)


def test_a_window_longer_than_the_trial_is_read_from_the_configuration(make):
    model = make("llama")
    model.config.layer_types, model.config.sliding_window = None, 4096
    assert "sliding window" in why_not(model)


def test_a_model_that_ignores_the_mask_is_found_out(make, monkeypatch):
    model = make("qwen3")
    decoder = model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda attention_mask=None, **given: forward(**given))
    assert "in a shared row differ by" in why_not(model)


def test_a_model_that_refuses_the_mask_says_so(make, monkeypatch):
    model = make("qwen3")
    forward = model.get_decoder().forward
    monkeypatch.setattr(
        model.get_decoder(), "forward", lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    )
    assert "takes no mask of this shape" in why_not(model)


def test_rows_are_bounded_in_number_and_length():
    assert together([[1]] * 5, [2] * 5, most=2) == [[0, 1], [2, 3], [4]]
    assert together([[1], [1], [2], [1]], [2] * 4) == [[0, 1], [2], [3]]
    assert together([[1] * 96] * 3, [2000] * 3) == [[0, 1], [2]]  # 96 + 2 x 2,000 = LONGEST
    assert LONGEST == 96 + 2 * 2000 and together([[1] * 97] * 3, [2000] * 3) == [[0], [1], [2]]
    assert together([[1]] * 2, [LONGEST] * 2) == [[0], [1]], "a completion too long to share has a row of its own"


def test_an_empty_prompt_is_refused_as_in_rows_of_their_own():
    with pytest.raises(RankspaceError, match="non-empty prompts"):
        share_batch([[]], [[1]])
