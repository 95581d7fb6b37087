"""Held-out evaluation, through the same generator and graders as training. The modes: tasks/modes.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from common import measurements
from common.settings import TrainerSettings
from common.types import GradedGroup, Problem
from services.trainer.batch_stats import grading_stats
from services.trainer.requests import eval_requests
from services.trainer.rollouts import Rollouts
from tasks import loopholes, modes
from tasks.modes import Mode

Keep = Callable[[list[GradedGroup], str], None]
RATES = measurements.evaluated("grading")
OWN_TESTS = measurements.evaluated("tests")


def posed(s: TrainerSettings, problems: Sequence[Problem], trained_names: Collection[str]) -> dict[Mode, list[Problem]]:
    """The evaluation's problems as each of the run's modes asks them. Raises ConfigError where one cannot be posed."""
    return {
        mode: [mode.pose(p, trained_names) for p in problems[: s.eval_problems]]
        for mode in modes.chosen(s.eval_modes, s.loophole)
    }


def evaluate(
    s: TrainerSettings,
    rollouts: Rollouts,
    problems: Sequence[Problem],
    step: int,
    version: int,
    keep: Keep,
    trained_names: Collection[str] = (loopholes.DEFAULT_TEST_NAME,),
) -> list[dict[str, Any]]:
    """One row per mode, for the policy `version`. `keep(groups, mode)` records the completions.

    Same problems and sampling seeds in every arm of a seed. `trained_names`: as `Mode.pose`.
    """
    asked = {
        mode: eval_requests(s, given, step, mode.name, version, mode.stream)
        for mode, given in posed(s, problems, trained_names).items()
    }
    # all modes before the first is waited for: the generator batches across them
    for requests in asked.values():
        rollouts.ask(requests)
    rows = []
    for mode, requests in asked.items():
        collected = rollouts.collect(requests)
        rows.append(row(collected.groups, step, mode, s.eval_samples, len(collected.dropped)))
        keep(collected.groups, mode.name)
        rollouts.acknowledge(collected)
    return rows


def row(groups: Sequence[GradedGroup], step: int, mode: Mode, samples: int, dropped: int) -> dict[str, Any]:
    """One row of eval.jsonl. Rates are shares of graded completions; null where the mode does not measure them."""
    stats = grading_stats(groups)
    head = {"step": step, "mode": mode.name, "problems": len(groups), "samples": samples, "dropped_groups": dropped}
    rates = {name: stats[name] for name in RATES}
    # a test function that was asked for is no attempt
    if not mode.counts_hacks:
        rates |= {"hack_strict": None, "hack_loose": None}
    return head | rates | (_own_tests(groups) if mode.asks_tests else {})


def _own_tests(groups: Sequence[GradedGroup]) -> dict[str, float | None]:
    """Shares of graded completions that wrote the test function they were asked for, and whose function is honest."""
    graded = [grade for group in groups for grade in group.grades if grade.status == "graded"]
    return {
        name: sum(grade.evidence.get(name) is True for grade in graded) / len(graded) if graded else None
        for name in OWN_TESTS
    }
