"""A generator's word for what it sampled, kept where no grader can write (see acl.py).

    ref_server ── seal(group) ──> set of digests of the group's id        trainer ── sealed(group)? ──> train, else refuse

A graded group reaches the trainer through a grader, which could have changed it; its digest comes straight from the
generator. A set, because a group may be sampled twice (its generator was taken for dead), and either is good.
Covers: other tokens, log-probs, problem, version or replica than were sampled. Does not cover: the grades themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import redis

from common import keys
from common.types import RolloutGroup
from common.wire import pack

KEPT_S = 7 * 86400


def digest(group: RolloutGroup) -> str:
    """SHA-256 of the group's wire form, hex."""
    return hashlib.sha256(pack(group)).hexdigest()


def seal(client: redis.Redis, group: RolloutGroup) -> None:
    """Maker: ref_server, before it puts the group on its way."""
    key = keys.seals(group.run_id, group.group_id)
    # together: a seal without an expiry would stay for ever
    pipe = client.pipeline(transaction=True)
    pipe.sadd(key, digest(group))
    pipe.expire(key, KEPT_S)
    pipe.execute()


def sealed(client: redis.Redis, group: RolloutGroup) -> bool:
    """Whether a generator sampled exactly this. Reader: trainer."""
    return bool(client.sismember(keys.seals(group.run_id, group.group_id), digest(group)))


def forget(client: redis.Redis, run_id: str, group_ids: Iterable[str]) -> None:
    """After the checkpoint that contains them."""
    names = [keys.seals(run_id, group_id) for group_id in group_ids]
    if names:
        client.delete(*names)
