"""What runs: every stack that can be found, and what its Redis says of it. Reads only, as the user `monitor`.

    candidates   --redis-url (or REDIS_URL); runs/.stack/* of `experiments run`, `sweep` and `demo`; `make up`
    look         one stack ──> services alive, work waiting and claimed, dead letters, policy versions

A service is alive while its heartbeat (trainer: its lock) has not expired, so one that was killed shows for 15 s more.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from common import keys
from common.access import Client, open_redis
from common.errors import ConfigError, QueueError
from common.settings import RedisSettings, build

ANSWERS_WITHIN_S = 1.0
GROUPS = ((keys.REQUESTS, keys.GENERATORS), (keys.ROLLOUTS, keys.GRADERS))
STARTS = "start one with `make up`, `docker compose up -d` or `python -m experiments run`"


@dataclass(frozen=True)
class Candidate:
    """Where a stack may be. asked: the user named it, so that silence is an error."""

    name: str
    redis_url: str
    username: str | None = None
    password_file: Path | None = None
    asked: bool = False


def candidates(
    runs: Path, url: str | None = None, username: str = "monitor", password_file: Path | None = None
) -> list[Candidate]:
    """The places to look, in order. ConfigError for a password file that is not there."""
    url, file = url or os.environ.get("REDIS_URL"), password_file or os.environ.get("REDIS_PASSWORD_FILE")
    if url is not None:
        return [Candidate(url, url, username if file else None, Path(file) if file else None, asked=True)]
    found = []
    for secret in sorted(runs.glob(".stack/*/redis_monitor.secret")):
        address = _address_beside(secret)
        if address is not None:
            found.append(Candidate(str(secret.parent), address, "monitor", secret))
    return found + _deployed(password_file)


def _address_beside(secret: Path) -> str | None:
    """redis_url of the settings file that experiments/launch/stack.py leaves beside its secrets."""
    try:
        return str(json.loads((secret.parent / "ref_server.json").read_text())["redis_url"])
    except (OSError, ValueError, KeyError):
        return None  # it is only being started


def _deployed(password_file: Path | None) -> list[Candidate]:
    """The stack of `make up`: port and secrets as .env says."""
    values: dict[str, str | None] = dict(os.environ)
    if Path(".env").is_file():
        from dotenv import dotenv_values

        values = {**dotenv_values(".env"), **values}
    secret = password_file or Path(values.get("SECRETS_DIR") or "secrets") / "redis_monitor"
    if not secret.is_file():
        return []
    return [Candidate("make up", f"redis://127.0.0.1:{values.get('REDIS_PORT') or 6379}/0", "monitor", secret)]


def running(places: list[Candidate]) -> list[dict[str, Any]]:
    """One dict for each stack whose Redis answers; see `look`. QueueError when a place that was asked for does not."""
    states = []
    for place in places:
        values = {
            "redis_url": place.redis_url,
            "redis_username": place.username,
            "redis_password_file": place.password_file,
        }
        try:
            client = open_redis(build(RedisSettings, values, "status"), ANSWERS_WITHIN_S)
        except (QueueError, ConfigError):
            if place.asked:
                raise
            continue
        try:
            states.append({"name": place.name, "redis_url": place.redis_url, **look(client)})
        except redis.RedisError as error:  # it went away while we looked
            if place.asked:
                raise QueueError(f"redis_url {place.redis_url}: {type(error).__name__}: {error}") from None
        finally:
            client.close()
    return states


def look(client: Client, now: float | None = None) -> dict[str, Any]:
    """`services`, `streams`, `dead`, `policies` of one stack, JSON-able.

    services  service, name, state ('alive', or 'gone' for a dead one that still holds work), claimed (messages in work)
    streams   stream, depth (waiting and claimed), claimed, oldest_claim_s (None when nothing is claimed)
    dead      count, and stream, reason, at of the last one (None without any)
    policies  run, trainer ('alive' or 'gone'), version (None: none pushed), generators {replica: {version, behind}}
    """
    names = sorted(key.decode() for key in client.scan_iter(f"{keys.PREFIX}:*", count=1000))
    beats = [(service, name) for service, _, name in (rest.partition(":") for rest in _after(keys.HEARTBEATS, names))]
    locks = _after(keys.trainer_lock(""), names)
    groups = [*GROUPS, *((keys.graded(run), keys.TRAINERS) for run in _after(keys.graded(""), names))]
    held = {stream: _consumers(client, stream, group) for stream, group in groups if stream in names}
    alive = [("trainer", run) for run in locks] + [(service, name) for service, name in beats]
    return {
        "services": _services(alive, held),
        "streams": [_stream(client, stream, group, now or time.time()) for stream, group in groups if stream in names],
        "dead": _dead(client),
        "policies": _policies(client, names, locks, [name for service, name in beats if service == "ref_server"]),
    }


def _after(prefix: str, names: list[str]) -> list[str]:
    """What follows the prefix in the names that have it."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _consumers(client: Client, stream: str, group: str) -> dict[str, int]:
    """Name -> messages it has claimed; empty before anybody read the stream."""
    try:
        rows = client.xinfo_consumers(stream, group)
    except redis.ResponseError:
        return {}
    return {_text(row["name"]): int(row["pending"]) for row in rows}


def _services(alive: list[tuple[str, str]], held: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Living ones, then dead ones that still hold work."""
    readers, claimed = {keys.REQUESTS: "ref_server", keys.ROLLOUTS: "sandbox"}, {}
    for stream, by_name in held.items():
        for name, number in by_name.items():
            service = readers.get(stream, "trainer")
            claimed[service, name.removeprefix("trainer-") if service == "trainer" else name] = number
    rows = [{"service": s, "name": n, "state": "alive", "claimed": claimed.get((s, n), 0)} for s, n in alive]
    gone = [(s, n, number) for (s, n), number in sorted(claimed.items()) if number and (s, n) not in alive]
    return rows + [{"service": s, "name": n, "state": "gone", "claimed": number} for s, n, number in gone]


def _stream(client: Client, stream: str, group: str, now: float) -> dict[str, Any]:
    claimed, oldest = 0, None
    try:
        summary = client.xpending(stream, group)
        claimed = int(summary["pending"])
        if claimed:
            oldest = max(0.0, now - int(_text(summary["min"]).split("-")[0]) / 1000)
    except redis.ResponseError:
        pass  # nobody has read it yet: no group
    return {"stream": stream, "depth": int(client.xlen(stream)), "claimed": claimed, "oldest_claim_s": oldest}


def _dead(client: Client) -> dict[str, Any]:
    last = client.xrevrange(keys.DEAD, count=1)
    fields = {_text(k): v for k, v in (last[0][1] or {}).items()} if last else {}
    stream, reason, at = (_text(fields[name]) if name in fields else None for name in ("stream", "reason", "at"))
    return {"count": int(client.xlen(keys.DEAD)), "stream": stream, "reason": reason, "at": at}


def _policies(client: Client, names: list[str], locks: list[str], replicas: list[str]) -> list[dict[str, Any]]:
    runs = {*_after(keys.graded(""), names), *locks}
    table = []
    for run in sorted(runs, key=lambda run: (run not in locks, run)):
        proven: dict[str, int] = {}
        prefix = keys.proofs_of(run).removesuffix("*")
        for version in map(int, _after(prefix, names)):
            for replica in map(_text, client.hkeys(keys.proofs(run, version))):
                proven[replica] = max(proven.get(replica, -1), version)
        announced = client.get(keys.delta_version(run))
        newest = None if announced is None else int(_text(announced).split(" ")[0])
        generators = {
            replica: {"version": v, "behind": None if newest is None else newest - v}
            for replica, v in sorted(proven.items())
            if replica in replicas
        }
        table.append(
            {"run": run, "trainer": "alive" if run in locks else "gone", "version": newest, "generators": generators}
        )
    return table


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
