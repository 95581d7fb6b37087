"""Who may touch which key: one Redis user a service, generated from keys.py. docs/threat_model.md says what this buys.

    python -m common.acl     prints the ACL file with placeholders for the password digests

Redis 7 grants commands and keys together ("selectors"), reading and writing apart: a sandbox worker appends to
graded:* and cannot read, delete or claim there. Redis 6.2 knows neither; there a user may use every command of its
table on every key of its table, which is wider, and printed as such.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from common import keys

EVERYBODY = "ping hello auth reset select echo client|setname client|id multi exec discard unwatch"
QUIT = "quit"  # Redis 6.2 lets everybody and knows no command of that name: its ACL file must not have it
APPEND = "xadd xlen"
CONSUME = "xreadgroup xack xdel xclaim xautoclaim xpending xgroup|create xinfo|groups xrange xlen"
LENGTHS = "xlen exists xinfo|groups"
HEARTBEAT = "set del"
# Off, so nobody can be this user: whoever does not log in can run nothing. It keeps its rights because Redis replays its
# append-only file as the default user and, before redis/redis#14545, drops every transaction in there that this user may
# not run: each restart would lose whatever had been written together, such as answers taken from a stream.
DEFAULT = "user default off resetpass allkeys resetchannels +@all"


@dataclass(frozen=True)
class Grant:
    """These commands on these keys. access: R read, W write, RW both (Redis 7 only)."""

    commands: str
    access: str
    patterns: tuple[str, ...]


_ANY = "*"
_STREAMS = (keys.REQUESTS, keys.ROLLOUTS, keys.graded(_ANY), keys.DEAD)

GRANTS: dict[str, tuple[Grant, ...]] = {
    "trainer": (
        Grant("scan", "R", ()),
        Grant(APPEND, "W", (keys.REQUESTS, keys.DEAD)),
        Grant("xlen", "R", (keys.REQUESTS, keys.ROLLOUTS)),
        Grant(CONSUME, "RW", (keys.graded(_ANY),)),
        Grant("set get del watch", "RW", (f"{keys.PREFIX}:delta:*", keys.trainer_lock(_ANY))),
        Grant("hget hvals del", "RW", (f"{keys.PREFIX}:proofs:*",)),
        Grant("sismember del", "RW", (f"{keys.PREFIX}:seals:*",)),
    ),
    "ref_server": (
        Grant(CONSUME, "RW", (keys.REQUESTS,)),
        Grant(APPEND, "W", (keys.ROLLOUTS, keys.graded(_ANY), keys.DEAD)),
        Grant(LENGTHS, "R", _STREAMS),
        Grant("scan", "R", ()),
        Grant("get", "R", (f"{keys.PREFIX}:delta:*",)),
        Grant("hset", "W", (f"{keys.PREFIX}:proofs:*",)),
        Grant("sadd expire", "W", (f"{keys.PREFIX}:seals:*",)),
        Grant("rpush", "W", (keys.SIBLINGS,)),
        Grant("llen", "R", (keys.SIBLINGS,)),
        Grant(HEARTBEAT, "W", (keys.heartbeats("ref_server"),)),
    ),
    "sandbox": (
        Grant(CONSUME, "RW", (keys.ROLLOUTS,)),
        Grant(APPEND, "W", (keys.graded(_ANY), keys.DEAD)),
        Grant("rpush lpop llen", "RW", (keys.SIBLINGS,)),
        Grant("hsetnx hset hget hmget expire", "RW", (f"{keys.SIBLINGS}:*",)),
        Grant(HEARTBEAT, "W", (keys.heartbeats("sandbox"),)),
    ),
    "monitor": (
        Grant(
            "scan dbsize info slowlog|get slowlog|len latency|latest latency|histogram config|get client|list", "R", ()
        ),
        Grant(f"{LENGTHS} type memory|usage xinfo|stream xinfo|consumers xpending ttl", "R", (f"{keys.PREFIX}:*",)),
        Grant("get", "R", (keys.delta_version(_ANY),)),  # which version, not the tensor
        Grant("hkeys", "R", (f"{keys.PREFIX}:proofs:*",)),  # who has proven it
        Grant("xrange xrevrange", "R", (keys.DEAD,)),  # to read why a message was given up
    ),
}
USERS = tuple(GRANTS)


def digest(password: str) -> str:
    """What an ACL file holds in place of a password: SHA-256, hex. Passwords are random (256 bits), so none is guessed."""
    return hashlib.sha256(password.encode()).hexdigest()


def users_file(digests: Mapping[str, str], selectors: bool = True) -> str:
    """The ACL file: one line a user, the default user off. `digests`: user -> digest of its password."""
    lines = [DEFAULT]
    lines += [rule(user, digests[user], selectors) for user in USERS]
    return "\n".join(lines) + "\n"


def rule(user: str, password_digest: str, selectors: bool = True) -> str:
    """One user's line."""
    everybody = f"{EVERYBODY} {QUIT}" if selectors else EVERYBODY
    head = f"user {user} on resetpass resetkeys resetchannels -@all #{password_digest} {_allow(everybody)}"
    grants = GRANTS[user]
    keyless = " ".join(_allow(g.commands) for g in grants if not g.patterns)
    keyed = [g for g in grants if g.patterns]
    if selectors:
        rest = " ".join(f"({_allow(g.commands)} {_keys(g)})" for g in keyed)
    else:
        rest = " ".join(_allow(g.commands) for g in keyed) + " " + " ".join(f"~{p}" for g in keyed for p in g.patterns)
    return " ".join(part for part in (head, keyless, rest) if part)


def _allow(commands: str) -> str:
    return " ".join(f"+{c}" for c in commands.split())


def _keys(grant: Grant) -> str:
    return " ".join(f"~{p}" if grant.access == "RW" else f"%{grant.access}~{p}" for p in grant.patterns)


if __name__ == "__main__":
    sys.stdout.write(users_file(dict.fromkeys(USERS, "0" * 64)))
