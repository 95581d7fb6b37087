"""Group advantages against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankspace import RankspaceError, group_advantages


def test_grpo_by_hand():
    # 0, 3, 3.5, 0.5: mean 1.75, centred −1.75, 1.25, 1.75, −1.25; sum of squares 9.25, std sqrt(9.25/3)
    out, m = group_advantages(torch.tensor([0.0, 3.0, 3.5, 0.5]))
    std = math.sqrt(9.25 / 3)
    assert out.tolist() == pytest.approx([x / std for x in (-1.75, 1.25, 1.75, -1.25)], rel=1e-5)
    assert m == {"n_valid": 4, "reward_mean": 1.75, "reward_std": pytest.approx(std), "zero_variance": False}


def test_dr_grpo_takes_off_the_mean_only():
    out, _ = group_advantages(torch.tensor([0.0, 3.0, 3.5, 0.5]), kind="dr_grpo")
    assert out.tolist() == [-1.75, 1.25, 1.75, -1.25]


def test_an_infra_error_is_in_neither_mean_nor_std():
    rewards = torch.tensor([1.0, float("nan"), 3.0])
    out, m = group_advantages(rewards, torch.tensor([True, False, True]), "dr_grpo")
    assert out.tolist() == [-1.0, 0.0, 1.0]
    assert (m["n_valid"], m["reward_mean"], m["reward_std"]) == (2, 2.0, pytest.approx(math.sqrt(2)))


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        ([2.0, 2.0, 2.0], None),
        ([0.1 + 0.2, 0.3, 0.3], None),  # equal up to float noise
        ([1.0, 5.0], [True, False]),  # one valid member
        ([1.0, 5.0], [False, False]),
        ([], None),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_groups_that_teach_nothing(rewards, valid, kind):
    valid = None if valid is None else torch.tensor(valid)
    out, m = group_advantages(torch.tensor(rewards, dtype=torch.float64), valid, kind)
    assert m["zero_variance"] and not torch.any(out) and out.dtype == torch.float32
    assert math.isfinite(m["reward_mean"]) and math.isfinite(m["reward_std"])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.sampled_from(["grpo", "dr_grpo"]))
def test_valid_advantages_sum_to_zero_and_shift_does_nothing(values, kind):
    rewards = torch.tensor(values, dtype=torch.float64)
    out, m = group_advantages(rewards, kind=kind)
    assert abs(out.double().sum().item()) < 1e-4
    if not m["zero_variance"] and m["reward_std"] > 1e-3:
        shifted, _ = group_advantages(rewards + 7, kind=kind)
        assert torch.allclose(shifted, out, atol=1e-4)
        if kind == "grpo":
            assert out.std().item() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("rewards", "valid", "kind", "message"),
    [
        (torch.zeros(2), None, "ppo", "kind 'ppo' is unknown"),
        (torch.zeros(2), torch.ones(3, dtype=torch.bool), "grpo", r"must both be \[n\]"),
        (torch.zeros(2), torch.ones(2), "grpo", "bool valid"),
        (torch.tensor([0.0, float("nan")]), None, "grpo", "mark infra errors"),
    ],
)
def test_misuse(rewards, valid, kind, message):
    with pytest.raises(RankspaceError, match=message):
        group_advantages(rewards, valid, kind)
