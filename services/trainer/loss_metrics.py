"""Metrics of a step's micro-batches, of all ranks, as one; and the refusal of a loss that is no number. Pure."""

from __future__ import annotations

import math
from typing import Any


def mean_by_tokens(losses: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of all ranks' micro-batches as one; per-token means are weighted by tokens."""
    tokens = [m["n_tokens"] for m in losses]
    total = max(sum(tokens), 1.0)
    out = {
        k: sum(m[k] * n for m, n in zip(losses, tokens, strict=True)) / total
        for k in ("ratio_mean", "clip_frac", "kl", "entropy")
    }
    negative = sum(m["n_negative"] for m in losses)
    # weighted by its own population: rows with negative advantage, of which a micro-batch may have none
    out["weight_capped"] = sum(m["weight_capped"] * m["n_negative"] for m in losses) / max(negative, 1.0)
    out["ratio_max"] = max(m["ratio_max"] for m in losses)
    # added, not averaged: each loss is normalised by the whole step's sequences
    return out | {"loss": sum(m["loss"] for m in losses)}


def require_finite(losses: list[dict[str, Any]]) -> None:
    """RankspaceError when a micro-batch's loss is NaN or Inf, before such a gradient moves anything."""
    from rankspace import RankspaceError

    for number, m in enumerate(losses, start=1):
        if "error" in m:
            raise RankspaceError(m["error"])
        if not math.isfinite(m["loss"]):
            raise RankspaceError(
                f"the loss of micro-batch {number} of {len(losses)} is {m['loss']}: the ratio to the policy that sampled goes"
                f" up to {m['ratio_max']:.3g}, KL to the reference is {m['kl']:.3g}; lower the learning rate, or max_staleness"
            )
