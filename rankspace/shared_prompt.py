"""Completions of one prompt in one row: the prompt goes through the model once, not once a completion.

    row         [ prompt | completion 1 | completion 2 | ... ]
    position    0 .. P−1 | P ..         | P ..         | ...
    attends to  causally within the prompt; a completion to the prompt and, causally, to itself

Every completion token sees what it would see in a row of its own, at the same positions, so log-probs and gradients are the
same numbers but for the order of summation. A group of n completions of T tokens costs P + nT tokens in place of n(P + T).
The price is a mask and attention that grows with the row's length squared: rows are kept short, and it pays where prompts
are long. Only models whose every layer attends to everything before it can do it: a recurrent state would run on from one
completion into the next, and a sliding window counts places in the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .batch import PAD, Batch, asked_of, batch_logprobs, pad_batch, rounding, text_config
from .causal_lm import CausalLM

LONGEST = 4096  # tokens of a row that holds several completions: its mask has the square of that


def share_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Batch:
    """`pad_batch` with neighbouring completions of equal prompts in one row; for `batch_logprobs`.

    Raises:
        RankspaceError: as `pad_batch`.
    """
    asked = asked_of(prompts, completions)
    groups = together(prompts, [len(c) for c in completions])
    rows = [[*prompts[group[0]], *(i for c in group for i in completions[c])] for group in groups]
    width = max(map(len, rows))
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    # 0: the prompt, 1 ..: the completions, -1: padding
    part = torch.full((len(rows), width), -1)
    row_of, start_of = torch.empty(len(prompts), dtype=torch.long), torch.empty(len(prompts), dtype=torch.long)
    for row, group in enumerate(groups):
        shared = len(prompts[group[0]])
        positions[row, :shared], part[row, :shared] = torch.arange(shared), 0
        at = shared
        for number, c in enumerate(group, start=1):
            end = at + len(completions[c])
            positions[row, at:end] = torch.arange(shared, shared + len(completions[c]))
            part[row, at:end] = number
            row_of[c], start_of[c] = row, at
            at = end
    starts = torch.tensor([len(p) for p in prompts])
    which, offsets = asked["mask"].nonzero(as_tuple=True)
    # the first token of a completion is predicted where its prompt ends, the others where their predecessor stands
    columns = torch.where(offsets == 0, starts[which] - 1, start_of[which] + offsets - 1)
    fields = asked | {
        "input_ids": torch.tensor([row + [PAD] * (width - len(row)) for row in rows]),
        "attention_mask": (part >= 0).long(),
        "rows": row_of[which],
        "columns": columns,
        "positions": positions,
        "sees": _sees(part),
    }
    return Batch(**{name: tensor.to(device) for name, tensor in fields.items()})


def together(prompts: Sequence[Sequence[int]], lengths: Sequence[int], most: int | None = None) -> list[list[int]]:
    """Indices of neighbouring equal prompts that share a row: at most `most` of them, and LONGEST tokens with the prompt.

    lengths: tokens of each completion.
    """
    groups: list[list[int]] = []
    tokens = 0
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        fits = groups and len(groups[-1]) != most and tokens + length <= LONGEST
        if fits and list(prompts[groups[-1][0]]) == list(prompt):
            groups[-1].append(i)
            tokens += length
        else:
            groups.append([i])
            tokens = len(prompt) + length
    return groups


@torch.no_grad()
def why_not(model: nn.Module) -> str:
    """Why completions cannot share a row under this model; empty when they can.

    Tried on two completions whose log-probs must be those of rows of their own, and read from the configuration: a window
    longer than the trial does not show in it.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None):
        return "its attention has a sliding window"
    weight = cast(Tensor, cast(CausalLM, model).get_output_embeddings().weight)
    ids = [1 + (7 * i) % (min(len(weight), 100) - 1) for i in range(24)]
    rows = [ids[:8], ids[:8]], [ids[8:15], ids[15:]]
    try:
        ours, _ = batch_logprobs(model, share_batch(*rows, device=weight.device))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:  # what models without such a mask say
        return f"it takes no mask of this shape: {(str(error).strip() or repr(error)).splitlines()[0]}"
    own, _ = batch_logprobs(model, pad_batch(*rows, device=weight.device))
    worst = (ours - own).abs().max().item()
    return "" if worst <= rounding(weight) else f"log-probs in a shared row differ by {worst:.3g} nats"


def _sees(part: Tensor) -> Tensor:
    """bool [G, 1, L, L] from the part each position belongs to, int64 [G, L]. Padding sees itself: a position that sees
    nothing would be NaN."""
    width = part.shape[1]
    before = torch.arange(width)[:, None] >= torch.arange(width)
    own = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0) & (part[:, :, None] >= 0)
    return (own & before)[:, None]
