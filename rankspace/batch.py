"""Prompts and completions as one padded batch, and the log-probs of the completion tokens under a causal LM.

    logp[i, t] = log softmax( lm_head(h[i, |prompt_i| + t − 1]) / temperature )[ completion_i[t] ]

Only hidden states that predict a completion token go through the lm_head, and with a frozen lm_head a chunk of them at a
time, so no [tokens, vocab] matrix ever exists. Padding is on the right and left out by length; the pad id never decides
anything (pad may equal eos). The model is given no attention mask: it is causal, so nothing to the right of a token,
padding least of all, can reach it, and without a mask the fast attention kernels apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from .causal_lm import CausalLM
from .errors import RankspaceError
from .logprobs import completion_logprobs, linear_logprobs

PAD = 0


@dataclass(frozen=True)
class Batch:
    """B completions in G rows; G = B unless completions share a row (shared_prompt.py).

    `input_ids`, `attention_mask`: int64 [G, L]. `token_ids`: int64 [B, T], completions padded on the right. `lengths`: int64
    [B]. `mask`: bool [B, T], True for the N completion tokens. `rows`, `columns`: int64 [N], where in [G, L] the hidden state
    of each completion token's predecessor is (in the row-major order of `mask`). `positions`: int64 [G, L] and `sees`: bool
    [G, 1, L, L], which positions a position attends to; None where a row is one sequence.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_ids: Tensor
    lengths: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    positions: Tensor | None = None
    sees: Tensor | None = None


def pad_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Batch:
    """Lay out token ids; nothing is re-tokenised.

    Raises:
        RankspaceError: no rows, an empty prompt (its first completion token has no predecessor), unequal lengths.
    """
    asked = asked_of(prompts, completions)
    sequences = [list(p) + list(c) for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, sequences))
    starts = torch.tensor([len(p) for p in prompts])
    rows, offsets = asked["mask"].nonzero(as_tuple=True)
    fields = asked | {
        "input_ids": torch.tensor([s + [PAD] * (width - len(s)) for s in sequences]),
        "attention_mask": (torch.arange(width) < (starts + asked["lengths"])[:, None]).long(),
        "rows": rows,
        "columns": starts[rows] + offsets - 1,
    }
    return Batch(**{name: tensor.to(device) for name, tensor in fields.items()})


def asked_of(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The fields of a Batch that say which tokens are asked about, however the rows are laid out: token_ids, lengths, mask.

    Raises:
        RankspaceError: as `pad_batch`.
    """
    if not prompts or len(prompts) != len(completions) or any(len(p) == 0 for p in prompts):
        raise RankspaceError(
            f"a batch needs as many non-empty prompts ({len(prompts)}) as completions ({len(completions)})"
        )
    span = max(1, max(map(len, completions)))
    lengths = torch.tensor([len(c) for c in completions])
    return {
        "token_ids": torch.tensor([list(c) + [PAD] * (span - len(c)) for c in completions]),
        "lengths": lengths,
        "mask": torch.arange(span) < lengths[:, None],
    }


def batch_logprobs(
    model: nn.Module, batch: Batch, temperature: float = 1.0, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) of the completion tokens, fp32 [B, T] each; zeros where `batch.mask` is False.

    Args:
        model: a causal Hugging Face LM whose logits are lm_head(last hidden state), scaled or capped as `shaped` knows it;
            `require_own_logits` tells.
        compiled: as in `logprobs.linear_logprobs`.
    """
    lm = cast(CausalLM, model)
    packed = {} if batch.sees is None else {"attention_mask": batch.sees, "position_ids": batch.positions}
    hidden = lm.get_decoder()(input_ids=batch.input_ids, use_cache=False, **packed)[0]
    head = lm.get_output_embeddings()
    states, ids = hidden[batch.rows, batch.columns], batch.token_ids[batch.mask]
    if _plain_and_frozen(head) and _shaping(model) is None:
        picked, entropy = linear_logprobs(states, head.weight, ids, temperature, compiled=compiled)
    else:
        # slower, but through the head itself: it may train, have a bias, be gathered by ZeRO-3, or be capped
        picked, entropy = completion_logprobs(shaped(model, head(states)), ids, temperature)
    zeros = torch.zeros(batch.mask.shape, dtype=picked.dtype, device=picked.device)
    return zeros.masked_scatter(batch.mask, picked), zeros.masked_scatter(batch.mask, entropy)


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's language part; None where it has none."""
    config = getattr(model, "config", None)
    return getattr(config, "text_config", None) or config


def rounding(weight: Tensor) -> float:
    """Nats by which one log-prob, computed in two ways with weights of this dtype, may differ."""
    return 1e-3 if weight.dtype == torch.float32 else 0.2


def _shaping(model: nn.Module) -> tuple[float, float | None] | None:
    """(factor, soft cap) of a model's logits; None where they are the lm_head's own."""
    config = text_config(model)
    scale, divisor = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling"))
    factor = float(1.0 if scale is None else scale) / float(1.0 if divisor is None else divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    return None if factor == 1.0 and cap is None else (factor, cap)


def shaped(model: nn.Module, logits: Tensor) -> Tensor:
    """Logits of the lm_head as the model itself scales (Cohere, Granite) and caps (Gemma 2) them; any shape, same dtype."""
    shaping = _shaping(model)
    if shaping is None:
        return logits
    factor, cap = shaping
    logits = logits * factor
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def require_own_logits(model: nn.Module) -> None:
    """Compare one row of `batch_logprobs` with the model's own logits.

    Raises:
        RankspaceError: they differ by more than rounding: the model does something to its logits that is not known here.
    """
    weight = cast(torch.Tensor, cast(CausalLM, model).get_output_embeddings().weight)
    ids = [1 + (7 * i) % (min(len(weight), 2000) - 1) for i in range(12)]
    batch = pad_batch([ids[:1]], [ids[1:]], device=weight.device)
    ours, _ = batch_logprobs(model, batch)
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    own = logits.log_softmax(dim=-1).gather(-1, batch.token_ids[..., None])[..., 0]
    worst = (ours - own).abs().max().item()
    if not worst <= rounding(weight):
        raise RankspaceError(
            f"log-probs of {type(model).__name__} differ from its own logits by {worst:.3g} nats: it scales or caps its logits "
            "in a way that is not known here; take another model"
        )


def _plain_and_frozen(head: nn.Module) -> TypeGuard[nn.Linear]:
    """A bare matrix that gets no gradient and is all here (ZeRO-3 gathers a weight only for its module's forward)."""
    if type(head) is not nn.Linear or len(list(head.parameters())) > 1 or hasattr(head.weight, "ds_id"):
        return False
    return not (head.weight.requires_grad and torch.is_grad_enabled())
