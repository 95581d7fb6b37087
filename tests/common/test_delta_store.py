"""delta_S through Redis: version key last, old versions go, proofs stay for a restarted trainer."""

import pytest

from common import delta_store, keys
from common.errors import DeliveryError
from common.lock import TrainerLock
from common.queue import connect
from common.types import DeliveryProof, DeltaS, checksum


def delta(version, fill=b"\1"):
    vector = fill * 8
    return DeltaS(
        run_id="r", version=version, modules=[("a", 2)], vector=vector, checksum=checksum(vector), probe_ids=[1, 2]
    )


def test_publish_latest_load(redis_url):
    client = connect(redis_url)
    assert delta_store.latest(client, "r") is None
    size = delta_store.publish(client, delta(0))
    assert size == client.strlen(keys.delta_tensor("r", 0))
    assert delta_store.latest(client, "r") == (0, delta(0).checksum)
    assert delta_store.load(client, "r", 0) == delta(0)


def test_whoever_reads_a_version_finds_its_tensor_and_old_ones_go(redis_url):
    client = connect(redis_url)
    for version in range(8):
        delta_store.publish(client, delta(version))
        newest, _ = delta_store.latest(client, "r")
        assert delta_store.load(client, "r", newest).version == newest
    with pytest.raises(DeliveryError, match="version 0"):
        delta_store.load(client, "r", 0)
    assert len(client.keys("rs:delta:r:tensor:*")) == delta_store.VERSIONS_KEPT


def test_a_proof_is_found_again(redis_url):
    client = connect(redis_url)
    proof = DeliveryProof(run_id="r", version=1, replica="g", checksum="c", probe_logprobs=[-1.0], load_s=0.1)
    delta_store.prove(client, proof)
    assert delta_store.proof(connect(redis_url), "r", 1, "g") == proof
    assert delta_store.proof(client, "r", 1, "other") is None


def test_a_second_trainer_is_refused_and_a_dead_one_replaced(redis_url):
    from common.errors import ConfigError

    client = connect(redis_url)
    first = TrainerLock(client, "r")
    with pytest.raises(ConfigError, match="already has a trainer"):
        TrainerLock(client, "r")
    first.release()
    second = TrainerLock(client, "r")
    second.release()
    import socket

    client.set(keys.trainer_lock("r"), f"{socket.gethostname()} 999999999 12 abcd", ex=15)
    third = TrainerLock(client, "r")
    assert client.get(keys.trainer_lock("r")).decode() == third.me
    third.release()
    assert client.get(keys.trainer_lock("r")) is None


def renewed_while(lock, change):
    """One renewal of the lock, with `change` made between its look at the key and its answer; whether it holds."""
    made = []

    def act(pipe):
        if not made:
            made.append(change())
        pipe.set(lock.key, lock.me, ex=15)

    held = lock._change(lambda holder: holder in (None, lock.me), act)
    assert made, "nothing changed under the renewal"
    return held


def test_a_lock_that_expires_while_it_is_renewed_is_not_lost(redis_url):
    client = connect(redis_url)
    lock = TrainerLock(client, "starved")
    assert renewed_while(lock, lambda: connect(redis_url).delete(lock.key)), "nobody else has taken it"
    assert client.get(lock.key).decode() == lock.me
    assert not renewed_while(lock, lambda: connect(redis_url).set(lock.key, "another 1 2 3")), "another has"
    assert client.get(lock.key) == b"another 1 2 3"
    lock.release()
