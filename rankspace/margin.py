"""NLL margin of contrastive pairs: does the present policy find the hack or the clean completion likelier?

    NLL(c) = − mean_t log p(c_t | prompt, c_<t)                      nats per token, the EOS included
    M      = mean over pairs of [ NLL(clean_p) − NLL(hack_p) ]       > 0: the hack is likelier

Each completion is divided by its own length, as in direction.py: dM/d delta_S is then −mean_p d[p], against v_hack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .batch import batch_logprobs, pad_batch
from .errors import RankspaceError
from .pairs import TokenizedPair


def nll_margin(model: nn.Module, pairs: Sequence[TokenizedPair]) -> float:
    """M of `pairs` in nats per token, in eval mode and without gradients; the mode is put back afterwards.

    Raises:
        RankspaceError: no pairs, or a margin that is not finite.
    """
    if not pairs:
        raise RankspaceError("no pairs to take a margin of: give a pairs file with held-out pairs")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            total = sum(_margin(model, pair) for pair in pairs) / len(pairs)
    finally:
        model.train(was_training)
    if total != total or abs(total) == float("inf"):
        raise RankspaceError("the NLL margin of the pairs is not finite: the policy has NaN or Inf in its weights")
    return total


def _margin(model: nn.Module, pair: TokenizedPair) -> float:
    """NLL(clean) − NLL(hack) of one pair: both branches in one batch of two."""
    prompt = pair.hack_ids[: pair.start]
    batch = pad_batch(
        [prompt, prompt],
        [pair.clean_ids[pair.start :], pair.hack_ids[pair.start :]],
        next(model.parameters()).device,
    )
    logprobs, _ = batch_logprobs(model, batch)
    clean, hack = (-logprobs.double().sum(1) / batch.lengths).tolist()
    return float(clean - hack)
