"""The trainer's side of the queue: ask for groups, wait for them graded, hand each out exactly once.

A group is trained once because of three things: its id is deterministic (run/train/step/index), ids already in hand or
already trained are dropped and counted, and a group is acknowledged only after the checkpoint that contains it.

What comes back has been in other hands. It is taken only if this trainer asked for that id and has no answer yet, if it
answers what was asked (problem, purpose, step, number and length of completions), and if a generator has sealed these
very completions (common/digests.py). Anything else is counted as refused and goes to the dead letters with the reason.
A group that is nowhere on its way any more (Redis lost its last second, a grader threw it away) is asked for again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from common import digests, keys
from common.errors import ConfigError, QueueError
from common.queue import Delivery, Queue
from common.types import DroppedGroup, GenerationRequest, GradedGroup, RolloutGroup

log = logging.getLogger("trainer")

LOST_AFTER = 3  # looks at empty streams before what is missing counts as lost
PARKED = 4096  # answers held whose question this process has not put yet


@dataclass
class Collected:
    """What came of one set of requests: groups in request order, and the dropped ones with their reason."""

    groups: list[GradedGroup]
    dropped: dict[str, str]
    deliveries: list[Delivery] = field(default_factory=list)
    waited_s: float = 0.0


class Rollouts:
    """Asks and collects for one run. `outcomes` counts what became of every message seen."""

    def __init__(
        self,
        queue: Queue,
        run_id: str,
        timeout_s: float,
        check: Callable[[], None],
        after_outage: Callable[[], None] = lambda: None,
        render: Callable[[list[dict[str, str]]], list[int]] | None = None,
    ):
        """`check()` is called while waiting and may raise (asked to stop, lock lost); `after_outage()` when Redis was
        away and is back, perhaps without its last second. `render`: messages -> token ids as the pairs are rendered; the
        first group of each generator must have been prompted so."""
        self.queue, self.run_id, self.timeout_s, self.check = queue, run_id, timeout_s, check
        self.after_outage, self.render = after_outage, render
        self._alike: set[str] = set()
        self.stream = keys.graded(run_id)
        self.outcomes: Counter[str] = Counter()
        self.trained_before = 0
        self._asked: dict[str, GenerationRequest] = {}
        self._in_hand: dict[str, Delivery] = {}
        self._parked: dict[str, list[Delivery]] = {}
        self._finished: set[str] = set()
        self._held: set[bytes] = set()
        self._outages = queue.outages

    def ask(self, requests: list[GenerationRequest]) -> None:
        """Put the requests that are neither asked for nor here yet."""
        new = [r for r in requests if r.group_id not in self._asked and r.group_id not in self._in_hand]
        for request in new:
            self._asked[request.group_id] = request
            # an answer may come before its question: a former process asked, died, and this one reads the answer first
            for delivery in self._parked.pop(request.group_id, ()):
                self._receive(delivery)
        self._put(r for r in new if r.group_id in self._asked)

    def recover(self) -> None:
        """After a restart: take in what the former process had received and not acknowledged."""
        while self._take(wait_s=0.01):
            pass

    def collect(self, requests: list[GenerationRequest]) -> Collected:
        """Ask, unless that is done, and wait until every request is answered (graded or dropped).

        QueueError after `timeout_s` without any news.
        """
        self.ask(requests)
        wanted = [r.group_id for r in requests]
        started = last_news = time.monotonic()
        empty = 0
        while missing := [g for g in wanted if g not in self._in_hand]:
            self.check()
            if self._take(wait_s=1.0):
                last_news, empty = time.monotonic(), 0
                continue
            # the two depths are read one after the other, and a group can pass between the readings: only several looks in
            # a row say that it is lost
            empty = empty + 1 if self._nothing_on_its_way() else 0
            if empty >= LOST_AFTER:
                self._ask_again(missing)
                empty = 0
            if time.monotonic() - last_news > self.timeout_s:
                raise QueueError(
                    f"{len(missing)} of {len(wanted)} groups did not come within {self.timeout_s:.0f} s (first: {missing[0]}); "
                    "are ref_server and sandbox running? (`python -m experiments status`)"
                )
        return self._hand_out(requests, time.monotonic() - started)

    def take_outcomes(self) -> Counter[str]:
        """Counts since the last call."""
        outcomes, self.outcomes = self.outcomes, Counter()
        return outcomes

    def drop_stale(self, collected: Collected, fresh: Callable[[GradedGroup], bool]) -> None:
        """Take the groups that are not `fresh` out of `collected` and count them as stale."""
        groups, collected.groups = collected.groups, []
        for graded in groups:
            if fresh(graded):
                collected.groups.append(graded)
                continue
            self.outcomes["stale"] += 1
            collected.dropped[graded.group.group_id] = (
                f"stale: it was sampled from an earlier push of version {graded.group.policy_version}, before a restart"
            )

    def acknowledge(self, collected: Collected) -> None:
        """After the checkpoint: these messages are never needed again."""
        self.queue.ack(keys.TRAINERS, *collected.deliveries)
        self._held.difference_update(d.entry_id for d in collected.deliveries)
        digests.forget(self.queue.client, self.run_id, [_group(d.message).group_id for d in collected.deliveries])

    # -- inside ---------------------------------------------------------------------------------------------------

    def _put(self, requests: Iterable[GenerationRequest]) -> None:
        if batch := list(requests):
            self.queue.publish_many(keys.REQUESTS, batch)

    def _take(self, wait_s: float) -> bool:
        taken = self.queue.consume(self.stream, keys.TRAINERS, (GradedGroup, DroppedGroup), count=64, wait_s=wait_s)
        if self._outages != self.queue.outages:
            self._outages = self.queue.outages
            self.after_outage()
        for delivery in taken:
            if delivery.entry_id not in self._held:  # after an outage what is in hand is shown once more
                self._receive(delivery)
        return bool(taken)

    def _nothing_on_its_way(self) -> bool:
        """In the order of flow: a group enters the next stream before it leaves the last one."""
        return self.queue.depth(keys.REQUESTS) == 0 and self.queue.depth(keys.ROLLOUTS) == 0

    def _ask_again(self, missing: list[str]) -> None:
        log.warning("%d groups are nowhere on their way any more; asking again (first: %s)", len(missing), missing[0])
        self.outcomes["asked_again"] += len(missing)
        self._put(self._asked[group_id] for group_id in missing)

    def _receive(self, delivery: Delivery) -> None:
        message, group = delivery.message, _group(delivery.message)
        request = self._asked.get(group.group_id)
        if self._is_old(message):
            self.outcomes["duplicate"] += 1
            self._let_go(delivery)
        elif reason := self._forged(message, request):
            log.warning("refused an answer to %s: %s", group.group_id, reason)
            self.outcomes["refused"] += 1
            self.queue.dead_letter(keys.TRAINERS, delivery, reason)  # the request stays open: an honest answer may come
            self._held.discard(delivery.entry_id)
        elif request is None:
            self._held.add(delivery.entry_id)
            self._parked.setdefault(group.group_id, []).append(delivery)
        else:
            self._held.add(delivery.entry_id)
            self._in_hand[group.group_id] = delivery
            del self._asked[group.group_id]

    def _let_go(self, delivery: Delivery) -> None:
        self.queue.ack(keys.TRAINERS, delivery)
        self._held.discard(delivery.entry_id)

    def _is_old(self, message: GradedGroup | DroppedGroup) -> bool:
        past = (
            isinstance(message, GradedGroup)
            and message.group.purpose == "train"
            and message.group.step < self.trained_before
        )
        group = _group(message)
        return past or group.group_id in self._finished or group.group_id in self._in_hand

    def _forged(self, message: GradedGroup | DroppedGroup, request: GenerationRequest | None) -> str:
        """Why this cannot be an honest answer; empty when it can."""
        group = _group(message)
        if group.run_id != self.run_id:
            return f"it is of run {group.run_id}"
        if request is None and sum(map(len, self._parked.values())) >= PARKED:
            return "nobody asked for it"
        if isinstance(message, DroppedGroup):
            return ""
        if not digests.sealed(self.queue.client, message.group):
            return "no generator has sealed these completions"
        return "" if request is None else unlike(message, request)

    def _hand_out(self, requests: list[GenerationRequest], waited_s: float) -> Collected:
        out = Collected([], {}, [], waited_s)
        for request in requests:
            delivery = self._in_hand.pop(request.group_id)
            message = delivery.message
            out.deliveries.append(delivery)
            self._finished.add(
                request.group_id
            )  # a second grader's answer to the same group is a duplicate from now on
            outcome = ""
            if isinstance(message, DroppedGroup):
                outcome, out.dropped[request.group_id] = "dropped", f"{message.stage}: {message.reason}"
            elif message.group.policy_version < request.min_version:
                outcome = "stale"
                out.dropped[request.group_id] = f"stale: version {message.group.policy_version} < {request.min_version}"
            else:
                self._require_alike(message.group)
                out.groups.append(message)
            if outcome and request.purpose == "train":  # an evaluation counts its own
                self.outcomes[outcome] += 1
        return out

    def _require_alike(self, group: RolloutGroup) -> None:
        """ConfigError when a generator renders prompts otherwise than this run's pairs are."""
        if self.render is None or group.replica in self._alike:
            return
        if self.render(group.problem.prompt) != group.prompt_ids:
            raise ConfigError(
                f"generator {group.replica} renders problem {group.problem.id} otherwise than this run's settings do: give both "
                "the same model, chat_template_kwargs and chat_date (`python -m experiments prepare` writes both files)"
            )
        self._alike.add(group.replica)


def unlike(graded: GradedGroup, request: GenerationRequest) -> str:
    """How a graded group differs from what was asked for; empty when it answers it. Pure."""
    group, plan = graded.group, request.sampling
    if group.problem != request.problem:
        return "its problem is not the one that was asked"
    if (group.purpose, group.step) != (request.purpose, request.step):
        return f"it is of {group.purpose} step {group.step}, asked was {request.purpose} step {request.step}"
    if len(group.completions) != plan.n:
        return f"it has {len(group.completions)} completions, asked were {plan.n}"
    longest = max(len(c.token_ids) for c in group.completions)
    return f"a completion has {longest} tokens, the plan allows {plan.max_tokens}" if longest > plan.max_tokens else ""


def _group(message: GradedGroup | DroppedGroup) -> RolloutGroup | DroppedGroup:
    return message.group if isinstance(message, GradedGroup) else message
