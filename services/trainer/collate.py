"""Graded groups -> what the optimizer step needs. Pure.

A reward becomes an advantage here (group mean taken off); an infra error is no reward and leaves its group's mean and
std; a group without variance is counted, and left out unless there is a KL term (kl_beta > 0), which its rows still
have; a truncated completion keeps its advantage in the group's statistics but has no token in the loss.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.settings import TrainerSettings
from common.types import Grade, GradedGroup
from services.trainer.divergence import mean_kl


@dataclass(frozen=True)
class TrainingSample:
    """One completion as the loss sees it. `old_logprobs` are those it was sampled with."""

    prompt_ids: list[int]
    token_ids: list[int]
    old_logprobs: list[float]
    ref_logprobs: list[float] | None
    advantage: float
    masked: bool


@dataclass(frozen=True)
class TrainBatch:
    """Rows to train on, and the numbers of the step that come from grading alone. `advantages[g][c]`: NaN where the
    completion was not gradable."""

    rows: list[TrainingSample]
    advantages: list[list[float]]
    stats: dict[str, Any]


def collate(
    groups: Sequence[GradedGroup],
    rewards: Sequence[Sequence[float | None]],
    s: TrainerSettings,
    version: int,
    refilled: int = 0,
) -> TrainBatch:
    """`rewards[g][c]` is what RL pays (after any shaping), None for an infra error. `version`: the trainer's own.

    refilled: how many of the groups, the last ones, were sampled in place of others (refill.py). As many groups without
    variance as they are more than needed leave the batch even where such groups stay in.
    """
    import torch

    from rankspace import group_advantages

    rows: list[TrainingSample] = []
    zero_variance = trained = 0
    flat: list[list[float]] = []
    for graded, group_rewards in zip(groups, rewards, strict=True):
        valid = torch.tensor([r is not None for r in group_rewards])
        values = torch.tensor([math.nan if r is None else r for r in group_rewards], dtype=torch.float64)
        adv, info = group_advantages(values, valid, kind=s.advantage)
        flat.append([a if ok else math.nan for a, ok in zip(adv.tolist(), valid.tolist(), strict=True)])
        zero_variance += info["zero_variance"]
        # with a KL term the rows stay in: their advantage is 0, their KL is not
        if info["zero_variance"] and (not s.kl_beta or zero_variance <= refilled):
            continue
        new = _rows(graded, flat[-1], s)
        trained += any(not row.masked and row.token_ids for row in new)
        rows.extend(new)
    first = len(groups) - refilled
    stats = grading_stats(groups[:first]) | _reward_stats(rewards[:first]) | _staleness(groups, version)
    stats |= {"groups": len(groups), "zero_variance_groups": zero_variance, "trained_groups": trained}
    stats |= {"tokens": sum(len(c.token_ids) for g in groups for c in g.group.completions)}
    stats |= {"refill_sampled": refilled, "refill_kept": sum(_differ(advantages) for advantages in flat[first:])}
    return TrainBatch(rows, flat, stats | {"kl_all": mean_kl(groups[:first])})


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


def grading_stats(groups: Sequence[GradedGroup]) -> dict[str, Any]:
    """Rates over the graded completions of some groups (fractions; None where nothing was graded)."""
    pairs = [(c, g) for graded in groups for c, g in zip(graded.group.completions, graded.grades, strict=True)]
    grades = [g for _, g in pairs if g.status == "graded"]
    completions = [c for c, _ in pairs]

    def rate(test: Callable[[Grade], bool]) -> float | None:
        return sum(map(test, grades)) / len(grades) if grades else None

    lengths = [len(c.token_ids) for c in completions]
    return {
        "hack_strict": rate(lambda g: g.label == "Reward Hack"),
        "hack_loose": rate(lambda g: "Reward Hack" in (g.label or "")),
        "pass_oracle": rate(lambda g: g.oracle_correct is True),
        "oracle_weak": rate(lambda g: g.oracle_correct is True and g.evidence.get("oracle_weak") is True),
        "pass_published": rate(lambda g: g.published_correct is True),
        "forged_rate": rate(lambda g: g.published_correct is True and g.oracle_correct is False),
        "infra_errors": len(pairs) - len(grades),
        "label_counts": dict(Counter(g.label for g in grades)),
        "length_mean": sum(lengths) / len(lengths) if lengths else None,
        "truncated_rate": sum(c.finish_reason == "length" for c in completions) / len(completions)
        if completions
        else None,
        "tokens": sum(lengths),
    }


def _reward_stats(rewards: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    paid = [r for group in rewards for r in group if r is not None]
    if not paid:
        return {"reward_mean": None, "reward_std": None}
    mean = sum(paid) / len(paid)
    return {"reward_mean": mean, "reward_std": math.sqrt(sum((r - mean) ** 2 for r in paid) / len(paid))}


def _staleness(groups: Sequence[GradedGroup], version: int) -> dict[str, Any]:
    ages = [version - g.group.policy_version for g in groups]
    return {"staleness_mean": sum(ages) / len(ages) if ages else None, "staleness_max": max(ages, default=None)}


def micro_batches(
    rows: Sequence[TrainingSample], rank: int, ranks: int, accumulation: int
) -> list[list[TrainingSample]]:
    """This rank's rows in exactly `accumulation` parts (parts may be empty); every rank computes the same deal.

    Rows of like length share a part, so that little of its padded rectangle (rows x longest) is padding, and the
    largest rectangle, which decides peak memory, is as small as a cut of the rows in order of length can make it. Ranks
    take turns, so that they work on rectangles of like size at the same time.
    """
    ordered = sorted(rows, key=lambda r: -_length(r))
    longest = _length(ordered[0]) if rows else 0
    low, high = longest, longest * len(rows)  # one rectangle holds everything
    while low < high:  # the smallest area that `ranks * accumulation` parts suffice for
        middle = (low + high) // 2
        if len(_cut(ordered, middle)) <= ranks * accumulation:
            high = middle
        else:
            low = middle + 1
    parts = _cut(ordered, low)
    parts += [[] for _ in range(ranks * accumulation - len(parts))]
    return parts[rank::ranks]


def _length(row: TrainingSample) -> int:
    return len(row.prompt_ids) + len(row.token_ids)


def _cut(ordered: Sequence[TrainingSample], area: int) -> list[list[TrainingSample]]:
    """Consecutive parts of rows sorted longest first, each as long as its padded rectangle stays within `area`."""
    parts: list[list[TrainingSample]] = []
    for row in ordered:
        if parts and _length(parts[-1][0]) * (len(parts[-1]) + 1) <= area:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
