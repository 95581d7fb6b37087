"""Redis Streams behind five verbs: publish, consume, ack, dead_letter, renew_lease.

    producer ── publish ──> stream ── consume ──> consumer ── ack ──> gone (acknowledged and deleted)
      waits while the stream is full       │
      (back-pressure)                      ├─ dies: after `claim_idle_s` another `consume` claims its work (XAUTOCLAIM)
                                           └─ dead_letter: to the dead-letter stream with the reason; also after N
                                              deliveries

Work may be done twice (a slow consumer is taken for dead); every consumer is idempotent by group id. `ack` deletes,
so a stream's length is its backlog. A Redis that died while it wrote its append-only file may bring back a message that
it had taken back before: it is nobody's work any more and would count as backlog for ever, so it is swept away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis

from common import keys
from common.access import connect as connect
from common.errors import QueueError, WireError
from common.types import Message
from common.wire import pack, unpack

FIELD = b"m"
DEAD_LETTERS_KEPT = 1000
SWEPT_AT_ONCE = 64

Fields = dict[bytes, bytes]
Entry = tuple[bytes, Fields, int]  # (entry id, fields, how often delivered)
OnDeadLetter = Callable[[Any, str], None]  # the message is of one of the kinds that were asked for


@dataclass(frozen=True)
class Delivery:
    """One message in a consumer's hands. `attempt` counts deliveries, from 1."""

    stream: str
    entry_id: bytes
    attempt: int
    message: Any


class Queue:
    """One consumer's (or maker's) view of the streams.

    consumer    unique name of this process; a restarted process with the same name gets its unfinished work back at once
    maxlen      back-pressure bound on a stream's backlog, in messages
    """

    def __init__(
        self,
        client: redis.Redis,
        consumer: str,
        maxlen: int = 4096,
        claim_idle_s: float = 30.0,
        max_deliveries: int = 3,
    ):
        self.client = client
        self.consumer = consumer
        self.maxlen = maxlen
        self.claim_idle_s = claim_idle_s
        self.max_deliveries = max_deliveries
        self._groups: set[tuple[str, str]] = set()
        self._recovery: dict[tuple[str, str], bytes | None] = {}
        self._outages_seen = self.outages

    def publish(self, stream: str, message: Message, timeout_s: float = 600.0) -> None:
        """Append; wait while the stream is full. QueueError after `timeout_s`."""
        self._wait_for_room(stream, timeout_s)
        self.client.xadd(stream, {FIELD: pack(message)})

    def publish_many(self, stream: str, messages: Sequence[Message], timeout_s: float = 600.0) -> None:
        """Append several at once (one transaction), so that a consumer sees them together and can batch them."""
        self._wait_for_room(stream, timeout_s)
        pipe = self.client.pipeline(transaction=True)
        for message in messages:
            pipe.xadd(stream, {FIELD: pack(message)})
        pipe.execute()

    def consume(
        self,
        stream: str,
        group: str,
        kinds: tuple[type[Message], ...],
        count: int = 1,
        wait_s: float = 1.0,
        on_dead_letter: OnDeadLetter | None = None,
        again: int | None = None,
    ) -> list[Delivery]:
        """Up to `count` messages: our own unfinished ones first, then those of dead consumers, then new ones.

        A message that cannot be decoded, or that was delivered more than `max_deliveries` times, goes to the
        dead-letter stream; `on_dead_letter(message, reason)` is told about the latter. again: how many at most of those
        that were delivered before (default: count); with 1 a message that kills its consumer raises only its own count.
        """
        if self.outages != self._outages_seen:
            self._outages_seen = self.outages
            self.forget()
        try:
            return self._consume(stream, group, kinds, (count, again or count), wait_s, on_dead_letter)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self.forget()  # Redis came back without the stream: next time it is made anew
            return []

    @property
    def outages(self) -> int:
        """How often the connection has met an absent Redis; replies, and the last second of data, may be lost then."""
        return int(getattr(self.client, "outages", 0))

    def _consume(
        self,
        stream: str,
        group: str,
        kinds: tuple[type[Message], ...],
        counts: tuple[int, int],
        wait_s: float,
        on_dead_letter: OnDeadLetter | None,
    ) -> list[Delivery]:
        count, again = counts
        self._ensure_group(stream, group)
        entries = self._own_pending(stream, group, again) or self._abandoned(stream, group, again)
        if not entries:
            new = self._read(stream, group, ">", count, block_ms=max(1, int(wait_s * 1000)))
            entries = [(entry_id, fields, 1) for entry_id, fields in new]
        return [d for d in (self._decode(stream, group, e, kinds, on_dead_letter) for e in entries) if d is not None]

    def ack(self, group: str, *deliveries: Delivery) -> None:
        """Acknowledge and delete, in one transaction."""
        if not deliveries:
            return
        pipe = self.client.pipeline(transaction=True)
        for d in deliveries:
            pipe.xack(d.stream, group, d.entry_id)
            pipe.xdel(d.stream, d.entry_id)
        pipe.execute()

    def dead_letter(self, group: str, delivery: Delivery, reason: str) -> None:
        """Move to the dead-letter stream with the reason."""
        self._dead_letter(delivery.stream, group, delivery.entry_id, pack(delivery.message), reason)

    @contextmanager
    def renew_lease(self, group: str, deliveries: list[Delivery]) -> Iterator[None]:
        """While the block runs, tell Redis that we are alive, so that long work is not taken for abandoned."""
        stop = threading.Event()

        def touch() -> None:
            while not stop.wait(self.claim_idle_s / 3):
                for d in deliveries:
                    try:
                        self.client.xclaim(d.stream, group, self.consumer, 0, [d.entry_id], justid=True)
                    except redis.RedisError:
                        # The main thread meets the same error at its next command and reports it.
                        return

        # as `ticking` of rankspace/progress.py, which common does not import
        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def depth(self, stream: str) -> int:
        """Backlog, in messages (waiting or in work)."""
        return int(self.client.xlen(stream))

    def forget(self) -> None:
        """After Redis restarted: look again whether our consumer groups exist, and for our own unfinished work."""
        self._groups.clear()
        self._recovery.clear()

    def _wait_for_room(self, stream: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.client.xlen(stream) >= self.maxlen:
            if time.monotonic() > deadline:
                raise QueueError(
                    f"stream {stream} has been full ({self.maxlen}) for {timeout_s:.0f} s: is its consumer running?"
                )
            time.sleep(0.05)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _ensure_group(self, stream: str, group: str) -> None:
        if (stream, group) in self._groups:
            return
        try:
            self.client.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise QueueError(f"stream {stream}: {error}") from None
            self._sweep(stream, group)
        self._groups.add((stream, group))

    def _sweep(self, stream: str, group: str) -> None:
        """Delete what lies behind the group's last delivery and is in nobody's hands: it will never be delivered."""
        groups = self.client.xinfo_groups(stream)
        last = next(g["last-delivered-id"] for g in groups if g["name"] == group.encode())
        after = b"-"
        while entries := cast(
            "list[tuple[bytes, Fields]]", self.client.xrange(stream, after, last, count=SWEPT_AT_ONCE)
        ):
            ids = [entry_id for entry_id, _ in entries]
            # a message in somebody's hands lies behind the last delivery too, and is not swept
            pending = self.client.xpending_range(stream, group, ids[0], ids[-1], 10**6)
            if dead := set(ids) - {p["message_id"] for p in cast("list[dict[str, Any]]", pending)}:
                self.client.xdel(stream, *dead)
            after = b"(" + ids[-1]

    def _read(
        self, stream: str, group: str, after: str | bytes, count: int, block_ms: int | None = None
    ) -> list[tuple[bytes, Fields]]:
        answer = self.client.xreadgroup(group, self.consumer, {stream: after}, count=count, block=block_ms)
        return cast("list[tuple[bytes, list[tuple[bytes, Fields]]]]", answer)[0][1] if answer else []

    def _own_pending(self, stream: str, group: str, count: int) -> list[Entry]:
        """After start, until read through: what a former process of our name left unfinished."""
        cursor = self._recovery.get((stream, group), b"0")
        if cursor is None:
            return []
        found = self._read(stream, group, cursor, count)
        # read on from there: an entry in work stays pending, and would be handed out again and again
        self._recovery[stream, group] = found[-1][0] if found else None
        entries = [(entry_id, fields) for entry_id, fields in found if fields]  # one without was deleted meanwhile
        return self._with_attempts(stream, group, entries)  # reading one's own pending list counts as a delivery

    def _abandoned(self, stream: str, group: str, count: int) -> list[Entry]:
        _, entries, *_ = self.client.xautoclaim(  # Redis 6.2 answers with two fields, 7 with three
            stream, group, self.consumer, int(self.claim_idle_s * 1000), "0", count=count
        )
        return self._with_attempts(stream, group, [(i, f) for i, f in entries if f])

    def _with_attempts(self, stream: str, group: str, entries: list[tuple[bytes, Fields]]) -> list[Entry]:
        out: list[Entry] = []
        for entry_id, fields in entries:
            pending = self.client.xpending_range(stream, group, entry_id, entry_id, 1)
            out.append((entry_id, fields, int(pending[0]["times_delivered"]) if pending else 1))
        return out

    def _decode(
        self,
        stream: str,
        group: str,
        entry: Entry,
        kinds: tuple[type[Message], ...],
        on_dead_letter: OnDeadLetter | None,
    ) -> Delivery | None:
        entry_id, fields, attempt = entry
        data = fields.get(FIELD, b"")
        try:
            message = unpack(data, *kinds)
        except WireError as error:
            self._dead_letter(stream, group, entry_id, data, str(error))
            return None
        if attempt > self.max_deliveries:
            reason = f"delivered {attempt - 1} times without being finished"
            if on_dead_letter is not None:
                on_dead_letter(message, reason)
            self._dead_letter(stream, group, entry_id, data, reason)
            return None
        return Delivery(stream, entry_id, attempt, message)

    def _dead_letter(self, stream: str, group: str, entry_id: bytes, data: bytes, reason: str) -> None:
        pipe = self.client.pipeline(transaction=True)
        entry: dict[Any, Any] = {b"stream": stream, b"reason": reason[:1000], b"at": repr(time.time()), FIELD: data}
        pipe.xadd(keys.DEAD, entry, maxlen=DEAD_LETTERS_KEPT, approximate=True)
        pipe.xack(stream, group, entry_id)
        pipe.xdel(stream, entry_id)
        pipe.execute()
