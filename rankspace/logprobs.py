"""Log-probs of sampled tokens without ever holding all logits: from kept logits, or through a frozen lm_head.

logp_t = log softmax(logits_t / temperature)[id_t]        d logp_t / d logits_t = (onehot(id_t) − softmax) / temperature
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .errors import RankspaceError

Statistics = tuple[Tensor, Tensor, Tensor | None]
ROWS_PER_CHUNK = 1024


def completion_logprobs(
    logits: Tensor, token_ids: Tensor, temperature: float = 1.0, rows_per_chunk: int = ROWS_PER_CHUNK
) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens, and the entropy of each distribution, under softmax(logits / temperature).

    The [T, vocab] matrix is only ever held in fp32 a few rows at a time, forwards and backwards; autograd keeps the
    logits as they are and one log-sum-exp per row.

    Args:
        logits: [..., V]; row t is the distribution that `token_ids[t]` was drawn from (already shifted by one).
        token_ids: int [...], the sampled tokens.

    Returns:
        (logprobs fp32 [...], differentiable; entropy fp32 [...] in nats, detached).

    Raises:
        RankspaceError: shapes that do not fit, temperature <= 0, an id outside the vocabulary.
    """
    if logits.shape[:-1] != token_ids.shape:
        raise RankspaceError(f"logits {tuple(logits.shape)} and token_ids {tuple(token_ids.shape)} do not fit")
    if not temperature > 0:
        raise RankspaceError(f"temperature {temperature} must be > 0: log-probs of greedy decoding do not exist")
    if token_ids.numel() and (token_ids.min() < 0 or token_ids.max() >= logits.shape[-1]):
        raise RankspaceError(f"a token id lies outside the vocabulary of {logits.shape[-1]}: another tokenizer?")
    rows = logits.reshape(-1, logits.shape[-1])
    logprobs, entropy = _SelectiveLogSoftmax.apply(  # type: ignore[no-untyped-call]  # torch has not annotated `apply`
        rows, token_ids.reshape(-1), float(temperature), rows_per_chunk
    )
    return logprobs.view(token_ids.shape), entropy.view(token_ids.shape)


class _SelectiveLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(torch.float32, rows.dtype)
        lse = torch.empty(len(ids), dtype=dtype, device=rows.device)
        picked, entropy = torch.empty_like(lse), torch.empty_like(lse)
        for a in range(0, len(ids), chunk):
            part = rows[a : a + chunk].to(dtype) / temperature
            lse[a : a + chunk] = part.logsumexp(dim=-1)
            picked[a : a + chunk] = part.gather(-1, ids[a : a + chunk, None]).squeeze(-1)
            p = torch.softmax(part, dim=-1)
            entropy[a : a + chunk] = lse[a : a + chunk] - torch.where(p > 0, p * part, 0.0).sum(dim=-1)
        ctx.save_for_backward(rows, ids, lse)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return picked - lse, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _entropy_grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows, ids, lse = ctx.saved_tensors
        out = torch.empty_like(rows)
        for a in range(0, len(ids), ctx.chunk):
            piece = slice(a, a + ctx.chunk)
            part = torch.exp(rows[piece].to(lse.dtype) / ctx.temperature - lse[piece, None]).neg_()
            part.scatter_add_(-1, ids[piece, None], torch.ones_like(lse[piece, None]))
            out[piece] = part * (grad[piece, None] / ctx.temperature)
        return out, None, None, None


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    temperature: float = 1.0,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`completion_logprobs(hidden @ weightᵀ, token_ids)` for a frozen lm_head, without ever holding the logits.

        d logp_t / d h_t = (W[id_t] − softmax(W h_t / temperature) W) / temperature

    is one row per token and does not depend on what the loss does with logp, so the forward makes it while a chunk of
    logits is there, and the backward only scales it: the same products as with kept logits, no second pass.

    Args:
        hidden: [N, d]. weight: [V, d], gets no gradient. token_ids: int [N], inside the vocabulary.
        compiled: let torch.compile fuse the passes over a chunk of logits (for GPUs; seconds at the first call).

    Returns:
        (logprobs fp32 [N], differentiable in hidden; entropy fp32 [N] in nats, detached).

    Raises:
        RankspaceError: shapes that do not fit, temperature <= 0.
    """
    if hidden.ndim != 2 or hidden.shape[:1] != token_ids.shape or hidden.shape[1] != weight.shape[1]:
        raise RankspaceError(
            f"hidden {tuple(hidden.shape)}, lm_head {tuple(weight.shape)}, token_ids {tuple(token_ids.shape)} do not fit"
        )
    if not temperature > 0:
        raise RankspaceError(f"temperature {temperature} must be > 0: log-probs of greedy decoding do not exist")
    logprobs, entropy = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]  # torch has not annotated `apply`
        hidden, weight.detach(), token_ids, float(temperature), rows_per_chunk, compiled
    )
    return logprobs, entropy


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, chunk: int, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(torch.float32, hidden.dtype)
        logprobs = torch.empty(len(ids), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        statistics = _compiled_statistics() if compiled else _row_statistics
        for a in range(0, len(ids), chunk):
            piece = slice(a, a + chunk)
            logits = hidden[piece] @ weight.T
            logprobs[piece], entropy[piece], pull = statistics(logits, ids[piece], temperature, slope is not None)
            if slope is not None and pull is not None:
                slope[piece] = pull @ weight
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _entropy_grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None, None, None, None


def _row_statistics(logits: Tensor, ids: Tensor, temperature: float, want_pull: bool) -> Statistics:
    """Per row of logits [n, V]: log-prob of the id, entropy, and (onehot − softmax)/temperature in the logits' dtype."""
    part = logits.to(torch.promote_types(torch.float32, logits.dtype)) / temperature
    lse = part.logsumexp(dim=-1)
    p = torch.exp(part - lse[:, None])
    entropy = lse - torch.where(p > 0, p * part, 0.0).sum(dim=-1)
    logprob = part.gather(-1, ids[:, None]).squeeze(-1) - lse
    if not want_pull:
        return logprob, entropy, None
    here = torch.arange(logits.shape[-1], device=logits.device) == ids[:, None]
    return logprob, entropy, ((here.to(p.dtype) - p) / temperature).to(logits.dtype)


@cache
def _compiled_statistics() -> Callable[[Tensor, Tensor, float, bool], Statistics]:
    return torch.compile(_row_statistics)
