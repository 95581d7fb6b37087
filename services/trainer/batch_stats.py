"""The numbers of a step that come from grading alone: rates, rewards, lengths, staleness. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from common.types import Grade, GradedGroup


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
        # three of the five labels hold these words, attempts that were correct all the same included
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


def reward_stats(rewards: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Mean and standard deviation of what RL pays; None where nothing was paid."""
    paid = [r for group in rewards for r in group if r is not None]
    if not paid:
        return {"reward_mean": None, "reward_std": None}
    mean = sum(paid) / len(paid)
    return {"reward_mean": mean, "reward_std": math.sqrt(sum((r - mean) ** 2 for r in paid) / len(paid))}


def staleness(groups: Sequence[GradedGroup], version: int) -> dict[str, Any]:
    """How many policy versions the groups lie behind the trainer's own."""
    ages = [version - g.group.policy_version for g in groups]
    return {"staleness_mean": sum(ages) / len(ages) if ages else None, "staleness_max": max(ages, default=None)}
