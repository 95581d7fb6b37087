"""Held-out evaluation, through the same generator and graders as training.

no_write_access    the prompt of training, loophole named; a test function in the response is not taken
hint               held-out problems with the loophole of training open
random_test_name   the same loophole under a test-function name that no training prompt uses
no_hint            the bare prompt: no loophole is named, none is open
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.errors import ConfigError
from common.settings import TrainerSettings
from common.types import GradedGroup, Problem
from services.trainer.collate import grading_stats
from services.trainer.requests import eval_requests
from services.trainer.rollouts import Rollouts
from tasks import loopholes

MODES = ("no_write_access", "hint", "random_test_name", "no_hint")
RANDOM_NAME_SEED = 1


def in_mode(problem: Problem, mode: str, trained_names: Collection[str] = (loopholes.DEFAULT_TEST_NAME,)) -> Problem:
    """The problem as the mode poses and grades it. `trained_names`: test-function names that training prompts use."""
    if mode == "no_write_access":
        return loopholes.without_write_access(problem)
    if mode == "no_hint":
        return loopholes.posed(problem, None)
    if mode == "random_test_name":
        return loopholes.renamed(problem, loopholes.unseen_test_name(problem, RANDOM_NAME_SEED, trained_names))
    if mode == "hint":
        return problem
    raise ConfigError(f"unknown evaluation mode {mode!r}; modes: {', '.join(MODES)}")


def evaluate(
    s: TrainerSettings,
    rollouts: Rollouts,
    problems: Sequence[Problem],
    step: int,
    version: int,
    keep,
    trained_names: Collection[str] = (loopholes.DEFAULT_TEST_NAME,),
) -> list[dict]:
    """One row per mode, for the policy `version`. `keep(groups, mode)` records the completions.

    Same problems and sampling seeds in every arm of a seed. `trained_names`: as `in_mode`.
    """
    modes = MODES if s.loophole else ("no_write_access", "no_hint")
    asked = {
        mode: eval_requests(
            s, [in_mode(p, mode, trained_names) for p in problems[: s.eval_problems]], step, mode, version
        )
        for mode in modes
    }
    for requests in asked.values():
        rollouts.ask(requests)
    rows = []
    for mode, requests in asked.items():
        collected = rollouts.collect(requests)
        rows.append(_row(collected.groups, step, mode, s, len(collected.dropped)))
        keep(collected.groups, mode)
        rollouts.acknowledge(collected)
    return rows


def _row(groups: Sequence[GradedGroup], step: int, mode: str, s: TrainerSettings, dropped: int) -> dict:
    stats = grading_stats(groups)
    names = (
        "pass_oracle",
        "pass_published",
        "hack_strict",
        "hack_loose",
        "forged_rate",
        "length_mean",
        "infra_errors",
        "label_counts",
    )
    head = {"step": step, "mode": mode, "problems": len(groups), "samples": s.eval_samples, "dropped_groups": dropped}
    return head | {name: stats[name] for name in names}
