"""Completions offered to idle graders: by the generator while their group is sampled, by a grader whose group is slow.

    ref_server, sandbox ── Offers.put ──> rs:siblings (list) ── an idle grader takes one (services/sandbox/siblings.py)

A claim and an answer stand under the offer's token, in a field that is the digest of the whole offer. The grader who takes
it computes that digest from the bytes that it grades. So an offer with another text or another problem is another field,
and nobody takes its grade for the true one's. Both sides of an early offer derive its token from the group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import redis

from common import keys
from common.types import Sibling
from common.wire import pack

MOST_OFFERS = 1024  # in the list: with every worker busy further ones would only fill Redis


def early_token(run_id: str, group_id: str, policy_version: int) -> str:
    """Of all early offers of one group, sampled under one version: what generator and owner know alike. Hex."""
    parts = (run_id, group_id, str(policy_version))
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


def digest(offer: bytes) -> str:
    """SHA-256 of an offer's wire form, hex."""
    return hashlib.sha256(offer).hexdigest()


class Offers:
    """What one process offers. Raises redis.RedisError where Redis stays away."""

    def __init__(self, client: redis.Redis):
        self.client = client
        self._length = 0  # of the list, when we last saw it

    def put(self, siblings: Sequence[Sibling]) -> None:
        """Offer them, unless the list is full: their owner grades them anyway. One round trip; two when it has just emptied."""
        if not siblings:
            return
        if self._length >= MOST_OFFERS:
            self._length = int(self.client.llen(keys.SIBLINGS))
        if self._length < MOST_OFFERS:
            self._length = int(self.client.rpush(keys.SIBLINGS, *[pack(s) for s in siblings]))
