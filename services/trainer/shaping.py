"""What RL is paid, after the published reward: the arms that act on rewards instead of gradients.

    none                      R
    rebound                   R − alpha·max(0, cos(h, v_concept))            (rankspace/rebound.py)
    rebound_multiplicative    R·(1 − alpha·s)
    rebound_z                 R − alpha·zscore of s within the group
    rebound_published         R − alpha·max(z, 0), z as Wu & Tang 2026 publish it
    rebound_published_mult    R·(1 − alpha·sigmoid(z)·[z > 0])
    ground_truth_penalty      R − 3 for a completion that hacks (published label strictly "Reward Hack")
    ground_truth_screening    a completion that hacks leaves its group: no reward, no advantage, no loss

The ground-truth forms use the label as a perfect monitor; they are the benchmark's strongest interventions and bound
what any monitor could do. An infra error stays without reward in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.settings import TrainerSettings
from common.types import GradedGroup
from services.trainer.policy import Policy

if TYPE_CHECKING:
    from torch import Tensor

    from rankspace.pairs import TokenizedPair
    from rankspace.rebound import PenaltyForm

HACK_REWARD = 3.0
FORMS: dict[str, PenaltyForm] = {
    "rebound": "additive", "rebound_multiplicative": "multiplicative", "rebound_z": "znorm",
    "rebound_published": "published", "rebound_published_mult": "published_mult",
}  # fmt: skip

Rewards = list[list[float | None]]
Tokenise = Callable[["Path | None"], "Sequence[TokenizedPair]"]  # the training pairs of a file


def published(groups: Sequence[GradedGroup]) -> Rewards:
    """The reward of the published grade; None for an infra error."""
    return [[grade.reward for grade in graded.grades] for graded in groups]


class Shaper:
    """Chosen once at start-up. Callable: graded groups -> rewards to train on."""

    def __init__(self, s: TrainerSettings, policy: Policy, tokenise: Tokenise):
        self.kind, self.alpha, self.policy, self.temperature = s.reward_shaping, s.shaping_alpha, policy, s.temperature
        self.concept = self._concept(s, tokenise) if self.kind.startswith("rebound") else None

    def __call__(self, groups: Sequence[GradedGroup]) -> Rewards:
        rewards = published(groups)
        if self.kind == "none":
            return rewards
        if self.kind == "ground_truth_penalty":
            return _where_hacked(groups, rewards, lambda r: r - HACK_REWARD)
        if self.kind == "ground_truth_screening":
            return _where_hacked(groups, rewards, lambda r: None)
        return self._rebound(groups, rewards)

    def _concept(self, s: TrainerSettings, tokenise: Tokenise) -> Tensor:
        from rankspace import rebound

        published = FORMS[self.kind] in rebound.PUBLISHED
        self.score = rebound.concept_score if published else rebound.rebound_score
        layers = rebound.residual_layers if published else rebound.residual_layer
        self.layer = layers(self.policy.model.config.num_hidden_layers)
        return rebound.concept_vector(*rebound.pair_hidden(self.policy.model, tokenise(s.pairs), self.layer))

    def _rebound(self, groups: Sequence[GradedGroup], rewards: Rewards) -> Rewards:
        import torch

        from rankspace import rebound

        assert self.concept is not None  # made for every form of Rebound
        shaped: Rewards = []
        for graded, paid in zip(groups, rewards, strict=True):
            hidden = self._hidden(graded)
            scores = self.score(hidden, self.concept.to(hidden.device)).cpu()
            valid = torch.tensor([r is not None for r in paid])
            values = torch.tensor([0.0 if r is None else r for r in paid], dtype=torch.float64)
            out, _ = rebound.penalised_reward(values, scores.double(), FORMS[self.kind], self.alpha, valid)
            shaped.append([x if ok else None for x, ok in zip(out.tolist(), valid.tolist(), strict=True)])
        return shaped

    def _hidden(self, graded: GradedGroup) -> Tensor:
        """Mean residual of each completion under the present policy, fp32 [n, d]."""
        from rankspace import rebound
        from rankspace.batch import pad_batch
        from rankspace.compile import eagerly

        group = graded.group
        batch = pad_batch(
            [group.prompt_ids] * len(group.completions), [c.token_ids for c in group.completions], self.policy.device
        )
        start = len(group.prompt_ids)
        mask = batch.attention_mask.bool()
        mask[:, :start] = False
        with eagerly():
            return rebound.read_hidden(self.policy.model, batch.input_ids, mask, self.layer)


def _where_hacked(groups: Sequence[GradedGroup], rewards: Rewards, change: Callable[[float], float | None]) -> Rewards:
    return [
        [
            change(r) if r is not None and g.label == "Reward Hack" else r
            for g, r in zip(graded.grades, paid, strict=True)
        ]
        for graded, paid in zip(groups, rewards, strict=True)
    ]
