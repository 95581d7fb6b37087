"""The one arrow back: delta_S from the trainer to every generator, and each generator's proof that it arrived.

Five verbs: publish, latest, load; prove, proof. The tensor goes in first and the version key last, so whoever reads a
version finds its tensor. Old versions are deleted a few versions later, when no generator can still be loading them.
"""

from __future__ import annotations

from typing import cast

import redis

from common import failpoints, keys
from common.access import raw
from common.errors import DeliveryError
from common.types import DeliveryProof, DeltaS
from common.wire import pack, unpack

VERSIONS_KEPT = 4
PROOFS_KEPT = 16


def publish(client: redis.Redis, delta: DeltaS) -> int:
    """Store and announce; returns the payload's size in bytes."""
    data = pack(delta)
    client.set(keys.delta_tensor(delta.run_id, delta.version), data)
    failpoints.reached("tensor_stored")
    client.set(keys.delta_version(delta.run_id), f"{delta.version} {delta.checksum}")
    if delta.version >= VERSIONS_KEPT:
        client.delete(keys.delta_tensor(delta.run_id, delta.version - VERSIONS_KEPT))
        client.delete(keys.proofs(delta.run_id, delta.version - PROOFS_KEPT))
    return len(data)


def latest(client: redis.Redis, run_id: str) -> tuple[int, str] | None:
    """(newest announced version, its checksum), or None before the first push."""
    value = client.get(keys.delta_version(run_id))
    if value is None:
        return None
    version, digest = raw(value).decode().split(" ", 1)
    return int(version), digest


def load(client: redis.Redis, run_id: str, version: int) -> DeltaS:
    """The adapter of that version. DeliveryError when it is gone; WireError when its checksum fails."""
    data = client.get(keys.delta_tensor(run_id, version))
    if data is None:
        raise DeliveryError(f"delta_S version {version} of run {run_id} is not in Redis any more")
    return unpack(raw(data), DeltaS)


def prove(client: redis.Redis, proof: DeliveryProof) -> None:
    """A generator's answer; kept, so that a restarted trainer finds it."""
    client.hset(keys.proofs(proof.run_id, proof.version), proof.replica, pack(proof))


def proofs(client: redis.Redis, run_id: str, version: int) -> list[DeliveryProof]:
    """What every generator answered to that version."""
    answers = cast("list[bytes]", client.hvals(keys.proofs(run_id, version)))
    return [unpack(data, DeliveryProof) for data in answers]


def proof(client: redis.Redis, run_id: str, version: int, replica: str) -> DeliveryProof | None:
    """What `replica` answered to that version, or None."""
    data = client.hget(keys.proofs(run_id, version), replica)
    return None if data is None else unpack(raw(data), DeliveryProof)
