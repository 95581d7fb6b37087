"""The trainer's side of the queue: ask for groups, wait for them graded, hand each out exactly once.

A group is trained once because of three things: its id is deterministic (run/train/step/index), ids already in hand or
already trained are dropped and counted, and a group is acknowledged only after the checkpoint that contains it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from common import keys
from common.errors import QueueError
from common.queue import Delivery, Queue
from common.types import DroppedGroup, GenerationRequest, GradedGroup


@dataclass
class Collected:
    """What came of one set of requests: groups in request order, and the dropped ones with their reason."""

    groups: list[GradedGroup]
    dropped: dict[str, str]
    deliveries: list[Delivery] = field(default_factory=list)
    waited_s: float = 0.0


class Rollouts:
    """Asks and collects for one run. `fates` counts what became of every message seen."""

    def __init__(self, queue: Queue, run_id: str, timeout_s: float, check: Callable[[], None]):
        """`check()` is called while waiting and may raise (asked to stop, lock lost)."""
        self.queue, self.run_id, self.timeout_s, self.check = queue, run_id, timeout_s, check
        self.stream = keys.graded(run_id)
        self.fates: Counter[str] = Counter()
        self._in_hand: dict[str, Delivery] = {}
        self._asked: set[str] = set()
        self._finished: set[str] = set()
        self.trained_before = 0

    def ask(self, requests: list[GenerationRequest]) -> None:
        """Put the requests that are neither asked for nor here yet."""
        new = [r for r in requests if r.group_id not in self._asked and r.group_id not in self._in_hand]
        if new:
            self.queue.put_many(keys.REQUESTS, new)
            self._asked.update(r.group_id for r in new)

    def recover(self) -> None:
        """After a restart: take in what the former process had received and not acknowledged."""
        while True:
            taken = self._take(wait_s=0.01)
            if not taken:
                return

    def collect(self, requests: list[GenerationRequest]) -> Collected:
        """Wait until every request is answered (graded or dropped). QueueError after `timeout_s` without any news."""
        wanted = [r.group_id for r in requests]
        started = last_news = time.monotonic()
        while missing := [g for g in wanted if g not in self._in_hand]:
            self.check()
            if self._take(wait_s=1.0):
                last_news = time.monotonic()
            elif time.monotonic() - last_news > self.timeout_s:
                raise QueueError(
                    f"{len(missing)} of {len(wanted)} groups did not come within {self.timeout_s:.0f} s (first: {missing[0]}); "
                    "are ref_server and sandbox running? (`python -m experiments status`)"
                )
        return self._hand_out(requests, time.monotonic() - started)

    def take_fates(self) -> Counter[str]:
        """Counts since the last call."""
        fates, self.fates = self.fates, Counter()
        return fates

    def acknowledge(self, collected: Collected) -> None:
        """After the checkpoint: these messages are never needed again."""
        self.queue.done(keys.TRAINERS, *collected.deliveries)

    def _take(self, wait_s: float) -> bool:
        taken = self.queue.take(self.stream, keys.TRAINERS, (GradedGroup, DroppedGroup), count=64, wait_s=wait_s)
        for delivery in taken:
            self._receive(delivery)
        return bool(taken)

    def _receive(self, delivery: Delivery) -> None:
        message = delivery.message
        group = message.group if isinstance(message, GradedGroup) else message
        too_old = isinstance(message, GradedGroup) and group.purpose == "train" and group.step < self.trained_before
        if (
            group.run_id != self.run_id
            or too_old
            or group.group_id in self._finished
            or group.group_id in self._in_hand
        ):
            self.fates["duplicate"] += 1
            self.queue.done(keys.TRAINERS, delivery)
            return
        self._in_hand[group.group_id] = delivery
        self._asked.discard(group.group_id)

    def _hand_out(self, requests: list[GenerationRequest], waited_s: float) -> Collected:
        out = Collected([], {}, [], waited_s)
        for request in requests:
            delivery = self._in_hand.pop(request.group_id)
            message = delivery.message
            out.deliveries.append(delivery)
            self._finished.add(request.group_id)
            if isinstance(message, DroppedGroup):
                out.dropped[request.group_id] = f"{message.stage}: {message.reason}"
                self.fates["dropped"] += 1
            elif message.group.policy_version < request.min_version:
                out.dropped[request.group_id] = f"stale: version {message.group.policy_version} < {request.min_version}"
                self.fates["stale"] += 1
            else:
                out.groups.append(message)
        return out
