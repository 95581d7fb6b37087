"""The trainer's side of the queue and the proof of delivery, on a real Redis."""

import threading
import time

import pytest

from common import delta_store, digests, keys
from common.errors import DeliveryError, QueueError
from common.queue import Queue, connect
from common.types import DeliveryProof, DroppedGroup, checksum
from services.trainer.publish import Publisher, probe_gap
from services.trainer.rollouts import Collected, Rollouts
from tests.samples import grade, graded, request


def answer(i, **changes):
    return graded([grade(), grade(3.5)], group_id=f"r/train/0/{i}", **changes)


def come(queue, message):
    """An honest answer on its way: sealed by the generator, graded, put."""
    digests.seal(queue.client, message.group)
    queue.publish(keys.graded("r"), message)


@pytest.fixture
def queue(redis_url):
    return Queue(connect(redis_url), "trainer-r", claim_idle_s=3600)


def make(queue, timeout_s=2.0):
    return Rollouts(queue, "r", timeout_s, lambda: None)


def test_groups_come_back_in_request_order_and_requests_are_asked_once(queue):
    rollouts, wanted = make(queue), [request(0), request(1)]
    rollouts.ask(wanted)
    rollouts.ask(wanted)
    assert queue.depth(keys.REQUESTS) == 2
    for i in (1, 0):
        come(queue, answer(i))
    collected = rollouts.collect(wanted)
    assert [g.group.group_id for g in collected.groups] == ["r/train/0/0", "r/train/0/1"]
    assert queue.depth(keys.graded("r")) == 2
    rollouts.acknowledge(collected)
    assert queue.depth(keys.graded("r")) == 0


def test_a_duplicate_is_trained_once_and_counted(queue):
    rollouts = make(queue)
    for _ in range(3):
        come(queue, answer(0))
    collected = rollouts.collect([request(0)])
    rollouts.acknowledge(collected)
    assert len(collected.groups) == 1
    come(queue, answer(0))
    come(queue, answer(1))
    assert len(rollouts.collect([request(1)]).groups) == 1
    assert rollouts.take_outcomes()["duplicate"] == 3


def test_a_dropped_group_is_not_waited_for(queue):
    rollouts = make(queue)
    notice = DroppedGroup(run_id="r", group_id="r/train/0/0", stage="grade", reason="poison")
    queue.publish(keys.graded("r"), notice)
    come(queue, answer(1))
    collected = rollouts.collect([request(0), request(1)])
    assert collected.dropped == {"r/train/0/0": "grade: poison"}
    assert len(collected.groups) == 1
    assert rollouts.take_outcomes()["dropped"] == 1


def test_a_too_old_group_is_dropped_and_counted(queue):
    rollouts = make(queue)
    come(queue, answer(0, version=1))
    collected = rollouts.collect([request(0, min_version=2)])
    assert collected.groups == []
    assert "stale" in collected.dropped["r/train/0/0"]
    assert rollouts.take_outcomes()["stale"] == 1


def test_after_a_restart_unacknowledged_groups_are_there_and_trained_ones_are_not(queue, redis_url):
    before = make(queue)
    come(queue, answer(0))
    before.collect([request(0)])  # collected, never acknowledged: the process dies here
    after = make(Queue(connect(redis_url), "trainer-r", claim_idle_s=3600))
    asked = queue.depth(keys.REQUESTS)
    after.recover()
    after.ask([request(0)])
    assert queue.depth(keys.REQUESTS) == asked, "what is already here is not asked for again"
    assert len(after.collect([request(0)]).groups) == 1
    later = make(Queue(connect(redis_url), "trainer-r", claim_idle_s=3600))
    later.trained_before = 1  # the checkpoint says that step 0 is done
    later.recover()
    assert later.take_outcomes()["duplicate"] == 1
    assert queue.depth(keys.graded("r")) == 0


def test_waiting_in_vain_says_who_may_be_missing(queue):
    with pytest.raises(QueueError, match=r"2 of 2 groups did not come.*ref_server"):
        make(queue, timeout_s=0.5).collect([request(0), request(1)])


# ---- proof of delivery ------------------------------------------------------------------------------------------

VECTOR = b"\1\0\0\0" * 3


def publisher(queue, bound=0.01):
    p = Publisher(queue, "r", [("a", 3)], [1, 2, 3], bound)
    p.push(4, VECTOR, [-1.0, -2.0])
    return p


def prove(queue, logprobs=(-1.0, -2.0), digest=None, version=4, replica="gen-0", load_s=0.1):
    digest = checksum(VECTOR) if digest is None else digest
    proof = DeliveryProof(
        run_id="r", version=version, replica=replica, checksum=digest, probe_logprobs=list(logprobs), load_s=load_s
    )
    delta_store.prove(queue.client, proof)


def test_a_proven_group_is_accepted_and_the_gap_measured(queue):
    p = publisher(queue)
    prove(queue, (-1.0, -2.004))
    p.require_proof(answer(0, version=4))
    assert p.last_gap == pytest.approx(0.002), "the mean over two tokens"


@pytest.mark.parametrize(
    ("proof", "word"),
    [
        ({"logprobs": (-1.0, -2.5)}, "differ from the trainer's by 0.25"),
        ({"logprobs": (-1.0, float("nan"))}, "by inf"),
        ({"logprobs": (-1.0,)}, "inf"),
        ({"digest": "f" * 64}, "another delta_S"),
        ({"replica": "gen-9"}, "without proving"),
        ({"version": 3}, "without proving"),
    ],
)
def test_a_generator_that_does_not_run_the_push_fails_loudly(queue, proof, word):
    p = publisher(queue)
    prove(queue, **proof)
    with pytest.raises(DeliveryError, match=word):
        p.require_proof(answer(0, version=4), patience_s=0.2)


def test_a_proof_that_redis_forgot_has_time_to_be_given_again(queue):
    p = publisher(queue)
    late = threading.Timer(0.4, prove, (queue,))
    late.start()
    p.require_proof(answer(0, version=4))
    late.join()


def test_gap_and_seconds_are_those_of_the_worst_replica(queue):
    p = publisher(queue)
    for replica, gap, load_s in (("gen-0", 0.001, 0.5), ("gen-1", 0.004, 0.25)):
        prove(queue, (-1.0, -2.0 - gap), replica=replica, load_s=load_s)
        p.require_proof(graded([grade(), grade()], version=4, replica=replica))
    assert p.last_gap == pytest.approx(0.002)
    assert 0.5 < p.last_seconds < 1.5, "load_s of the slower one and the time to publish"


def test_a_group_of_a_version_never_pushed_is_refused(queue):
    p = publisher(queue)
    with pytest.raises(DeliveryError, match="never pushed"):
        p.require_proof(answer(0, version=9))


def test_what_a_checkpoint_remembers_checks_older_versions(queue):
    p = publisher(queue)
    prove(queue)
    again = Publisher(queue, "r", [("a", 3)], [1, 2, 3], 0.01)
    again.restore(p.remembered())
    again.require_proof(answer(0, version=4))


def test_a_gap_is_the_mean_so_that_one_rounded_token_stops_nothing_and_other_weights_do():
    ours = [-2.0, -9.0, -0.5, -14.0]
    assert probe_gap(ours, [-2.0, -9.0, -0.5, -15.0]) == pytest.approx(0.25), "one token, a nat off in bf16"
    assert probe_gap(ours, [-2.5, -8.0, -1.0, -13.0]) == pytest.approx(0.75), "every token is off"
    for broken in ([-2.0], [-2.0, -9.0, -0.5, float("nan")]):
        assert probe_gap(ours, broken) == float("inf")
    assert probe_gap([], []) == float("inf"), "a proof without a token proves nothing"


def resumed_at_10(queue, bound=0.01):
    """checkpoint_every=5, max_staleness=1: the former process had proven 10 and 11; this one goes on at 10."""
    old = Publisher(queue, "r", [("a", 3)], [1, 2, 3], bound)
    old.push(10, b"\1\0\0\0" * 3, [-1.0, -2.0])
    kept = old.remembered()
    old.push(11, b"\2\0\0\0" * 3, [-1.0, -2.0])
    for version, byte in ((10, 1), (11, 2)):
        prove(queue, version=version, digest=checksum(bytes([byte, 0, 0, 0]) * 3))
    new = Publisher(queue, "r", [("a", 3)], [1, 2, 3], bound)
    new.restore(kept)
    new.push(10, b"\1\0\0\0" * 3, [-1.0, -2.0])
    assert new.require_proof(answer(0, version=10))
    return new


def test_a_group_of_a_former_push_with_other_bits_is_trained_on_at_once(queue):
    new = resumed_at_10(queue)
    new.push(11, b"\3\0\0\0" * 3, [-1.0, -2.004])  # recomputed on a GPU: the last bits differ
    started = time.monotonic()
    assert new.require_proof(answer(0, version=11))
    assert time.monotonic() - started < 0.5
    assert not new._holds("gen-0", 11), "the former proof proves no push of this process"
    prove(queue, (-1.0, -2.004), version=11, digest=checksum(b"\3\0\0\0" * 3))
    assert new.require_proof(answer(1, version=11)) and new._holds("gen-0", 11)


def test_a_group_of_a_former_push_with_other_weights_is_stale_and_counted(queue):
    new = resumed_at_10(queue)
    new.push(11, b"\3\0\0\0" * 3, [-1.0, -3.0])
    collected = Collected([answer(0, version=10), answer(1, version=11), answer(2, version=12)], {})
    rollouts = make(queue)
    rollouts.drop_stale(collected, new.require_proof)
    assert [g.group.group_id for g in collected.groups] == ["r/train/0/0"]
    assert list(collected.dropped) == ["r/train/0/1", "r/train/0/2"] and rollouts.outcomes["stale"] == 2


@pytest.mark.parametrize(("ours", "trained"), [(-2.004, True), (-3.0, False)])
def test_a_former_push_that_was_still_being_loaded_when_its_number_came_again(queue, ours, trained):
    """Its proof comes after ours was pushed, and no generator loads ours: it takes the newest."""
    old = Publisher(queue, "r", [("a", 3)], [1, 2, 3], 0.01)
    for version in range(6):
        old.push(version, bytes([version, 0, 0, 0]) * 3, [-1.0, -2.0])
    new = Publisher(
        queue, "r", [("a", 3)], [1, 2, 3], 0.01
    )  # killed before its first checkpoint: from 0, nothing restored
    for version in range(6):
        new.push(version, bytes([version, 1, 0, 0]) * 3, [-1.0, ours])
    prove(queue, version=4, digest=checksum(bytes([4, 0, 0, 0]) * 3))
    assert new.require_proof(answer(0, version=4), patience_s=0.2) is trained
    assert not new.require_proof(answer(1, version=3), patience_s=0.2), "its proof is lost: stale, not a fault"
    new.push(6, b"\6\0\0\0" * 3, [-1.0, -2.0])
    prove(queue, version=6, digest="f" * 64)
    with pytest.raises(DeliveryError, match="another delta_S"):  # no former process has reached 6: it is a fault
        new.require_proof(answer(0, version=6), patience_s=0.2)


def test_a_load_of_a_former_push_that_was_under_way_is_waited_for(queue):
    new = resumed_at_10(queue)
    new.push(12, b"\3\0\0\0" * 3, [-1.0, -2.0])
    prove(queue, version=12, digest="f" * 64)  # came after the push: nobody knows what it is
    with pytest.raises(DeliveryError, match="another delta_S"):
        new.require_proof(answer(0, version=12), patience_s=0.2)
    late = threading.Timer(0.4, prove, (queue,), {"version": 12, "digest": checksum(b"\3\0\0\0" * 3)})
    late.start()
    assert new.require_proof(answer(0, version=12))
    late.join()
