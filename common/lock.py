"""One trainer a run: a Redis lock that is renewed while its holder lives and expires when it does not."""

from __future__ import annotations

import os
import secrets
import socket
import threading

import redis

from common import keys
from common.errors import ConfigError

EXPIRES_S = 15
PERIOD_S = 3.0


class TrainerLock:
    """Taken on construction. ConfigError when another living trainer holds it; a dead process of this host is replaced."""

    def __init__(self, client: redis.Redis, run_id: str):
        self.client, self.key, self.run_id = client, keys.trainer_lock(run_id), run_id
        self.me = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self.lost = threading.Event()
        self._stop = threading.Event()
        if not client.set(self.key, self.me, nx=True, ex=EXPIRES_S):
            self._replace_dead()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _replace_dead(self) -> None:
        holder = (self.client.get(self.key) or b"").decode()
        host, _, rest = holder.partition(" ")
        if host == socket.gethostname() and rest and not _alive(int(rest.split()[0])):
            self.client.set(self.key, self.me, ex=EXPIRES_S)
            return
        raise ConfigError(
            f"run {self.run_id} already has a trainer ({holder}); stop it, or wait {EXPIRES_S} s if it has just died, or use "
            "another run_id"
        )

    def _renew(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                holder = self.client.get(self.key)
                if holder is not None and holder.decode() != self.me:
                    self.lost.set()
                    return
                self.client.set(self.key, self.me, ex=EXPIRES_S)
            except redis.RedisError:
                # Redis is away; the loop meets the same error and reports it. The lock is taken again when it is back.
                continue

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        self._thread.join()
        holder = self.client.get(self.key)
        if holder is not None and holder.decode() == self.me:
            self.client.delete(self.key)


def runs_in_training(client: redis.Redis) -> list[str]:
    """Run ids that a living trainer holds."""
    prefix = keys.trainer_lock("")
    return sorted(key.decode().removeprefix(prefix) for key in client.scan_iter(keys.trainer_locks(), count=1000))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
