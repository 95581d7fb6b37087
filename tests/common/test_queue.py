"""The queue on a real Redis: nothing lost, nothing done twice unless its consumer died, poison put aside."""

import time

import pytest

from common import keys
from common.errors import QueueError
from common.queue import Queue, connect
from common.types import GenerationRequest, RolloutGroup
from tests.samples import group

KINDS = (RolloutGroup,)
STREAM, GROUP = "test:stream", "workers"


@pytest.fixture
def make(redis_url):
    client = connect(redis_url)
    return lambda name, **options: Queue(client, name, **options)


def test_put_take_done_leaves_nothing(make):
    queue = make("a")
    queue.publish(STREAM, group("g1"))
    (delivery,) = queue.consume(STREAM, GROUP, KINDS, wait_s=0.1)
    assert delivery.message.group_id == "g1"
    assert delivery.attempt == 1
    assert queue.depth(STREAM) == 1
    queue.ack(GROUP, delivery)
    assert queue.depth(STREAM) == 0
    assert queue.consume(STREAM, GROUP, KINDS, wait_s=0.01) == []


def test_two_consumers_never_get_the_same_message(make):
    maker, a, b = make("m"), make("a"), make("b")
    maker.publish_many(STREAM, [group(f"g{i}") for i in range(10)])
    seen = [d.message.group_id for q in (a, b) * 5 for d in q.consume(STREAM, GROUP, KINDS, wait_s=0.01)]
    assert sorted(seen) == sorted(f"g{i}" for i in range(10))


def test_a_dead_consumers_work_is_taken_over_after_the_idle_time(make):
    dead, heir = make("dead"), make("heir", claim_idle_s=0.2)
    dead.publish(STREAM, group("g1"))
    assert dead.consume(STREAM, GROUP, KINDS, wait_s=0.1)
    assert heir.consume(STREAM, GROUP, KINDS, wait_s=0.01) == []
    time.sleep(0.25)
    (delivery,) = heir.consume(STREAM, GROUP, KINDS, wait_s=0.01)
    assert (delivery.message.group_id, delivery.attempt) == ("g1", 2)


def test_held_work_is_not_taken_over(make):
    slow, other = make("slow", claim_idle_s=0.3), make("other", claim_idle_s=0.3)
    slow.publish(STREAM, group("g1"))
    taken = slow.consume(STREAM, GROUP, KINDS, wait_s=0.1)
    with slow.renew_lease(GROUP, taken):
        time.sleep(0.7)
        assert other.consume(STREAM, GROUP, KINDS, wait_s=0.01) == []
    time.sleep(0.4)
    assert len(other.consume(STREAM, GROUP, KINDS, wait_s=0.01)) == 1


def test_a_restarted_consumer_gets_its_own_unfinished_work_at_once_and_each_once(make):
    before = make("me")
    before.publish_many(STREAM, [group(f"g{i}") for i in range(5)])
    assert len(before.consume(STREAM, GROUP, KINDS, count=5, wait_s=0.1)) == 5
    after = make("me")
    seen = []
    while taken := after.consume(STREAM, GROUP, KINDS, count=2, wait_s=0.01):
        seen += [d.message.group_id for d in taken]
    assert seen == [f"g{i}" for i in range(5)]


def test_poison_goes_to_the_dead_letters_after_the_last_delivery(make):
    make("m").publish(STREAM, group("poison"))
    for i in range(2):
        assert make(f"victim{i}", claim_idle_s=0.05, max_deliveries=2).consume(STREAM, GROUP, KINDS, wait_s=0.1)
        time.sleep(0.1)
    told = []
    last = make("last", claim_idle_s=0.05, max_deliveries=2)
    taken = last.consume(
        STREAM, GROUP, KINDS, wait_s=0.01, on_dead_letter=lambda m, reason: told.append((m.group_id, reason))
    )
    assert taken == []
    assert told == [("poison", "delivered 2 times without being finished")]
    ((_, fields),) = last.client.xrange(keys.DEAD)
    assert b"delivered 2 times" in fields[b"reason"]
    assert last.depth(STREAM) == 0


def test_undecodable_bytes_go_to_the_dead_letters_and_do_not_block(make):
    queue = make("a")
    queue.client.xadd(STREAM, {"m": b"garbage"})
    queue.publish(STREAM, group("good"))
    taken = queue.consume(STREAM, GROUP, KINDS, count=2, wait_s=0.1)
    assert [d.message.group_id for d in taken] == ["good"]
    assert queue.client.xlen(keys.DEAD) == 1


def test_a_message_of_another_kind_is_buried_with_the_reason(make):
    queue = make("a")
    queue.publish(STREAM, group("g"))
    assert queue.consume(STREAM, GROUP, (GenerationRequest,), wait_s=0.1) == []
    ((_, fields),) = queue.client.xrange(keys.DEAD)
    assert b"RolloutGroup" in fields[b"reason"]


def test_what_is_nobodys_work_any_more_is_swept_and_the_rest_kept(make):
    """A replay of a torn append-only file can bring back what had been acknowledged; seen with Redis 7.0."""
    first = make("a")
    for i in range(130):
        first.publish(STREAM, group(f"g{i}"))
    taken = first.consume(STREAM, GROUP, KINDS, count=128, wait_s=0.1)
    first.ack(GROUP, *taken[110:])
    first.client.xack(STREAM, GROUP, *(d.entry_id for d in (taken[0], taken[2], *taken[4:110])))
    second = make("b")
    new = second.consume(STREAM, GROUP, KINDS, count=5, wait_s=0.1)
    assert [d.message.group_id for d in new] == ["g128", "g129"]
    left = [entry_id for entry_id, _ in second.client.xrange(STREAM)]
    assert left == [taken[1].entry_id, taken[3].entry_id, *(d.entry_id for d in new)]
    third = make("a")
    again = third.consume(STREAM, GROUP, KINDS, count=5, wait_s=0.1)
    assert [d.message.group_id for d in again] == ["g1", "g3"], "unfinished work is not touched"


def test_back_pressure_bounds_the_stream(make):
    queue = make("a", maxlen=3)
    for i in range(3):
        queue.publish(STREAM, group(f"g{i}"))
    with pytest.raises(QueueError, match="full"):
        queue.publish(STREAM, group("g3"), timeout_s=0.2)
    (delivery,) = queue.consume(STREAM, GROUP, KINDS, wait_s=0.1)
    queue.ack(GROUP, delivery)
    queue.publish(STREAM, group("g3"), timeout_s=0.2)
    assert queue.depth(STREAM) == 3


def test_no_redis_is_one_line_and_quick():
    started = time.monotonic()
    with pytest.raises(QueueError, match="no Redis answers") as caught:
        connect("redis://:secret@127.0.0.1:1/0")
    assert time.monotonic() - started < 5
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_url_says_what_to_write():
    with pytest.raises(QueueError, match="redis://HOST:PORT/DB"):
        connect("localhost:6379")


@pytest.mark.parametrize("same_name", [True, False])
def test_poison_taken_alone_leaves_its_neighbours_uncounted(make, same_name):
    """A consumer that dies of g1 whenever it has it: only g1 is buried, everything else is done."""
    make("m").publish_many(STREAM, [group(f"g{i}") for i in range(4)])
    done, dead, attempts = [], [], {}
    for life in range(12):
        queue = make("a" if same_name else f"a{life}", claim_idle_s=0.01, max_deliveries=3)
        time.sleep(0.02)
        while taken := queue.consume(
            STREAM, GROUP, KINDS, 16, 0.01, lambda message, reason: dead.append(message.group_id), again=1
        ):
            attempts |= {d.message.group_id: d.attempt for d in taken}
            if any(d.message.group_id == "g1" for d in taken):
                break
            queue.ack(GROUP, *taken)
            done += [d.message.group_id for d in taken]
    assert dead == ["g1"] and sorted(done) == ["g0", "g2", "g3"]
    assert max(attempts[g] for g in done) == 2
