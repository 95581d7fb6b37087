"""The contrastive loss on pairs: hand-worked values, its gradient at the start, the pairs it draws."""

from __future__ import annotations

import math

import pytest
import torch

import rankspace
from rankspace.batch import batch_logprobs
from rankspace.dpo import PairContrast, contrastive_loss
from rankspace.errors import RankspaceError
from rankspace.pairs import TokenizedPair

PAIRS = [
    TokenizedPair("a", [5, 9, 2, 7, 1], [5, 9, 3, 3], 2),
    TokenizedPair("b", [8, 1, 4, 4, 6, 2], [8, 1, 9], 2),
    TokenizedPair("c", [3, 2, 2], [3, 8, 8, 8], 1),
]


def test_the_loss_by_hand():
    # margins .5·((−3 + 4) − (−2 + 1)) = 1 and .5·((−1 + 1) − (−6 + 2)) = 2
    clean, hack = torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -6.0])
    clean_0, hack_0 = torch.tensor([-4.0, -1.0]), torch.tensor([-1.0, -2.0])
    want = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert float(contrastive_loss(clean, hack, clean_0, hack_0, 0.5)) == pytest.approx(want)


def made(tiny_qwen3, at_once=3, gamma=0.1, seed=0):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    return model, adapter, PairContrast(model, adapter, PAIRS, gamma, at_once, seed)


def test_at_the_start_it_is_log_2_and_pulls_towards_clean(tiny_qwen3):
    model, adapter, contrast = made(tiny_qwen3)
    loss = contrast.loss(lambda b: batch_logprobs(model, b)[0], 0)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    total = torch.zeros_like(found)
    for pair in PAIRS:  # −γ/2 · mean of ∇(log π(clean) − log π(hack)), each completion by itself
        for ids, sign in ((pair.clean_ids, 1), (pair.hack_ids, -1)):
            logits = model(input_ids=torch.tensor([ids])).logits[0, pair.start - 1 : -1]
            picked = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids[pair.start :])[:, None]).sum()
            grads = torch.autograd.grad(picked, adapter.parameters())
            total += -0.05 * sign / 3 * torch.cat([g.flatten() for g in grads])
    assert torch.allclose(found, total, atol=1e-6, rtol=1e-4) and found.norm() > 1e-4


def test_its_reference_is_the_base_model_wherever_delta_s_stands(tiny_qwen3):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    before = PairContrast(model, adapter, PAIRS, 0.1, 2, 0).reference
    adapter.set_flat(0.1 * torch.randn(sum(r for _, r in adapter.modules), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(PairContrast(model, adapter, PAIRS, 0.1, 2, 0).reference, before)


def test_a_step_draws_the_same_pairs_again_and_others_draw_others(tiny_qwen3):
    _, _, contrast = made(tiny_qwen3, at_once=2)
    drawn = [contrast.drawn(step) for step in range(12)]
    assert drawn == [contrast.drawn(step) for step in range(12)]
    assert {place for one in drawn for place in one} == {0, 1, 2} and all(len(set(one)) == 2 for one in drawn)
    assert drawn != [made(tiny_qwen3, at_once=2, seed=1)[2].drawn(step) for step in range(12)]


def test_more_pairs_than_there_are_is_refused(tiny_qwen3):
    with pytest.raises(RankspaceError, match="wants 4 pairs a step, the file has 3"):
        made(tiny_qwen3, at_once=4)
