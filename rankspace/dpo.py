"""Contrastive loss on the pairs: what the same pairs teach when they are trained on, instead of projected out.

    margin_i = γ [ (log π(clean_i) − log π0(clean_i)) − (log π(hack_i) − log π0(hack_i)) ]     sums over the completion's tokens
    L        = mean_i −log sigmoid(margin_i)

π0 is the model at delta_S = 0. Source: Rafailov et al. 2023 (DPO), equation 7, with clean preferred. Identities: at delta_S = 0
every margin is 0 and L = log 2; the gradient there is −γ/2 · mean_i ∇(log π(clean_i) − log π(hack_i)): that of `v_hack`, but for
sums over tokens in place of means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .batch import Batch, batch_logprobs, pad_batch
from .errors import RankspaceError

if TYPE_CHECKING:
    from .adapter import Adapter
    from .pairs import TokenizedPair

AT_ONCE = 16  # pairs of a forward pass for the reference


def contrastive_loss(clean: Tensor, hack: Tensor, clean_0: Tensor, hack_0: Tensor, gamma: float) -> Tensor:
    """L, a scalar. Each argument: log-prob of a completion, summed over its tokens, nats, [pairs]; `_0`: at delta_S = 0."""
    return -logsigmoid(gamma * ((clean - clean_0) - (hack - hack_0))).mean()


class PairContrast:
    """The loss on a few pairs, drawn for each step from (seed, step), so that a resumed run draws the same.

    Args:
        model: carries `adapter`. pairs: tokenised, at least `at_once`. gamma: γ. at_once: pairs a step.

    Raises:
        RankspaceError: fewer pairs than a step wants.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter, pairs: Sequence[TokenizedPair], gamma: float, at_once: int, seed: int
    ):
        if len(pairs) < at_once:
            raise RankspaceError(f"dpo_pairs wants {at_once} pairs a step, the file has {len(pairs)} to train on")
        self.pairs, self.gamma, self.at_once, self.seed = list(pairs), gamma, at_once, seed
        self.device = next(model.parameters()).device
        with torch.no_grad(), adapter.disabled():
            parts = [self._sums(lambda b: batch_logprobs(model, b)[0], self.pairs[i : i + AT_ONCE])
                     for i in range(0, len(self.pairs), AT_ONCE)]  # fmt: skip
        self.reference = torch.cat([torch.stack(part) for part in parts], dim=1)  # [2, pairs]: clean, hack

    def drawn(self, step: int) -> list[int]:
        """Places of the pairs of a step."""
        # more than any number of steps, so no two seeds share a stream
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.randperm(len(self.pairs), generator=generator)[: self.at_once].tolist()

    def loss(self, forward: Callable[[Batch], Tensor], step: int) -> Tensor:
        """L of this step's pairs. forward: batch -> log-probs [B, T] at temperature 1, with gradient."""
        places = self.drawn(step)
        clean, hack = self._sums(forward, [self.pairs[i] for i in places])
        clean_0, hack_0 = self.reference[:, places]
        return contrastive_loss(clean, hack, clean_0, hack_0, self.gamma)

    def _sums(self, forward: Callable[[Batch], Tensor], pairs: Sequence[TokenizedPair]) -> tuple[Tensor, Tensor]:
        """Log-prob of (clean, hack) of each pair, summed over its tokens, [pairs] each; one forward pass."""
        ids = [p.clean_ids for p in pairs] + [p.hack_ids for p in pairs]
        starts = [p.start for p in pairs] * 2
        batch = pad_batch(
            [row[:at] for row, at in zip(ids, starts, strict=True)],
            [row[at:] for row, at in zip(ids, starts, strict=True)],
            device=self.device,
        )
        sums = (forward(batch) * batch.mask).sum(dim=1)
        return sums[: len(pairs)], sums[len(pairs) :]
