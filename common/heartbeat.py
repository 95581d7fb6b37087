"""A key per living process that expires when the process is gone. Readers: the launcher, `experiments status`, alerts."""

from __future__ import annotations

import logging
import threading

import redis

from common import keys

PERIOD_S = 2.0
EXPIRES_S = 15

log = logging.getLogger(__name__)


def beat(client: redis.Redis, service: str, name: str, stop: threading.Event) -> None:
    """Renew the key until `stop`, then delete it. Redis being away is logged and outlived."""
    key = keys.heartbeat(service, name)
    while True:
        try:
            client.set(key, "1", ex=EXPIRES_S)
        except redis.RedisError as error:
            log.warning("no heartbeat: %s", type(error).__name__)
        if stop.wait(PERIOD_S):
            break
    try:
        client.delete(key)
    except redis.RedisError:
        log.warning("heartbeat of %s %s could not be withdrawn; it expires in %d s", service, name, EXPIRES_S)


def alive(client: redis.Redis, service: str) -> list[str]:
    """Names of the living processes of a service."""
    prefix = keys.heartbeat(service, "")
    return sorted(k.decode().removeprefix(prefix) for k in client.scan_iter(keys.heartbeats(service)))
