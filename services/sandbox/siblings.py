"""Completions of a slow group, offered to idle workers: a group takes as long as its slowest completion, wherever lanes are.

    owner:  group in work for a while ── offer ──> rs:siblings (list)      one entry for each completion it has not begun
    idle:   take ── LPOP, then HSETNX rs:siblings:{token}:claims ──> grade it ── answer ──> rs:siblings:{token}:grades
    owner:  begin ── HSETNX, for each completion that it offered ──> grades it itself, or waits for the answer

Whoever sets the field of a completion in the claims grades it, so it is graded once, whether its owner or another worker
comes first. An owner that waits in vain, because the other died, grades it itself; its group is published by itself
alone, once. When the owner dies its group is delivered anew, under another token; the keys of the former one expire.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from typing import cast

import redis

from common import keys
from common.errors import WireError
from common.types import Grade, Problem, Sibling
from common.wire import pack, unpack

MOST_OFFERS = 1024  # in the list: with every worker busy further ones would only fill Redis
KEPT_S = 600
ASK_EVERY_S = 0.02


class Offers:
    """What one worker (`name`) offers, takes and answers. Raises redis.RedisError where Redis stays away."""

    def __init__(self, client: redis.Redis, name: str):
        self.client, self.name = client, name

    def put(self, siblings: Sequence[Sibling]) -> None:
        """Offer them, unless the list is full: their owner grades them anyway."""
        if siblings and int(self.client.llen(keys.SIBLINGS)) < MOST_OFFERS:
            self.client.rpush(keys.SIBLINGS, *[pack(s) for s in siblings])

    def take(self) -> Sibling | None:
        """An offered completion that nobody has begun, claimed for this worker."""
        while (data := self.client.lpop(keys.SIBLINGS)) is not None:
            try:
                sibling = unpack(cast(bytes, data), Sibling)
            except WireError:
                continue  # no message of ours; whoever wrote it waits for nothing
            if self.claim(sibling.token, sibling.index):
                return sibling
        return None

    def claim(self, token: str, index: int) -> bool:
        """Whether this worker grades the completion. A reply that was lost counts as no: then its owner waits and grades it."""
        key = keys.sibling_claims(token)
        pipe = self.client.pipeline(transaction=True)
        pipe.hsetnx(key, str(index), self.name)
        pipe.expire(key, KEPT_S)
        return bool(pipe.execute()[0])

    def answer(self, sibling: Sibling, grade: Grade) -> None:
        key = keys.sibling_grades(sibling.token)
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(key, str(sibling.index), pack(grade))
        pipe.expire(key, KEPT_S)
        pipe.execute()

    def answered(self, token: str, index: int) -> Grade | None:
        data = self.client.hget(keys.sibling_grades(token), str(index))
        return None if data is None else unpack(cast(bytes, data), Grade)


class Round:
    """One grading of one group's distinct `texts` by their owner; thread-safe."""

    def __init__(self, offers: Offers, problem: Problem, texts: Sequence[str]):
        self.offers, self.problem, self.texts = offers, problem, texts
        self.token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._offered: set[int] = set()

    def begin(self, index: int) -> bool:
        """Whether a lane of the owner grades this completion; False: another worker does."""
        with self._lock:
            if index not in self._offered:
                self._begun.add(index)
                return True
        return self.offers.claim(self.token, index)

    def offer(self) -> None:
        """Offer what no lane has begun. From now on `begin` asks first."""
        with self._lock:
            self._offered = set(range(len(self.texts))) - self._begun
        self.offers.put(
            [
                Sibling(token=self.token, index=i, problem=self.problem, text=self.texts[i])
                for i in sorted(self._offered)
            ]
        )

    def answer(self, index: int, patience_s: float) -> Grade | None:
        """What the worker that took the completion says of it; None when it says nothing for that long."""
        deadline = time.monotonic() + patience_s
        while (grade := self.offers.answered(self.token, index)) is None and time.monotonic() < deadline:
            time.sleep(ASK_EVERY_S)
        return grade
