"""One trainer a run: a Redis lock that is renewed while its holder lives and expires when it does not."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import redis

from common import keys
from common.access import raw
from common.errors import ConfigError

EXPIRES_S = 15
PERIOD_S = 3.0


class TrainerLock:
    """Taken on construction. ConfigError when another living trainer holds it; a dead process of this host is replaced."""

    def __init__(self, client: redis.Redis, run_id: str):
        self.client, self.key, self.run_id = client, keys.trainer_lock(run_id), run_id
        self.me = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())} {secrets.token_hex(4)}"
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._take(lambda holder: holder is None or _is_dead(holder))
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def require(self) -> None:
        """ConfigError when another trainer holds the run. Asked before anything is pushed or saved: a trainer that was
        stopped for longer than EXPIRES_S must not go on beside its successor."""
        holder = self._holder()
        if holder not in (None, self.me):
            self.lost.set()
        if self.lost.is_set():
            raise ConfigError(f"another trainer ({holder}) has taken the lock of run {self.run_id}; this one stops")

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        self._thread.join()
        self._change(lambda holder: holder == self.me, lambda pipe: pipe.delete(self.key))

    def _take(self, may: Callable[[str | None], bool]) -> None:
        if not self._change(may, lambda pipe: pipe.set(self.key, self.me, ex=EXPIRES_S)):
            raise ConfigError(
                f"run {self.run_id} already has a trainer ({self._holder()}); stop it, or wait {EXPIRES_S} s if it has just "
                "died, or use another run_id"
            )

    def _renew(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self._take(lambda holder: holder in (None, self.me))
            except ConfigError:
                self.lost.set()
                return
            except redis.RedisError:
                # Redis is away; the loop meets the same error and reports it. The lock is taken again when it is back.
                continue

    def _holder(self) -> str | None:
        value = self.client.get(self.key)
        return None if value is None else raw(value).decode()

    def _change(self, may: Callable[[str | None], bool], act: Callable[[redis.client.Pipeline], object]) -> bool:
        """`act` if `may(holder)`, as one transaction: nobody takes the lock in between. Whether it was done.

        A key that changes under it is asked anew: it may only have expired, which Redis counts as a change, while a process
        that got no time was renewing it.
        """
        with self.client.pipeline() as pipe:
            while True:
                pipe.watch(self.key)  # type: ignore[no-untyped-call]  # redis-py does not annotate it
                value = pipe.get(self.key)
                if not may(None if value is None else raw(value).decode()):
                    return False
                pipe.multi()
                act(pipe)
                try:
                    pipe.execute()
                    return True
                except redis.WatchError:
                    continue


def runs_in_training(client: redis.Redis) -> list[str]:
    """Run ids that a living trainer holds."""
    prefix = keys.trainer_lock("")
    return sorted(raw(key).decode().removeprefix(prefix) for key in client.scan_iter(keys.trainer_locks(), count=1000))


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this host that is gone. A number given out again is another process."""
    host, *rest = holder.split(" ")
    return host == socket.gethostname() and len(rest) == 3 and _started(int(rest[0])) != rest[1]


def _started(pid: int) -> str:
    """When a living process started, in clock ticks since boot; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
