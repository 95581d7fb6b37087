"""Which problems a step asks for. Pure: a function of seed and step alone, so every arm of a seed sees the same order.

Problems are drawn without replacement, epoch by epoch; each epoch is a fresh shuffle seeded by (seed, epoch).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from common.settings import TrainerSettings
from common.types import GenerationRequest, Problem, SamplingPlan


def sub_seed(*parts: object) -> int:
    """A 31-bit seed from any printable parts; stable across machines and Python versions."""
    # not hash(): Python salts it for each process
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little") & 0x7FFFFFFF


def problem_at(problems: Sequence[Problem], seed: int, position: int) -> Problem:
    """The problem at a position of the endless shuffled stream."""
    epoch, index = divmod(position, len(problems))
    order = list(range(len(problems)))
    random.Random(sub_seed(seed, "epoch", epoch)).shuffle(order)
    return problems[order[index]]


def train_requests(s: TrainerSettings, problems: Sequence[Problem], step: int) -> list[GenerationRequest]:
    """The rollout groups that every optimizer step asks for."""
    first = step * s.groups_per_step
    return [_train_request(s, step, i, problem_at(problems, s.seed, first + i)) for i in range(s.groups_per_step)]


def refill_requests(
    s: TrainerSettings, problems: Sequence[Problem], step: int, asked: int, count: int
) -> list[GenerationRequest]:
    """`count` more groups of one step, which has asked for `asked` more before (refill.py)."""
    first, seed = step * s.refill, sub_seed(s.seed, "refill")
    return [
        _train_request(s, step, s.groups_per_step + i, problem_at(problems, seed, first + i))
        for i in range(asked, asked + count)
    ]


def _train_request(s: TrainerSettings, step: int, i: int, problem: Problem) -> GenerationRequest:
    """The i-th group of a step."""
    return GenerationRequest(
        run_id=s.run_id,
        group_id=f"{s.run_id}/train/{step}/{i}",
        purpose="train",
        step=step,
        problem=problem,
        min_version=max(0, step - s.max_staleness),
        sampling=_plan(s, s.group_size, sub_seed(s.seed, "train", step, i)),
    )


def eval_requests(
    s: TrainerSettings, problems: Sequence[Problem], step: int, mode: str, version: int, stream: str | None = None
) -> list[GenerationRequest]:
    """One group per held-out problem (the first `eval_problems`), rewritten for the mode by the caller. stream: the word in
    the sampling seed, by default the mode's name."""
    return [
        GenerationRequest(
            run_id=s.run_id,
            group_id=f"{s.run_id}/eval/{step}/{mode}/{i}",
            purpose="eval",
            step=step,
            problem=problem,
            min_version=version,
            sampling=_plan(s, s.eval_samples, sub_seed(s.seed, "eval", step, stream or mode, i)),
            # no KL is taken of evaluations
            want_reference=False,
        )
        for i, problem in enumerate(problems[: s.eval_problems])
    ]


def _plan(s: TrainerSettings, n: int, seed: int) -> SamplingPlan:
    return SamplingPlan(n=n, temperature=s.temperature, max_tokens=s.max_tokens, seed=seed)
