"""Dynamic sampling: groups whose rewards are all equal are replaced by new ones, up to a bound a step.

Such a group has no advantage and teaches nothing, so a step that draws many of them trains on few (Yu et al. 2025, DAPO,
section 3.2, who sample until the batch is full). With `refill` = R, a step asks for as many new groups as have no variance,
looks again, and stops when none is missing or R groups were asked for. R = 0 is off.

What a step draws is a function of (run seed, step, place), as everything it asks for: the new groups are number
groups_per_step, groups_per_step + 1, ... of their step, on problems of a shuffled stream of their own. A resumed step asks
for the same ones and finds those that were graded before. rollouts/ says what was drawn, in rows of mode "refill".

The step's rates stay those of its first groups: new groups come only where rewards were equal, and a mean over all of them
would count the problems that the policy always or never solves more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.settings import TrainerSettings
from common.types import GenerationRequest, GradedGroup, Problem
from services.trainer.collate import advantages_of
from services.trainer.requests import refill_requests

Rewards = list[list[float | None]]
Sample = Callable[[list[GenerationRequest]], list[GradedGroup]]
Shape = Callable[[Sequence[GradedGroup]], Rewards]


def varies(rewards: Sequence[float | None], s: TrainerSettings) -> bool:
    """Whether a group's rewards (None: not gradable) differ, by the measure that makes its advantages."""
    return advantages_of(rewards, s)[1]


def refill(
    s: TrainerSettings, problems: Sequence[Problem], step: int, rewards: Rewards, sample: Sample, shape: Shape
) -> tuple[list[GradedGroup], Rewards]:
    """The new groups of a step, at most `s.refill`, and their rewards.

    rewards: those of the step's first groups. sample: asks and waits; groups that were dropped are not among its answer.
    shape: what RL pays for groups.
    """
    missing = sum(not varies(group, s) for group in rewards)
    groups: list[GradedGroup] = []
    paid: Rewards = []
    asked = 0
    while missing > 0 and asked < s.refill:
        requests = refill_requests(s, problems, step, asked, min(missing, s.refill - asked))
        asked += len(requests)
        came = sample(requests)
        shaped = shape(came) if came else []
        missing -= sum(varies(group, s) for group in shaped)
        groups, paid = groups + came, paid + shaped
    return groups, paid
