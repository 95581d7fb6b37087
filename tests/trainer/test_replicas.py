"""Several generators: each proves each push, whether or not it samples, and the trainer waits for all that live."""

import threading
import time
from types import SimpleNamespace

import pytest

from common import delta_store, keys
from common.errors import DeliveryError
from common.lock import TrainerLock, runs_in_training
from common.metrics import Metrics
from common.queue import Queue, connect
from common.settings import RefServerSettings
from common.types import checksum
from services.ref_server.engine import Loaded
from services.ref_server.generation import Generator
from services.ref_server.served_policy import ServedPolicy
from services.trainer.publish import Publisher

MODULES = [("m", 2)]
OURS = [-1.0, -2.0]


@pytest.fixture
def queue(redis_url):
    return Queue(connect(redis_url), "tester")


def living(queue, *names):
    for name in names:
        queue.client.set(keys.heartbeat("ref_server", name), "1", ex=15)


def vector(version):
    return bytes([version]) * 8


def publisher(queue, versions=(0,)):
    made = Publisher(queue, "run", MODULES, [1, 2, 3], bound=0.02)
    for version in versions:
        made.push(version, vector(version), OURS)
    return made


def follower(queue, name, loads=None, logprobs=OURS):
    """A generator with the real policy and loop over an engine that only remembers what it was given."""
    held = []

    def load(delta):
        if loads is not None:
            loads.append((name, delta.version))
        held[:] = [delta.vector]
        return Loaded(checksum(held[0]), 0.0, len(delta.modules))

    settings = RefServerSettings(model="none", replica=name)
    metrics = Metrics("ref_server")
    policy = ServedPolicy(SimpleNamespace(load=load, probe=lambda ids: list(logprobs)), queue, settings, metrics)
    return Generator(policy, None, None, Queue(queue.client, name), settings, metrics)


def nothing():
    pass


def test_an_idle_replica_proves_each_push_of_the_run_in_training_once(queue):
    loads = []
    idle = follower(queue, "gen-1", loads)
    trainer = publisher(queue)
    assert idle.turn(0.01) == 0 and loads == [], "a run that nobody trains is not followed"
    lock = TrainerLock(queue.client, "run")
    for _ in range(3):
        idle.turn(0.01)
    trainer.push(1, vector(1), OURS)
    for _ in range(3):
        idle.turn(0.01)
    lock.release()
    assert loads == [("gen-1", 0), ("gen-1", 1)]
    assert delta_store.proof(queue.client, "run", 1, "gen-1").checksum == checksum(vector(1))


def test_proofs_that_a_restarted_redis_forgot_are_given_again(queue, redis_url):
    """Also those of versions before the newest: groups sampled from them may still be on their way."""
    loads = []
    replica = follower(Queue(connect(redis_url), "gen-1"), "gen-1", loads)
    lock, trainer = TrainerLock(queue.client, "run"), publisher(queue)
    for version in (1, 2):
        replica.turn(0.01)
        trainer.push(version, vector(version), OURS)
    replica.turn(0.01)
    queue.client.delete(*(keys.proofs("run", version) for version in (0, 1, 2)))
    replica.turn(0.01)
    assert delta_store.proof(queue.client, "run", 2, "gen-1") is None, "nothing has told it that Redis was away"
    queue.client.client_kill_filter(_type="normal", skipme=True)
    replica.turn(0.01)
    lock.release()
    for version in (0, 1, 2):
        assert delta_store.proof(queue.client, "run", version, "gen-1").checksum == checksum(vector(version))
    assert [version for _, version in loads] == [0, 1, 2], "said again, not loaded again"


def test_two_runs_at_once_are_not_followed(queue):
    """Loading now this one's weights and now that one's would only keep the replica from working."""
    loads = []
    publisher(queue)
    locks = [TrainerLock(queue.client, "run"), TrainerLock(queue.client, "other")]
    assert runs_in_training(queue.client) == ["other", "run"]
    follower(queue, "gen-1", loads).turn(0.01)
    for lock in locks:
        lock.release()
    assert loads == []


def test_the_trainer_waits_for_the_last_living_replica(queue):
    trainer, slow = publisher(queue), follower(queue, "gen-1")
    living(queue, "gen-0", "gen-1")
    lock = TrainerLock(queue.client, "run")
    follower(queue, "gen-0").turn(0.01)
    late = threading.Timer(0.6, lambda: slow.turn(0.01))
    late.start()
    started = time.monotonic()
    trainer.require_all(0, 10.0, nothing)
    assert time.monotonic() - started >= 0.5
    late.join()
    lock.release()


def test_a_living_replica_without_proof_is_named(queue):
    trainer = publisher(queue)
    living(queue, "gen-0", "gen-1")
    lock = TrainerLock(queue.client, "run")
    follower(queue, "gen-0").turn(0.01)
    with pytest.raises(DeliveryError, match="gen-1") as error:
        trainer.require_all(0, 0.3, nothing)
    assert "gen-0" not in str(error.value)
    lock.release()


def test_a_replica_that_runs_other_weights_stops_the_trainer(queue):
    trainer = publisher(queue)
    living(queue, "gen-0")
    lock = TrainerLock(queue.client, "run")
    follower(queue, "gen-0", logprobs=[-1.0, -2.5]).turn(0.01)
    with pytest.raises(DeliveryError, match=r"0\.25 nats a token"):
        trainer.require_all(0, 10.0, nothing)
    lock.release()


def test_a_dead_replica_is_not_waited_for(queue):
    trainer = publisher(queue)
    queue.client.set(keys.heartbeat("ref_server", "gen-0"), "1", px=500)
    trainer.require_all(0, 10.0, nothing)


def test_an_older_version_is_enough_within_the_staleness(queue):
    trainer = publisher(queue, (3,))
    living(queue, "gen-0")
    lock = TrainerLock(queue.client, "run")
    follower(queue, "gen-0").turn(0.01)
    trainer.push(4, vector(4), OURS)
    trainer.require_all(3, 0.3, nothing)
    with pytest.raises(DeliveryError):
        trainer.require_all(4, 0.3, nothing)
    lock.release()


def test_a_proof_of_the_same_number_from_before_a_restart_does_not_count(queue):
    old = Publisher(queue, "run", MODULES, [1, 2, 3], bound=0.02)
    old.push(5, vector(9), OURS)
    lock = TrainerLock(queue.client, "run")
    replica = follower(queue, "gen-0")
    replica.turn(0.01)
    new = publisher(queue, (5,))
    living(queue, "gen-0")
    with pytest.raises(DeliveryError):
        new.require_all(5, 0.3, nothing)
    replica.turn(0.01)
    new.require_all(5, 0.3, nothing)
    lock.release()


def test_waiting_can_be_interrupted(queue):
    trainer = publisher(queue)
    living(queue, "gen-0")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.require_all(0, 10.0, stop)
