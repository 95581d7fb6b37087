"""The page to read first: one training run from start to finish.

    trainer                      ref_server                    sandbox workers
    ask for step k's groups ──>  sample with version >= k − s
                                 reference log-probs      ──>  two verdicts a completion
    wait for all of them   <────────────────────────────────   graded groups
    reward -> advantage
    loss, backward, project, clip, AdamW
    checkpoint k+1
    push delta_S k+1       ──>   load, prove (probe log-probs)
    acknowledge step k's groups

The trainer waits for graded groups; the generator waits for requests; the graders wait for rollouts. With max_staleness
s = 0 they take turns; with s > 0 the next steps' groups are asked for before this step's are trained on, and the
importance ratio of each token corrects for the version that sampled it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from common import failpoints
from common.errors import QueueError
from common.settings import TrainerSettings
from common.types import GenerationRequest, GradedGroup, Problem
from services.trainer.alarm import RunAlarm
from services.trainer.checkpoint import State
from services.trainer.collate import TrainBatch, collate
from services.trainer.evaluate import evaluate
from services.trainer.publish import Publisher
from services.trainer.rank_group import RankGroup
from services.trainer.record import Record
from services.trainer.refill import Rewards, refill
from services.trainer.requests import train_requests
from services.trainer.reseed import MODE, Reseeder
from services.trainer.rollouts import Collected, Rollouts
from services.trainer.shaping import Shaper
from services.trainer.steprow import step_row
from services.trainer.window import intervenes
from tasks.loopholes import used_test_names

if TYPE_CHECKING:
    from rankspace.pairs import TokenizedPair


class Stopped(Exception):
    """Raised by `Rollouts.check` when the run is asked to stop while it waits for groups or proofs."""


class Trainer:
    """The parts of one run, wired up in wiring.py, and the loop over them.

    fence: raises when another trainer has taken over; asked before anything is pushed or saved.
    problems: (train, held-out). pairs: tokenised, for an arm that extracts its direction anew; else empty.
    heldout_pairs: tokenised, for the NLL margin at each evaluation; empty without a pairs file. reseeder: None where nothing is
    planted.
    """

    def __init__(
        self,
        s: TrainerSettings,
        ranks: RankGroup,
        rollouts: Rollouts,
        publisher: Publisher,
        record: Record,
        shaper: Shaper,
        problems: tuple[list[Problem], list[Problem]],
        pairs: list[TokenizedPair],
        stop: threading.Event,
        show: Callable[[dict[str, Any]], None],
        fence: Callable[[], None],
        heldout_pairs: Sequence[TokenizedPair] = (),
        reseeder: Reseeder | None = None,
    ):
        self.s, self.ranks, self.rollouts, self.publisher = s, ranks, rollouts, publisher
        self.record, self.shaper, self.stop, self.show, self.fence = record, shaper, stop, show, fence
        self.train_problems, self.heldout_problems = problems
        self.pairs, self.heldout_pairs, self.reseeder = pairs, list(heldout_pairs), reseeder
        self.state = State(ranks=ranks.ranks)
        self.alarm = RunAlarm(s)
        self.pending: list[Collected] = []
        self.push_s = 0.0

    def run(self) -> bool:
        """Resume where the last checkpoint stands, or start. True when all steps are done, False when asked to stop or when
        the alarm stops it."""
        self._resume()
        with suppress(Stopped):  # it comes while waiting, when no step is half done: what is finished is saved
            if not self.alarm.stops:
                self._evaluate_if_due()
            while self.state.next_step < self.s.steps and not self.stop.is_set() and not self.alarm.stops:
                self._step(self.state.next_step)
                self._evaluate_if_due()
        finished = self.state.next_step >= self.s.steps
        self._checkpoint()
        self.rollouts.recover()  # what was graded twice and came late
        self.record.status("finished" if finished else "stopped", self.state.next_step, self.alarm.reason)
        return finished

    def _step(self, k: int) -> None:
        started = time.perf_counter()
        # with staleness 1 the next step's problems are asked for before this step's groups are waited for, so that generators
        # sample them while this step trains; their prompts depend on the seed and the step alone
        for ahead in range(k, min(k + self.s.max_staleness, self.s.steps - 1) + 1):
            self.rollouts.ask(train_requests(self.s, self.train_problems, ahead))
        collected = self.rollouts.collect(train_requests(self.s, self.train_problems, k))
        self.rollouts.drop_stale(collected, self.publisher.require_proof)
        # also a generator that sampled nothing of this step must have the version: it may sample the next one
        self.publisher.require_all(max(0, k - self.s.max_staleness), self.s.group_timeout_s, self.rollouts.check)
        self._require_any(k, collected)
        collected_at = time.perf_counter()
        if self.s.refresh_every and k and k % self.s.refresh_every == 0:
            self.ranks.refresh(self.pairs)
        rewards = self.shaper(collected.groups)
        refilled = self._refill(k, collected, rewards)
        shaped_at = time.perf_counter()
        planted = [] if self.reseeder is None else self.reseeder(collected.groups)
        batch = collate(collected.groups, rewards, self.s, version=k, refilled=refilled, planted=planted)
        failpoints.reached("collected")
        if batch.stats["hack_strict"] is not None:
            self.state.hack_rates.append(batch.stats["hack_strict"])
        metrics = self.ranks.train_step(batch.rows, k, intervenes(self.s, k, self.state.hack_rates, self.alarm.rung))
        failpoints.reached("optimised")
        self.state.next_step = k + 1  # before the push: a checkpoint taken from here on must push the new version again
        seconds = {"shape": shaped_at - collected_at, "train": time.perf_counter() - shaped_at, "push": self.push_s,
                   "wait": collected.waited_s}  # fmt: skip
        self._push(k + 1)
        self._write(k, collected, batch, metrics, seconds | {"total": time.perf_counter() - started})
        self.pending.append(collected)
        if (k + 1) % self.s.checkpoint_every == 0:
            self._checkpoint()

    def _refill(self, k: int, collected: Collected, rewards: Rewards) -> int:
        """Add to a step's groups and rewards those sampled in place of groups without variance; how many they are."""
        if not self.s.refill:
            return 0

        def sample(requests: list[GenerationRequest]) -> list[GradedGroup]:
            more = self.rollouts.collect(requests)
            self.rollouts.drop_stale(more, self.publisher.require_proof)
            collected.dropped |= more.dropped
            collected.deliveries += more.deliveries
            collected.waited_s += more.waited_s
            return more.groups

        groups, paid = refill(self.s, self.train_problems, k, rewards, sample, self.shaper)
        collected.groups += groups
        rewards += paid
        return len(groups)

    def _require_any(self, k: int, collected: Collected) -> None:
        """QueueError when not one group of step k came; the finished steps are saved, and a new start asks again."""
        if collected.groups:
            return
        self._checkpoint()
        self.rollouts.acknowledge(collected)  # or the next start would find the same dropped groups and end at once
        reason = next(iter(collected.dropped.values()), "none was asked for")
        raise QueueError(
            f"all {len(collected.dropped)} groups of step {k} were dropped (first: {reason}); mend the cause and start the "
            "same command again: it asks for them anew"
        )

    def _resume(self) -> None:
        found = self.ranks.load(self.s.run_dir)
        if found is not None:
            self.state = found
            self.publisher.restore(found.expected)
            self.alarm.restore(found.alarm)
        # rows of steps after the checkpoint were never in it: they are done again, with other bits where the hardware is
        # another, and must not stand twice
        self.record.cut(self.state.next_step, self.state.evaluated)
        self.record.alarm(self.alarm.evidence())
        if self.state.updates is None:
            self.state.updates = self.record.updates()
        self.record.replay()
        self.record.count(self.state.outcomes, self.state.tokens)
        self.rollouts.trained_before = self.state.next_step  # late copies of trained groups are told by their step
        self.rollouts.recover()
        self.record.status("running", self.state.next_step, self.alarm.reason)
        self._push(self.state.next_step)

    def _push(self, version: int) -> None:
        """Publish delta_S; its proof is required before a group sampled from it is trained on."""
        started = time.perf_counter()
        vector, probe = self.ranks.snapshot(self.publisher.probe_ids)
        self.fence()  # a trainer that was stopped and replaced meanwhile must not push over its successor
        self.publisher.push(version, vector, probe)
        self.push_s = time.perf_counter() - started

    def _checkpoint(self) -> None:
        """Save, and only then acknowledge the groups that are in the saved state."""
        self.fence()
        self.state.expected = self.publisher.remembered()
        self.state.alarm = self.alarm.state()
        failpoints.reached("pushed")
        self.ranks.save(self.state, self.s.run_dir, self.s.keep_checkpoints)
        failpoints.reached("checkpoint_done")
        for collected in self.pending:
            self.rollouts.acknowledge(collected)
        self.pending = []

    def _write(
        self, k: int, collected: Collected, batch: TrainBatch, metrics: dict[str, Any] | None, seconds: dict[str, float]
    ) -> None:
        outcomes = self.rollouts.take_outcomes() + Counter(
            trained=len(collected.groups) - batch.stats["zero_variance_groups"],
            zero_variance=batch.stats["zero_variance_groups"],
        )
        self.state.outcomes = dict(Counter(self.state.outcomes) + outcomes)
        self.state.tokens += batch.stats["tokens"]
        self.state.updates = (self.state.updates or 0) + (metrics is not None)
        row = step_row(k, collected, batch, metrics, seconds, self.publisher, outcomes, self.state.updates)
        if self.alarm.step(row):
            self.record.alarm(self.alarm.evidence())
        cosines = [metrics[name].tolist() if metrics and name in metrics else None for name in ("cos", "update_cos")]
        self.record.step(row, *cosines)
        self.record.count(outcomes, batch.stats["tokens"])
        first = len(collected.groups) - batch.stats["refill_sampled"]
        self.record.rollouts(k, collected.groups[:first], batch.advantages[:first], "train")
        if first < len(collected.groups):
            self.record.rollouts(k, collected.groups[first:], batch.advantages[first:], "refill")
        if batch.planted:
            self.record.rollouts(k, batch.planted, batch.planted_advantages, MODE)
        self.record.status("running", k + 1, self.alarm.reason)
        self.show(row)

    def _evaluate_if_due(self) -> None:
        k, every = self.state.next_step, self.s.eval_every
        due = k in (0, self.s.steps) or (every and k % every == 0)
        if not due or k in self.state.evaluated or self.stop.is_set():
            return

        def keep(groups: Sequence[GradedGroup], mode: str) -> None:
            blank = [[float("nan")] * len(g.grades) for g in groups]
            self.record.rollouts(k, groups, blank, mode)

        used = used_test_names(self.train_problems)
        rows = evaluate(self.s, self.rollouts, self.heldout_problems, k, k, keep, used)
        margin = self.ranks.nll_margin(self.heldout_pairs) if self.heldout_pairs else None
        for row in rows:
            row["nll_margin"] = margin
            self.record.evaluation(row)
            self.alarm.evaluation(row)
        self.state.evaluated.append(k)
