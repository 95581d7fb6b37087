"""Completions graded by another worker than their group's owner: a group takes as long as its slowest one, wherever lanes are.

    generator:  completion done, its group not ─ offer ─┐
    owner:      group in work for half a second ─ offer ┴─> rs:siblings (list)   what no lane has begun
    idle:       take ── LPOP, then HSETNX rs:siblings:{token}:claims ──> grade it ──> rs:siblings:{token}:grades
    owner:      when it begins the group: claims all of it at once, in one transaction, and reads claims and grades
                    answered ──> that grade        claimed ──> waits for the answer        else ──> grades it itself
                later, for each completion that it has offered: HSETNX ──> grades it, or waits for the answer

Whoever sets the field of a completion in the claims grades it, so it is graded once, whether its owner or another worker
comes first. Early offers of a group share a token that both sides derive; each round of an owner has one of its own. An
owner that waits in vain, because the other died, grades the completion itself; its group is published by itself alone,
once. When the owner dies its group is delivered anew: early grades still count, nobody waits for an owner's claim, and the
keys of its round expire.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from common import keys, offers
from common.errors import WireError
from common.types import Grade, Problem, Sibling
from common.wire import pack, unpack

KEPT_S = 600
ASK_EVERY_S = 0.02
OWNERS = "0"  # as the time of a claim: so long ago that nobody waits for it


@dataclass(frozen=True)
class Taken:
    """An offer that this worker has claimed, and its field in the claims and the grades."""

    sibling: Sibling
    field: str


class Offers(offers.Offers):
    """What one worker offers, takes, claims and answers. Raises redis.RedisError where Redis stays away."""

    def take(self) -> Taken | None:
        """An offered completion that nobody has begun, claimed for this worker."""
        while (data := cast("bytes | None", self.client.lpop(keys.SIBLINGS))) is not None:
            try:
                taken = Taken(unpack(data, Sibling), offers.digest(data))
            except WireError:
                continue  # no message of ours; whoever wrote it waits for nothing
            if self.claim(taken.sibling.token, taken.field):
                return taken
        return None

    def claim(self, token: str, field: str) -> bool:
        """Whether this worker grades the completion. A reply that was lost counts as no: then its owner waits and grades it."""
        key = keys.sibling_claims(token)
        pipe = self.client.pipeline(transaction=True)
        pipe.hsetnx(key, field, repr(time.time()))
        pipe.expire(key, KEPT_S)
        return bool(pipe.execute()[0])

    def claim_rest(self, token: str, fields: Sequence[str]) -> tuple[list[float], list[Grade | None]]:
        """For an owner: claim what nobody has claimed. When each was claimed (Unix s; 0: by an owner), and its grade."""
        claims = keys.sibling_claims(token)
        pipe = self.client.pipeline(transaction=True)
        pipe.hmget(keys.sibling_grades(token), list(fields))
        for field in fields:
            pipe.hsetnx(claims, field, OWNERS)
        pipe.hmget(claims, list(fields))
        pipe.expire(claims, KEPT_S)
        grades, *_, claimed, _ = pipe.execute()
        return [_time(value) for value in claimed], [_grade(value) for value in grades]

    def answer(self, taken: Taken, grade: Grade) -> None:
        key = keys.sibling_grades(taken.sibling.token)
        pipe = self.client.pipeline(transaction=True)
        pipe.hset(key, taken.field, pack(grade))
        pipe.expire(key, KEPT_S)
        pipe.execute()

    def answered(self, token: str, field: str) -> Grade | None:
        return _grade(cast("bytes | None", self.client.hget(keys.sibling_grades(token), field)))


def _grade(data: bytes | None) -> Grade | None:
    """None too for what is no grade: another grader wrote it, and a bad one must not end us."""
    try:
        return None if data is None else unpack(data, Grade)
    except WireError:
        return None


def _time(claim: bytes) -> float:
    """When a claim says that it was made, in Unix s; 0 where it says nothing of the kind."""
    try:
        return float(claim)
    except ValueError:
        return 0.0


class Round:
    """One grading of one group's distinct `texts` by their owner; thread-safe."""

    def __init__(self, offers: Offers, problem: Problem, texts: Sequence[str]):
        self.offers, self.problem, self.texts = offers, problem, texts
        self.token = uuid.uuid4().hex
        self.early: dict[int, Grade] = {}  # grades that were there before the round began
        self._elsewhere: dict[int, tuple[str, str, float]] = {}  # token and field of the answer; when it was claimed
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._offered: dict[int, str] = {}  # with their field

    def claim_early(self, token: str) -> list[int]:
        """Ask what became of the completions that were offered under `token`, and claim the rest: those are returned.

        An early grade that says that we failed is no grade: its completion is the owner's again.
        """
        fields = [offers.digest(pack(self._sibling(token, i))) for i in range(len(self.texts))]
        rest = []
        for i, (at, grade) in enumerate(zip(*self.offers.claim_rest(token, fields), strict=True)):
            if grade is not None and grade.status == "graded":
                self.early[i] = grade
            elif grade is None and at > 0:
                self._elsewhere[i] = (token, fields[i], at)
            else:
                rest.append(i)
        with self._lock:
            self._begun.update(self.early, self._elsewhere)
        return rest

    def begin(self, index: int) -> bool:
        """Whether a lane of the owner grades this completion; False: another worker does."""
        with self._lock:
            if index not in self._offered:
                self._begun.add(index)
                return True
        if self.offers.claim(self.token, self._offered[index]):
            return True
        self._elsewhere[index] = (self.token, self._offered[index], time.time())
        return False

    def offer(self) -> None:
        """Offer what no lane has begun. From now on `begin` asks first."""
        with self._lock:
            siblings = {i: self._sibling(self.token, i) for i in range(len(self.texts)) if i not in self._begun}
            self._offered = {i: offers.digest(pack(sibling)) for i, sibling in siblings.items()}
        self.offers.put(list(siblings.values()))

    def answer(self, index: int, patience_s: float) -> Grade | None:
        """What the worker that took the completion says of it; None when that is nothing `patience_s` after its claim.

        The claim's time is another machine's: no clock makes the wait longer than `patience_s` from now.
        """
        token, field, at = self._elsewhere[index]
        deadline = time.monotonic() + min(patience_s, at + patience_s - time.time())
        while (grade := self.offers.answered(token, field)) is None and time.monotonic() < deadline:
            time.sleep(ASK_EVERY_S)
        return grade

    def _sibling(self, token: str, index: int) -> Sibling:
        return Sibling(token=token, problem=self.problem, text=self.texts[index])
