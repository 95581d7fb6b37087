"""The policy loss.

    rho_t  = exp(logp_t − logp_old_t)                    logp_old: as sampled, by the version that sampled
    pg_t   = −min( rho_t A, clip(rho_t, 1 − lo, 1 + hi) A )
           = −max( that min, cap · A )  for A < 0, with a ratio cap: dual clip (Ye et al. 2020, eq. 5)
    kl_t   = exp(d_t) − d_t − 1,  d_t = logp_ref_t − logp_t           k3: unbiased and never negative (Schulman 2020)
    l_t    = pg_t + beta · kl_t

    grpo:     L = 1/N sum_i  1/|o_i| sum_t l_it          N sequences that have a token (Shao et al. 2024, eq. 3)
    dr_grpo:  L = 1/Z sum_i  sum_t l_it                  Z constant: sequences x maximal length (Liu et al. 2025)

Both log differences are clamped to ±20 nats, where their gradient ends: exp stays finite (e^20 = 4.9e8), so one damaged
token can make a loss large but never NaN. Without a cap the weight of a token with A < 0 is rho_t itself, unbounded;
with it the gradient of a token with rho_t > cap is 0.

Identities: on-policy (logp = logp_old) rho = 1 and the gradient is −A ∇logp; logp = logp_ref gives kl = 0 exactly;
A = 0 and beta = 0 give L = 0. A masked token is in neither numerator nor denominator, whatever it holds, even NaN.

Under gradient accumulation pass the whole batch's `normaliser` to every micro-batch; the sum of the micro-losses is
then the loss of the batch (engines that divide by the number of micro-batches need it multiplied back).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .errors import RankspaceError
from .logprobs import completion_logprobs as completion_logprobs  # both were here in 0.1
from .logprobs import linear_logprobs as linear_logprobs

LossKind = Literal["grpo", "dr_grpo"]
MAX_LOG_RATIO = 20.0


def completion_mask(
    lengths: Tensor, width: int, truncated: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """bool [B, width]: True for the first lengths[i] tokens of completion i. By length, never by pad id.

    Args:
        lengths: int [B], tokens of each completion including its EOS.
        truncated: bool [B]; pass it to leave completions that hit the length limit out altogether.
        valid: bool [B]; False (an infra error) leaves the completion out altogether.
    """
    mask = torch.arange(width, device=lengths.device) < lengths[:, None]
    if truncated is not None:
        mask = mask & ~truncated[:, None]
    return mask if valid is None else mask & valid[:, None]


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    kind: LossKind = "grpo",
    normaliser: float | None = None,
    entropy: Tensor | None = None,
    ratio_cap: float | None = None,
    importance_cap: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Clipped policy-gradient loss with a k3 KL penalty.

    Args:
        logprobs: [B, T], differentiable. old_logprobs, ref_logprobs: [B, T]; ref may be None when kl_beta is 0.
        advantages: [B]. mask: bool [B, T]. entropy: [B, T], only reported.
        normaliser: grpo: the number N of sequences (None: those with a token in this call); dr_grpo: the constant Z,
            required, e.g. sequences x max_completion_length. Values below 1 count as 1.
        ratio_cap: dual clip for negative advantages, above 1 + clip_high; None: no cap.
        importance_cap: truncated importance sampling instead of the clip (Yao et al. 2025): the token's gradient is
            −min(rho_t, importance_cap) A ∇logp_t with the weight held constant; clip and ratio_cap then do nothing.

    Returns:
        (loss scalar, metrics floats): `loss`, `ratio_mean`, `ratio_min`, `ratio_max`, `clip_frac` (tokens whose
        gradient the clip stopped), `clip_frac_low`, `clip_frac_high`, `weight_capped`
        (share of the `n_negative` tokens with A < 0 whose weight was capped), `approx_kl_old` (k3 between the sampling and
        the present policy), `kl` (k3 to the reference; 0.0 without one), `entropy`, `n_tokens`, `n_negative`,
        `n_sequences`.

    Raises:
        RankspaceError: shapes, an unknown kind, a missing reference or normaliser, or a log-prob that is not finite
            where the mask is True.
    """
    _check_caps(ratio_cap, importance_cap, clip_high)
    _check_loss_inputs(logprobs, old_logprobs, ref_logprobs, advantages, mask, kl_beta, kind, normaliser)
    zero = torch.zeros((), dtype=logprobs.dtype, device=logprobs.device)
    # where, not a product: 0 · NaN is NaN, and a masked token may hold anything
    logp = torch.where(mask, logprobs, zero)
    log_ratio = (logp - torch.where(mask, old_logprobs, zero)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    A = advantages[:, None].to(logp.dtype)
    per_token = -_objective(ratio, A, logp, (clip_low, clip_high), ratio_cap, importance_cap)
    kl = torch.zeros_like(logp)
    if ref_logprobs is not None:
        d = (torch.where(mask, ref_logprobs, zero) - logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        # expm1: exp(d) − 1 has no digits left for the small d of a young policy
        kl = torch.expm1(d) - d
        per_token = per_token + kl_beta * kl if kl_beta else per_token
    loss = _aggregate(torch.where(mask, per_token, zero), mask, kind, normaliser)
    metrics = _loss_metrics(mask, log_ratio, kl, entropy, loss)
    return loss, metrics | _cap_metrics(mask, ratio, A, clip_low, clip_high, ratio_cap, importance_cap)


def _objective(
    ratio: Tensor,
    A: Tensor,
    logp: Tensor,
    clip: tuple[float, float],
    ratio_cap: float | None,
    importance_cap: float | None,
) -> Tensor:
    """What each token adds to the objective (−pg_t)."""
    if importance_cap is not None:
        # the weight held constant: the gradient is weight · A ∇logp and nothing besides
        return ratio.detach().clamp(max=importance_cap) * A * logp
    objective = torch.minimum(ratio * A, ratio.clamp(1 - clip[0], 1 + clip[1]) * A)
    return objective if ratio_cap is None else torch.where(A < 0, torch.maximum(objective, ratio_cap * A), objective)


def _aggregate(values: Tensor, mask: Tensor, kind: str, normaliser: float | None) -> Tensor:
    if kind == "dr_grpo":
        assert normaliser is not None  # _check_loss_inputs
        return values.sum() / max(float(normaliser), 1.0)
    lengths = mask.sum(dim=1)
    per_sequence = values.sum(dim=1) / lengths.clamp_min(1)
    n = (lengths > 0).sum().clamp_min(1) if normaliser is None else max(float(normaliser), 1.0)
    return per_sequence.sum() / n


@torch.no_grad()
def _loss_metrics(
    mask: Tensor, log_ratio: Tensor, kl: Tensor, entropy: Tensor | None, loss: Tensor
) -> dict[str, float]:
    n = mask.sum().clamp_min(1)
    ratio, some = log_ratio.exp(), mask.any()

    def mean(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0.0).sum() / n

    return _floats(
        {
            "loss": loss,
            "ratio_mean": mean(ratio),
            "ratio_min": torch.where(some, torch.where(mask, ratio, torch.inf).min(), 1.0),
            "ratio_max": torch.where(some, torch.where(mask, ratio, -torch.inf).max(), 1.0),
            "approx_kl_old": mean(torch.expm1(log_ratio) - log_ratio),
            "kl": mean(kl),
            "entropy": mean(entropy) if entropy is not None else torch.zeros_like(loss),
            "n_tokens": mask.sum(),
            "n_sequences": mask.any(dim=1).sum(),
        }
    )


@torch.no_grad()
def _cap_metrics(
    mask: Tensor,
    ratio: Tensor,
    A: Tensor,
    clip_low: float,
    clip_high: float,
    ratio_cap: float | None,
    importance_cap: float | None,
) -> dict[str, float]:
    """Which tokens the clip stopped (shares of all tokens) and the cap held back (share of those with A < 0)."""
    cap = ratio_cap if importance_cap is None else importance_cap
    n, negative = mask.sum().clamp_min(1), mask & (A < 0)
    none = torch.zeros_like(mask)
    clips = importance_cap is None
    low = mask & (ratio < 1 - clip_low) & (A < 0) if clips else none
    high = mask & (ratio > 1 + clip_high) & (A > 0) if clips else none
    capped = none if cap is None else negative & (ratio > cap)
    return _floats(
        {
            "clip_frac": (low | high).sum() / n,
            "clip_frac_low": low.sum() / n,
            "clip_frac_high": high.sum() / n,
            "weight_capped": capped.sum() / negative.sum().clamp_min(1),
            "n_negative": negative.sum(),
        }
    )


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    """One host sync for all of them."""
    return dict(zip(values, torch.stack([v.detach().double() for v in values.values()]).tolist(), strict=True))


def _check_caps(ratio_cap: float | None, importance_cap: float | None, clip_high: float) -> None:
    if ratio_cap is not None and not ratio_cap > 1 + clip_high:
        raise RankspaceError(f"ratio_cap {ratio_cap} must be above 1 + clip_high = {1 + clip_high:g}; None: no cap")
    if importance_cap is not None and not importance_cap > 0:
        raise RankspaceError(f"importance_cap {importance_cap} must be above 0; None: the clip instead")


def _check_loss_inputs(
    logprobs: Tensor,
    old: Tensor,
    ref: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    kl_beta: float,
    kind: str,
    normaliser: float | None,
) -> None:
    if kind not in ("grpo", "dr_grpo"):
        raise RankspaceError(f"loss kind {kind!r} is unknown: choose 'grpo' or 'dr_grpo'")
    if kind == "dr_grpo" and normaliser is None:
        raise RankspaceError("dr_grpo needs `normaliser`: the constant sequences x max_completion_length of the batch")
    if kl_beta and ref is None:
        raise RankspaceError(f"kl_beta {kl_beta} needs ref_logprobs: ask the generator for them or set kl_beta to 0")
    shapes = {"old_logprobs": old, "ref_logprobs": ref, "mask": mask}
    for name, tensor in shapes.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise RankspaceError(
                f"{name} {tuple(tensor.shape)} must have the shape of logprobs {tuple(logprobs.shape)}"
            )
    if mask.dtype != torch.bool or advantages.shape != logprobs.shape[:1]:
        raise RankspaceError(
            f"mask must be bool and advantages [{logprobs.shape[0]}], got {mask.dtype} {tuple(advantages.shape)}"
        )
    sound = torch.isfinite(logprobs.detach()) & torch.isfinite(old)
    sound = sound if ref is None else sound & torch.isfinite(ref)
    if not (sound | ~mask).all() or not torch.isfinite(advantages).all():
        raise RankspaceError("a log-prob or advantage under the mask is NaN or Inf: the policy or a message is damaged")
