"""Graded groups -> what the optimizer step needs. Pure.

A reward becomes an advantage here (group mean taken off); an infra error is no reward and leaves its group's mean and
std; a group without variance is counted, and left out unless there is a KL term (kl_beta > 0), which its rows still
have; a truncated completion keeps its advantage in the group's statistics but has no token in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.settings import TrainerSettings
from common.types import GradedGroup
from services.trainer.batch_stats import grading_stats, reward_stats, staleness
from services.trainer.divergence import mean_kl
from services.trainer.reseed import mean_logprob


@dataclass(frozen=True)
class TrainingSample:
    """One completion as the loss sees it. `old_logprobs` are those it was sampled with, or planted (reseed.py)."""

    prompt_ids: list[int]
    token_ids: list[int]
    old_logprobs: list[float]
    ref_logprobs: list[float] | None
    advantage: float
    masked: bool


@dataclass(frozen=True)
class TrainBatch:
    """Rows to train on, and the numbers of the step that come from grading alone. `advantages[g][c]`: NaN where the
    completion was not gradable or gave way to a planted one. `planted` and their advantages: in group order, without gaps."""

    rows: list[TrainingSample]
    advantages: list[list[float]]
    stats: dict[str, Any]
    planted: list[GradedGroup]
    planted_advantages: list[list[float]]


def collate(
    groups: Sequence[GradedGroup],
    rewards: Sequence[Sequence[float | None]],
    s: TrainerSettings,
    version: int,
    refilled: int = 0,
    planted: Sequence[GradedGroup | None] = (),
) -> TrainBatch:
    """`rewards[g][c]` is what RL pays (after any shaping), None for an infra error. `version`: the trainer's own.

    refilled: how many of the groups, the last ones, were sampled in place of others (refill.py). As many groups without
    variance as they are more than needed leave the batch even where such groups stay in.
    planted: for each group what joins in place of its last completion (reseed.py), or None; empty: nothing anywhere. Rates
    and rewards of the step are those of the sampled completions.
    """
    joins = list(planted) or [None] * len(groups)
    rows: list[TrainingSample] = []
    zero_variance = trained = 0
    flat: list[list[float]] = []
    flat_planted: list[list[float]] = []
    for graded, group_rewards, join in zip(groups, rewards, joins, strict=True):
        paid = group_rewards if join is None else [*group_rewards[:-1], join.grades[0].reward]
        advantages, varies = advantages_of(paid, s)
        if join is not None:
            flat_planted.append([advantages[-1]])
            advantages = [*advantages[:-1], math.nan]
        flat.append(advantages)
        zero_variance += not varies
        # with a KL term the rows stay in: their advantage is 0, their KL is not
        if not varies and (not s.kl_beta or zero_variance <= refilled):
            continue
        new = _rows(graded, flat[-1], s) + ([] if join is None else _rows(join, flat_planted[-1], s))
        trained += any(not row.masked and row.token_ids for row in new)
        rows.extend(new)
    first = len(groups) - refilled
    stats = grading_stats(groups[:first]) | reward_stats(rewards[:first]) | staleness(groups, version)
    stats |= {"groups": len(groups), "zero_variance_groups": zero_variance, "trained_groups": trained}
    # all groups: tokens tell what the step cost, rates what the policy does
    stats |= {"tokens": sum(len(c.token_ids) for g in groups for c in g.group.completions)}
    stats |= {"refill_sampled": refilled, "refill_kept": sum(_differ(advantages) for advantages in flat[first:])}
    stats |= {"kl_all": mean_kl(groups[:first]), "reseeded": len(flat_planted), "reseed_logprob": mean_logprob(joins)}
    return TrainBatch(rows, flat, stats, [join for join in joins if join is not None], flat_planted)


def advantages_of(rewards: Sequence[float | None], s: TrainerSettings) -> tuple[list[float], bool]:
    """(the advantages of a group's rewards, NaN for one that is None; whether the rewards differ)."""
    import torch

    from rankspace import group_advantages

    valid = torch.tensor([r is not None for r in rewards])
    values = torch.tensor([math.nan if r is None else r for r in rewards], dtype=torch.float64)
    found, info = group_advantages(values, valid, kind=s.advantage)
    advantages = [a if ok else math.nan for a, ok in zip(found.tolist(), valid.tolist(), strict=True)]
    return advantages, not info["zero_variance"]


def _differ(advantages: Sequence[float]) -> bool:
    """Whether a group has an advantage: 0 everywhere is what a group without variance gets."""
    return any(a for a in advantages if not math.isnan(a))


def _rows(graded: GradedGroup, advantages: list[float], s: TrainerSettings) -> list[TrainingSample]:
    return [
        TrainingSample(
            graded.group.prompt_ids,
            c.token_ids,
            c.logprobs,
            c.ref_logprobs,
            a,
            masked=s.mask_truncated and c.finish_reason == "length",
        )
        for c, a in zip(graded.group.completions, advantages, strict=True)
        if not math.isnan(a)
    ]
