"""Policy loss and selective log-softmax against hand-worked numbers and torch's own functions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rankspace import RankspaceError, completion_logprobs, completion_mask, policy_loss

T, F_ = True, False


def test_clipping_by_hand():
    # ratios 1.5 and 0.5 with A = +1 and −1; clip 0.2
    logp = torch.tensor([[math.log(1.5), math.log(0.5)], [math.log(1.5), math.log(0.5)]], requires_grad=True)
    loss, m = policy_loss(logp, torch.zeros(2, 2), None, torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool))
    # row 1: −min(1.5, 1.2), −min(0.5, 0.8); row 2: −min(−1.5, −1.2), −min(−0.5, −0.8)
    assert loss.item() == pytest.approx(((-1.2 - 0.5) / 2 + (1.5 + 0.8) / 2) / 2)
    loss.backward()
    # only the unclipped entries have a gradient: −A·ratio / (2 tokens · 2 sequences)
    assert logp.grad.flatten().tolist() == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])
    assert m["clip_frac"] == 0.5 and m["clip_frac_low"] == 0.25 and m["clip_frac_high"] == 0.25
    assert (m["ratio_mean"], m["ratio_min"], m["ratio_max"]) == pytest.approx((1.0, 0.5, 1.5))


def test_asymmetric_clip():
    logp = torch.tensor([[math.log(1.25)]])
    one = torch.ones(1, 1, dtype=torch.bool)
    assert policy_loss(logp, torch.zeros(1, 1), None, torch.ones(1), one, 0.2, 0.28)[0].item() == pytest.approx(-1.25)
    assert policy_loss(logp, torch.zeros(1, 1), None, torch.ones(1), one, 0.2, 0.2)[0].item() == pytest.approx(-1.2)


def test_aggregation_by_hand():
    # on-policy: every token's loss is −A. Row 1 has 1 token and A = 2, row 2 has 3 tokens and A = −1
    lp = torch.zeros(2, 3)
    mask, A = torch.tensor([[T, F_, F_], [T, T, T]]), torch.tensor([2.0, -1.0])
    assert policy_loss(lp, lp, None, A, mask)[0].item() == pytest.approx((-2 + 1) / 2)
    assert policy_loss(lp, lp, None, A, mask, normaliser=8)[0].item() == pytest.approx((-2 + 1) / 8)
    loss, m = policy_loss(lp, lp, None, A, mask, kind="dr_grpo", normaliser=2 * 5)
    assert loss.item() == pytest.approx((-2 + 3) / 10) and (m["n_tokens"], m["n_sequences"]) == (4, 2)


def test_k3_by_hand_and_zero_against_itself():
    lp, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    k3 = [math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1.0 - 1]
    loss, m = policy_loss(lp, lp, ref, torch.zeros(1), mask, kl_beta=0.1)
    assert m["kl"] == pytest.approx(sum(k3) / 2) and loss.item() == pytest.approx(0.1 * sum(k3) / 2)
    loss, m = policy_loss(lp, lp, lp, torch.zeros(1), mask, kl_beta=0.1)
    assert loss.item() == 0.0 and m["kl"] == 0.0
    _, m = policy_loss(lp, lp, ref, torch.zeros(1), mask)  # beta 0: measured all the same
    assert m["kl"] == pytest.approx(sum(k3) / 2)


def test_approx_kl_old_is_k3_of_sampler_to_policy():
    lp, old = torch.tensor([[-1.0]]), torch.tensor([[-1.3]])
    _, m = policy_loss(lp, old, None, torch.ones(1), torch.ones(1, 1, dtype=torch.bool))
    assert m["approx_kl_old"] == pytest.approx(math.exp(0.3) - 1 - 0.3, rel=1e-4)


def test_on_policy_gradient_is_minus_advantage_over_length():
    lp = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[T, T, F_], [T, F_, F_]])
    policy_loss(lp, lp.detach(), None, torch.tensor([2.0, -3.0]), mask)[0].backward()
    assert lp.grad.tolist() == [pytest.approx(x) for x in ([-0.5, -0.5, 0.0], [1.5, 0.0, 0.0])]


def test_a_masked_token_is_nowhere_even_if_nan():
    torch.manual_seed(0)
    clean, mask = torch.randn(2, 4), torch.tensor([[T, T, F_, F_], [T, T, T, F_]])
    dirty = clean.masked_fill(~mask, float("nan")).requires_grad_()
    A = torch.tensor([1.0, -1.0])
    args = (A, mask, 0.2, 0.2, 0.1)
    want, n = policy_loss(clean, clean * 0.9, clean * 1.1, *args, entropy=clean.abs())
    nan = dirty.detach()
    got, m = policy_loss(dirty, nan * 0.9, nan * 1.1, *args, entropy=nan.abs())
    got.backward()
    assert got.item() == want.item() and m == n
    assert torch.isfinite(dirty.grad).all() and not torch.any(dirty.grad[~mask])


def test_truncated_and_invalid_completions_leave_numerator_and_denominator():
    lengths, cut = torch.tensor([2, 3, 1]), torch.tensor([F_, T, F_])
    mask = completion_mask(lengths, 3, truncated=cut, valid=torch.tensor([T, T, F_]))
    assert mask.tolist() == [[T, T, F_], [F_, F_, F_], [F_, F_, F_]]
    lp = torch.zeros(3, 3)
    loss, m = policy_loss(lp, lp, None, torch.tensor([1.0, 50.0, 50.0]), mask)
    assert loss.item() == -1.0 and (m["n_sequences"], m["n_tokens"]) == (1, 2)


def test_nothing_left_is_a_zero_loss_with_a_gradient():
    lp = torch.zeros(2, 3, requires_grad=True)
    loss, m = policy_loss(lp, lp.detach(), None, torch.ones(2), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0 and not torch.any(lp.grad) and (m["ratio_min"], m["n_tokens"]) == (1.0, 0)


def test_the_mask_goes_by_length_not_by_pad_id():
    assert completion_mask(torch.tensor([0, 2]), 3).tolist() == [[F_, F_, F_], [T, T, F_]]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_micro_batches_sum_to_the_batch(kind):
    torch.manual_seed(1)
    lp, old, ref, A = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5), torch.randn(4)
    mask = completion_mask(torch.tensor([5, 1, 3, 2]), 5)
    z = 4 if kind == "grpo" else 4 * 5
    whole, _ = policy_loss(lp, old, ref, A, mask, kl_beta=0.1, kind=kind, normaliser=z)
    parts = [
        policy_loss(*(x[i : i + 2] for x in (lp, old, ref, A, mask)), kl_beta=0.1, kind=kind, normaliser=z)[0]
        for i in (0, 2)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ppo"}, "loss kind 'ppo' is unknown"),
        ({"kind": "dr_grpo"}, "dr_grpo needs `normaliser`"),
        ({"kl_beta": 0.1}, "needs ref_logprobs"),
        ({"old_logprobs": torch.zeros(2, 4)}, "old_logprobs .* must have the shape"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool"),
        ({"old_logprobs": torch.full((2, 3), -torch.inf)}, "NaN or Inf"),
        ({"advantages": torch.tensor([0.0, torch.nan])}, "NaN or Inf"),
    ],
)
def test_misuse(change, message):
    good = {
        "logprobs": torch.zeros(2, 3), "old_logprobs": torch.zeros(2, 3), "ref_logprobs": None,
        "advantages": torch.zeros(2), "mask": torch.ones(2, 3, dtype=torch.bool),
    }  # fmt: skip
    with pytest.raises(RankspaceError, match=message):
        policy_loss(**(good | change))


@given(st.integers(1, 9), st.integers(2, 30), st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_logprobs_entropy_and_gradient_equal_torch(rows, vocab, temperature, chunk, seed):
    torch.manual_seed(seed)
    logits = (3 * torch.randn(rows, vocab, dtype=torch.float64)).requires_grad_()
    ids, weight = torch.randint(0, vocab, (rows,)), torch.randn(rows, dtype=torch.float64)
    want = F.log_softmax(logits / temperature, dim=-1)
    (want.gather(-1, ids[:, None]).squeeze(-1) * weight).sum().backward()
    grad, logits.grad = logits.grad, None
    got, entropy = completion_logprobs(logits, ids, temperature, chunk)
    (got * weight).sum().backward()
    assert torch.allclose(got, want.gather(-1, ids[:, None]).squeeze(-1)) and torch.allclose(logits.grad, grad)
    assert torch.allclose(entropy, -(want.exp() * want).sum(-1)) and not entropy.requires_grad


def test_bf16_logits_are_summed_in_fp32_and_keep_their_gradient_dtype():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5000, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(0, 5000, (2, 3))
    got, _ = completion_logprobs(logits, ids)
    want = F.log_softmax(logits.detach().double(), dim=-1).gather(-1, ids[..., None]).squeeze(-1)
    assert got.dtype == torch.float32 and (got - want).abs().max() < 1e-5
    got.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_no_fp32_copy_of_the_logits_is_kept():
    logits = torch.randn(64, 1000, dtype=torch.bfloat16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        completion_logprobs(logits, torch.zeros(64, dtype=torch.long), rows_per_chunk=8)
    assert all(t.numel() < 1000 or t.dtype == torch.bfloat16 for t in saved) and saved


def test_masked_logits_do_not_make_the_entropy_nan():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    logprobs, entropy = completion_logprobs(logits, torch.tensor([1]))
    assert logprobs.item() == pytest.approx(-math.log(2)) and entropy.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("ids", "temperature", "message"),
    [([0, 1], 1.0, "do not fit"), ([0, 1, 7], 1.0, "outside the vocabulary"), ([0, 1, 2], 0.0, "temperature 0.0")],
)
def test_logprob_misuse(ids, temperature, message):
    with pytest.raises(RankspaceError, match=message):
        completion_logprobs(torch.zeros(3, 7), torch.tensor(ids), temperature)


@pytest.mark.parametrize(
    ("ratio", "advantage", "want"),  # weight of the token's gradient, −A·weight
    [(2.0, -1.0, 2.0), (9.0, -1.0, 9.0), (28.0, -1.0, 0.0), (28.0, 1.0, 0.0), (1.1, 1.0, -1.1), (0.5, -1.0, 0.0)],
)
def test_dual_clip_ends_the_gradient_of_a_negative_advantage_beyond_the_cap(ratio, advantage, want):
    logp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    A, mask = torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool)
    loss, m = policy_loss(logp, torch.zeros(1, 1), None, A, mask, ratio_cap=10.0)
    loss.backward()
    assert logp.grad.item() == pytest.approx(want, abs=1e-6)
    if ratio > 10 and advantage < 0:
        assert loss.item() == pytest.approx(10.0) and m["weight_capped"] == 1.0


def test_weight_capped_counts_tokens_of_negative_rows_only():
    logp = torch.log(torch.tensor([[28.0, 1.0], [28.0, 28.0]]))
    mask = torch.ones(2, 2, dtype=torch.bool)
    _, m = policy_loss(logp, torch.zeros(2, 2), None, torch.tensor([-1.0, 1.0]), mask, ratio_cap=10.0)
    assert (m["weight_capped"], m["n_negative"], m["clip_frac"]) == (0.5, 2.0, 0.5)
    assert policy_loss(logp, torch.zeros(2, 2), None, torch.tensor([-1.0, 1.0]), mask)[1]["weight_capped"] == 0.0


@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("gap", [90.0, 2000.0, -2000.0])
def test_no_log_ratio_makes_a_loss_or_gradient_that_is_not_finite(advantage, kl_beta, gap):
    logp = torch.tensor([[-0.1, -0.2]], requires_grad=True)
    other = logp.detach() - torch.tensor([[gap, 0.0]])
    A, mask = torch.tensor([advantage]), torch.ones(1, 2, dtype=torch.bool)
    loss, m = policy_loss(logp, other, other, A, mask, kl_beta=kl_beta)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all() and all(map(math.isfinite, m.values()))


def test_truncated_importance_sampling_by_hand():
    # weights min(ratio, 2): 2, 0.5 and, for A < 0, 2 and 0.5; the gradient is −A·weight over 2 tokens and 2 sequences
    logp = torch.log(torch.tensor([[3.0, 0.5], [3.0, 0.5]])).requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, m = policy_loss(logp, torch.zeros(2, 2), None, torch.tensor([1.0, -1.0]), mask, importance_cap=2.0)
    loss.backward()
    assert logp.grad.flatten().tolist() == pytest.approx([-0.5, -0.125, 0.5, 0.125])
    assert (m["weight_capped"], m["clip_frac"]) == (0.5, 0.0)


def test_caps_that_make_no_sense_are_refused():
    one = torch.ones(1, 1)
    for change in ({"ratio_cap": 1.1}, {"importance_cap": 0.0}):
        with pytest.raises(RankspaceError, match=next(iter(change))):
            policy_loss(one, one, None, torch.ones(1), one > 0, **change)
