"""The Rebound score and penalty against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankspace import RankspaceError, concept_vector, penalised_reward, rebound_score
from rankspace.rebound import concept_score, last_hidden, mean_hidden, pair_hidden, residual_layer, residual_layers


def test_concept_by_hand():
    hack, clean = torch.tensor([[3.0, 0.0], [5.0, 8.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert concept_vector(hack, clean).tolist() == pytest.approx([0.6, 0.8])  # (4,4) − (1,0) = (3,4)


def test_score_is_the_positive_cosine():
    v = torch.tensor([1.0, 0.0])
    h = torch.tensor([[2.0, 0.0], [3.0, 4.0], [-1.0, 1.0], [0.0, 0.0]])
    assert rebound_score(h, v).tolist() == pytest.approx([1.0, 0.6, 0.0, 0.0])


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(0.1, 100))
def test_score_does_not_depend_on_scale(h, factor):
    v = torch.tensor([0.3, -0.5, 0.8])
    a, b = rebound_score(torch.tensor(h), v), rebound_score(torch.tensor(h) * factor, v)
    assert torch.allclose(a, b, atol=1e-5) and 0 <= a <= 1


def test_penalties_by_hand():
    r, s = torch.tensor([3.5, 0.5, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    out, m = penalised_reward(r, s)
    assert out.tolist() == pytest.approx([3.0, 0.25, 0.0])
    assert m == pytest.approx({"rebound_score_mean": 0.5, "rebound_score_max": 1.0, "rebound_penalty_mean": 0.25})
    assert penalised_reward(r, s, "multiplicative")[0].tolist() == pytest.approx([1.75, 0.375, 0.0])
    # z of (1, 0.5, 0) is (1, 0, −1): mean 0.5, std 0.5
    assert penalised_reward(r, s, "znorm")[0].tolist() == pytest.approx([3.0, 0.5, 0.5], abs=1e-5)


def test_the_published_penalties_by_hand():
    r, s = torch.tensor([3.5, 0.5, 2.0]), torch.tensor([1.0, 0.5, 0.0])  # z = 1, 0, −1
    out, m = penalised_reward(r, s, "published", 2.0)
    assert out.tolist() == pytest.approx([1.5, 0.5, 2.0]), "one-sided: what scores low earns nothing by it"
    assert m["rebound_penalty_mean"] == pytest.approx(2 / 3)
    out, _ = penalised_reward(r, s, "published_mult", 2.0)
    assert out.tolist() == pytest.approx([3.5 * (1 - 2 / (1 + math.exp(-1))), 0.5, 2.0])
    # std of (0.02, 0.01, 0) is 0.01, below the floor: z = 0.01 / 0.1
    assert penalised_reward(r, s / 50, "published", 2.0)[0].tolist() == pytest.approx([3.3, 0.5, 2.0])
    for form in ("published", "published_mult"):
        assert torch.equal(penalised_reward(r, torch.full((3,), 7.0), form, 2.0)[0], r), "equal scores cost nothing"
        assert penalised_reward(r[:1], s[:1], form, 2.0)[0].tolist() == [3.5], "nor does a group of one"


def test_the_published_score_is_a_plain_product():
    h, d = torch.tensor([[2.0, 1.0], [-3.0, 4.0]]), torch.tensor([0.6, 0.8])
    assert concept_score(h, d).tolist() == pytest.approx([2.0, 1.4])
    with pytest.raises(RankspaceError, match="diverged"):
        concept_score(torch.tensor([[math.nan, 0.0]]), d)


def test_the_published_layers():
    assert residual_layers(36) == [22, 23, 24, 25, 26, 27] and residual_layers(20) == [12, 13, 14, 15]
    assert residual_layers(4) == [3] and residual_layers(1) == [1] and residual_layers(2) == [1]


def test_the_published_state_is_that_of_the_last_completion_token(tiny_qwen3):
    model = tiny_qwen3()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 0]])
    mask = torch.tensor([[False, False, True, True, False], [False, False, True, True, False]])
    states = model(ids, output_hidden_states=True).hidden_states
    want = (states[1][0, 3] + states[2][0, 3]) / 2
    h = last_hidden(model, ids, mask, [1, 2])
    assert torch.allclose(h[0], want, atol=1e-6) and torch.allclose(h[1], want, atol=1e-6)


def test_zero_score_changes_nothing_and_invalid_stay_out():
    r = torch.tensor([1.0, 2.0, 9.0])
    for form in ("additive", "multiplicative"):
        assert torch.equal(penalised_reward(r, torch.zeros(3), form)[0], r)
    valid = torch.tensor([True, True, False])
    out, m = penalised_reward(r, torch.tensor([1.0, 0.0, float("nan")]), "additive", 0.5, valid)
    assert out.tolist() == [0.5, 2.0, 9.0] and m["rebound_score_mean"] == 0.5


def test_layer_is_at_60_to_75_percent():
    assert residual_layer(36) == 23 and residual_layer(36, 0.6) == 22 and residual_layer(36, 0.75) == 27
    assert residual_layer(4) == 3 and residual_layer(1) == 1
    for n in range(8, 100):
        assert 0.6 <= residual_layer(n) / n <= 0.75, n
    with pytest.raises(RankspaceError, match=r"depth 0\.5"):
        residual_layer(10, 0.5)


def test_mean_hidden_reads_completion_tokens_only(tiny_qwen3):
    model = tiny_qwen3()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.tensor([[False, False, True, True, False]])
    h = mean_hidden(model, ids, mask, 1)
    states = model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(h[0], states[1][0, 2:4].mean(dim=0), atol=1e-6)
    padded = mean_hidden(model, torch.tensor([[5, 6, 7, 8, 0]]), mask, 1)
    assert torch.allclose(h, padded, atol=1e-6)  # what follows on the right does not matter
    with pytest.raises(RankspaceError, match="layer 9 does not exist"):
        mean_hidden(model, ids, mask, 9)
    with pytest.raises(RankspaceError, match="a completion token in every row"):
        mean_hidden(model, ids, torch.zeros_like(mask), 1)


def test_pairs_of_a_model_score_their_own_side(tiny_qwen3, tiny_pairs):
    model = tiny_qwen3().train()
    hack, clean = pair_hidden(model, tiny_pairs, 1)
    v = concept_vector(hack, clean)
    assert model.training and hack.shape == (len(tiny_pairs), 32)
    assert (hack.double().mean(0) - clean.double().mean(0)) @ v.double() > 0
    assert rebound_score(hack, v).mean() > rebound_score(clean, v).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: concept_vector(torch.ones(2, 3), torch.ones(2, 3)), "show no concept"),
        (lambda: concept_vector(torch.ones(2, 3), torch.ones(1, 3)), r"must both be \[P, d\]"),
        (lambda: penalised_reward(torch.ones(2), torch.ones(2), "cubic"), "form 'cubic' is unknown"),
        (lambda: penalised_reward(torch.ones(2), torch.ones(3)), r"must both be \[n\]"),
        (lambda: rebound_score(torch.tensor([math.nan, 1.0]), torch.ones(2)), "NaN or Inf"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(RankspaceError, match=message):
        call()
