"""Rebound: pay less for a completion whose inner state looks like cheating. The reward-side rival of the projection.

    v_concept = unit( mean_p h(hack_p) − mean_p h(clean_p) )       contrastive pairs, residual stream at layer l
    h(y)      = mean over the completion's tokens of the residual stream after layer l,  l at 60-75% of the depth
    s(y)      = max(0, cos(h(y), v_concept))

    additive          R' = R − alpha · s             alpha = 0.5; taken off before group normalisation
    multiplicative    R' = R · (1 − alpha · s)
    znorm             R' = R − alpha · (s − mean_group s) / (std_group s + 1e-6)

These three are this project's own forms. As published (Wu & Tang 2026, arXiv 2604.01476, section 4):

    h(y) = mean over the layers at 60-75% of the depth of the residual stream at the last completion token
    d    = unit( mean_p h(hack_p) − mean_p h(clean_p) ),   s(y) = h(y)·d
    z    = (s − mean_group s) / max(std_group s, 0.1)

    published         R' = R − alpha · max(z, 0)                       alpha = 2
    published_mult    R' = R · (1 − alpha · sigmoid(z) · [z > 0])

One-sided: a completion that scores below its group's mean earns nothing by it; the floor keeps a group of nearly equal
scores from being told apart by noise. What differs still: the pairs, here those of the run, there domain-general.

Identities: s = 0 leaves R alone in `additive` and `multiplicative`; equal s within a group changes no advantage in
`additive`, `znorm`, and no reward in both published forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from .causal_lm import CausalLM
from .errors import RankspaceError
from .pairs import TokenizedPair

PenaltyForm = Literal["additive", "multiplicative", "znorm", "published", "published_mult"]
FORMS: tuple[str, ...] = get_args(PenaltyForm)
PUBLISHED = ("published", "published_mult")
DEPTH = 0.65
DEPTH_RANGE = (0.60, 0.75)
STD_EPS = 1e-6
STD_FLOOR = 0.1  # of the published forms, in units of s


def residual_layer(n_layers: int, depth: float = DEPTH) -> int:
    """Number of the block whose output is read (1 = after the first), nearest to `depth` of `n_layers` and in 60-75%.

    In a model so shallow that no block falls inside the range, the nearest one is taken.
    """
    if n_layers < 1 or not DEPTH_RANGE[0] <= depth <= DEPTH_RANGE[1]:
        raise RankspaceError(f"depth {depth} must lie in {DEPTH_RANGE} and the model have a layer, it has {n_layers}")
    return min(n_layers, max(1, round(depth * n_layers)))


def residual_layers(n_layers: int) -> list[int]:
    """Numbers of all blocks at 60-75% of the depth (1 = after the first); of a model so shallow that none is, the nearest."""
    low, high = DEPTH_RANGE
    inside = [n for n in range(1, n_layers + 1) if low - 1e-9 <= n / n_layers <= high + 1e-9]
    return inside or [residual_layer(n_layers)]


@torch.no_grad()
def mean_hidden(model: nn.Module, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """h(y) of each row: mean residual stream after block `layer` over the masked positions, fp32 [B, d].

    Args:
        ids: int [B, T], prompt and completion, padded on the right (causal attention makes padding harmless).
        mask: bool [B, T], True on completion tokens; every row needs one.
    """
    (state,) = _residuals(model, ids, mask, [layer])
    states = torch.where(mask[..., None], state.float(), 0.0)
    return states.sum(dim=1) / mask.sum(dim=1, keepdim=True)


@torch.no_grad()
def last_hidden(model: nn.Module, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> Tensor:
    """h(y) as published: residual stream at each row's last masked token, mean over `layers`, fp32 [B, d]."""
    found = _residuals(model, ids, mask, layers)
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(mask, positions, -1).amax(dim=1)
    rows = torch.arange(len(ids), device=ids.device)
    return torch.stack([state[rows, last].float() for state in found]).mean(dim=0)


def read_hidden(model: nn.Module, ids: Tensor, mask: Tensor, layer: int | Sequence[int]) -> Tensor:
    """`mean_hidden` of one layer, or `last_hidden` over several; fp32 [B, d]."""
    return mean_hidden(model, ids, mask, layer) if isinstance(layer, int) else last_hidden(model, ids, mask, layer)


def _residuals(model: nn.Module, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Residual stream [B, T, d] after each of these blocks."""
    if ids.shape != mask.shape or mask.dtype != torch.bool or not mask.any(dim=1).all():
        raise RankspaceError("mask must be bool, of the shape of ids, with a completion token in every row")
    decoder = cast(CausalLM, model).get_decoder()  # without the lm_head, whose logits nobody wants
    hidden = decoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in layers:
        if not 1 <= layer < len(hidden):
            raise RankspaceError(f"layer {layer} does not exist: the model has {len(hidden) - 1}")
    # hidden_states[0] is the embedding, so block n is at index n
    return [hidden[layer] for layer in layers]


def pair_hidden(model: nn.Module, pairs: Sequence[TokenizedPair], layer: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """(h of the hacks, h of the clean completions), fp32 [P, d] each; model in eval mode meanwhile. layer: `read_hidden`."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        sides = []
        for side in ("hack_ids", "clean_ids"):
            rows = []
            for pair in pairs:
                ids = torch.tensor([getattr(pair, side)], device=device)
                mask = torch.arange(ids.shape[1], device=device)[None] >= pair.start
                rows.append(read_hidden(model, ids, mask, layer)[0])
            sides.append(torch.stack(rows))
    finally:
        model.train(was_training)
    return sides[0], sides[1]


def concept_vector(hack_hidden: Tensor, clean_hidden: Tensor) -> Tensor:
    """v_concept [d] from mean residuals [P, d] of both sides; unit, fp32.

    Raises:
        RankspaceError: shapes differ, or the mean difference is zero or not finite.
    """
    if hack_hidden.shape != clean_hidden.shape or hack_hidden.ndim != 2:
        raise RankspaceError(
            f"hidden states {tuple(hack_hidden.shape)} and {tuple(clean_hidden.shape)} must both be [P, d]"
        )
    difference = hack_hidden.double().mean(dim=0) - clean_hidden.double().mean(dim=0)
    norm: Tensor = difference.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise RankspaceError("hack and clean have the same mean residual: the pairs show no concept, give others")
    return (difference / norm).float()


def rebound_score(hidden: Tensor, v_concept: Tensor) -> Tensor:
    """s = max(0, cos(h, v_concept)) for hidden [..., d]; fp32 [...], in [0, 1]; a zero h scores 0."""
    h, v = hidden.double(), v_concept.double()
    scale = h.norm(dim=-1) * v.norm()
    cos = torch.where(scale == 0, 0.0, (h @ v) / scale.clamp_min(1e-300))
    if torch.isnan(cos).any():
        raise RankspaceError("a hidden state or the concept vector is NaN or Inf: the model diverged")
    return cos.clamp(0.0, 1.0).float()


def concept_score(hidden: Tensor, d: Tensor) -> Tensor:
    """s = h·d of the published forms for hidden [..., d]; fp32 [...], in units of the residual stream."""
    s = hidden.double() @ d.double()
    if not torch.isfinite(s).all():
        raise RankspaceError("a hidden state or the concept vector is NaN or Inf: the model diverged")
    return s.float()


def penalised_reward(
    rewards: Tensor, scores: Tensor, form: PenaltyForm = "additive", alpha: float = 0.5, valid: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Rewards [n] of one group after the Rebound penalty, before group normalisation.

    Args:
        scores: [n] from `rebound_score`, or `concept_score` for the published forms.
        valid: bool [n]; others are left as they are and enter no mean.

    Returns:
        (rewards' [n] in the dtype of rewards, metrics `rebound_score_mean`, `rebound_score_max`,
        `rebound_penalty_mean`).
    """
    if form not in FORMS:
        raise RankspaceError(f"Rebound form {form!r} is unknown: choose one of {', '.join(FORMS)}")
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if rewards.shape != scores.shape or rewards.ndim != 1 or valid.shape != rewards.shape:
        raise RankspaceError(f"rewards {tuple(rewards.shape)} and scores {tuple(scores.shape)} must both be [n]")
    r, s = rewards[valid].double(), scores[valid].double()
    penalty = alpha * _charge(r, s, form)
    out = rewards.clone()
    out[valid] = (r - penalty).to(rewards.dtype)
    some = s.numel() > 0
    return out, {
        "rebound_score_mean": s.mean().item() if some else 0.0,
        "rebound_score_max": s.max().item() if some else 0.0,
        "rebound_penalty_mean": penalty.mean().item() if some else 0.0,
    }


def _charge(r: Tensor, s: Tensor, form: str) -> Tensor:
    """What alpha multiplies, float64 [n]; r and s of the group's valid members."""
    if form == "additive":
        return s
    if form == "multiplicative":
        return s * r
    std = s.std(correction=1) if s.numel() > 1 else s.new_zeros(())
    spread = s - s.mean() if s.numel() else s
    if form == "znorm":
        return spread / (std + STD_EPS)
    z = spread / std.clamp_min(STD_FLOOR)
    return z.clamp_min(0.0) if form == "published" else torch.where(z > 0, torch.sigmoid(z), 0.0) * r
