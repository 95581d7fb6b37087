"""The parts of one run, made and joined; train.py is the loop over them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from common.metrics import Metrics
from common.queue import Queue
from common.settings import TrainerSettings
from common.types import Problem
from services.trainer import evaluate
from services.trainer.policy import Policy
from services.trainer.publish import Publisher
from services.trainer.rank_group import RankGroup
from services.trainer.record import Record, keep_directions, open_run
from services.trainer.reseed import Reseeder, hacks_for
from services.trainer.rollouts import Rollouts
from services.trainer.shaping import Shaper
from services.trainer.text import Text
from services.trainer.train import Trainer
from tasks.dataset import load_problems
from tasks.loopholes import posed, used_test_names

log = logging.getLogger("trainer")

Problems = tuple[list[Problem], list[Problem]]  # to train on, held out


@dataclass(frozen=True)
class Around:
    """What a run hears of the process it is in.

    stop: set when it is asked to end after a step. check: called while it waits, may raise (asked to stop, lock lost).
    fence: raises when another trainer has taken over; asked before anything is pushed or saved. show: takes each row.
    """

    stop: threading.Event
    check: Callable[[], None]
    fence: Callable[[], None]
    show: Callable[[dict[str, Any]], None]


def read_problems(s: TrainerSettings) -> Problems:
    """Both files, posed with the loophole of the run. ConfigError for a problem that an evaluation cannot pose."""
    train, heldout = ([posed(p, s.loophole) for p in load_problems(f)] for f in (s.train_problems, s.heldout_problems))
    evaluate.posed(s, heldout, used_test_names(train))
    return train, heldout


def build(
    s: TrainerSettings, client: redis.Redis, policy: Policy, problems: Problems, metrics: Metrics, around: Around
) -> Trainer:
    """Everything the loop uses. Opens the run directory."""
    from rankspace import gpu

    open_run(s)
    keep_directions(s)
    text = Text(s)
    # However often a trainer is restarted, its groups are no poison.
    queue = Queue(client, f"trainer-{s.run_id}", claim_idle_s=3600, max_deliveries=2**31)
    publisher = Publisher(queue, s.run_id, policy.modules, text.probe(problems[1]), s.probe_bound, s.adapter)
    rollouts = Rollouts(queue, s.run_id, s.group_timeout_s, around.check, publisher.push_again, text.prompt)
    direction = None if policy.direction is None else {"kind": policy.direction.kind, **policy.direction.metadata}
    record = Record(s, metrics, policy.modules, direction)
    record.gauges.watch_gpu(gpu.memory(policy.device))
    shaper = Shaper(s, policy, text.pairs)
    pairs = text.pairs(s.pairs) if s.refresh_every else []
    heldout_pairs = text.pairs(s.pairs, "heldout") if s.pairs else []
    ranks = RankGroup(policy)
    return Trainer(
        s, ranks, rollouts, publisher, record, shaper, problems, pairs, around.stop, around.show, around.fence,
        heldout_pairs, _reseeder(s, problems[0], text, ranks),
    )  # fmt: skip


def _reseeder(s: TrainerSettings, problems: list[Problem], text: Text, ranks: RankGroup) -> Reseeder | None:
    if not s.reseed:
        return None
    from rankspace.pairs import load_pairs

    assert s.hacks is not None  # TrainerSettings has checked it
    hacks = hacks_for(s, problems, load_pairs(s.hacks), text.hack)
    log.info("hacks for %d of %d training problems", len(hacks), len(problems))
    return Reseeder(hacks, ranks.score)
