"""Group-relative advantages: a reward becomes an advantage when its group's mean is taken off.

    A_i = (R_i − mean(R)) / (std(R) + 1e-6)        grpo     (Shao et al. 2024, DeepSeekMath, section 4.1)
    A_i =  R_i − mean(R)                           dr_grpo  (Liu et al. 2025, Understanding R1-Zero-Like Training)

mean and std (n − 1 in the denominator, as in verl and TRL) run over the *valid* members only. An infra error is no
reward: it enters neither, and its own advantage is 0. Identity: equal rewards give exactly 0, by max − min < eps, not
by dividing float noise through float noise; a group with fewer than two valid members is of that kind.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .errors import RankspaceError

AdvantageKind = Literal["grpo", "dr_grpo"]
STD_EPS = 1e-6
ZERO_VARIANCE_EPS = 1e-8


def group_advantages(
    rewards: Tensor, valid: Tensor | None = None, kind: AdvantageKind = "grpo", eps: float = ZERO_VARIANCE_EPS
) -> tuple[Tensor, dict[str, Any]]:
    """Advantages of one group.

    Args:
        rewards: [n] floating; entries where `valid` is False are ignored and may be NaN.
        valid: bool [n]; None means all.
        eps: rewards whose max − min lies below it count as equal.

    Returns:
        (advantages fp32 [n], metrics): `n_valid`, `reward_mean`, `reward_std` (NaN-free; 0.0 when undefined),
        `zero_variance` (True: the group teaches nothing, skip and count it).

    Raises:
        RankspaceError: unknown kind, shapes that differ, a valid reward that is NaN or Inf.
    """
    if kind not in ("grpo", "dr_grpo"):
        raise RankspaceError(f"advantage kind {kind!r} is unknown: choose 'grpo' or 'dr_grpo'")
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if rewards.ndim != 1 or valid.shape != rewards.shape or valid.dtype != torch.bool:
        raise RankspaceError(f"rewards {tuple(rewards.shape)} and bool valid {tuple(valid.shape)} must both be [n]")
    kept = rewards[valid].double()
    if not torch.isfinite(kept).all():
        raise RankspaceError("a valid reward is NaN or Inf: mark infra errors in `valid` instead of scoring them")
    n = kept.numel()
    advantages = torch.zeros(rewards.shape, dtype=torch.float32, device=rewards.device)
    mean = kept.mean().item() if n else 0.0
    std = kept.std(correction=1).item() if n > 1 else 0.0
    zero_variance = n < 2 or (kept.max() - kept.min()).item() < eps
    if not zero_variance:
        centred = kept - kept.mean()
        advantages[valid] = (centred / (std + STD_EPS) if kind == "grpo" else centred).float()
    return advantages, {"n_valid": n, "reward_mean": mean, "reward_std": std, "zero_variance": zero_variance}
