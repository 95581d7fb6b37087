"""Starting, watching and stopping the programs, through supervisord (supervisord.org).

    up:    for each service in order ── wait for what it depends on ──> start ──> its healthcheck
    down:  the reverse order, each with its grace period, then supervisord itself

supervisord restarts what its service's restart policy says, but for exit code 2, which a person must put right (its
count of `on-failure:N` holds for processes that end within a second only). Its socket, configuration and logs are in
the state folder.
"""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from deploy.compose import Service, seconds
from deploy.processes import Places, Program

SOCKET_PATH_LIMIT = 100  # the kernel's own is 107 bytes
RESTARTED_FOREVER = 1_000_000
Info = dict[str, Any]  # what supervisord tells of a process
MARK = "RANKSPACE_STATE"  # in the environment of everything we start, so that what is left over can be found


def render(services: Mapping[str, Service], programs: Mapping[str, list[Program]], places: Places) -> str:
    """supervisord's configuration. Nothing starts by itself: `up` starts it in order."""
    state = places.state
    lines = [
        "[unix_http_server]", f"file={state}/supervisor.sock", "chmod=0700",
        "[supervisord]", f"logfile={state}/supervisord.log", f"pidfile={state}/supervisord.pid", f"user={getpass.getuser()}",
        f"directory={places.root}", f"childlogdir={places.logs}", "minfds=1024",
        "[rpcinterface:supervisor]", "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]", f"serverurl=unix://{state}/supervisor.sock",
    ]  # fmt: skip
    for priority, (name, group) in enumerate(programs.items(), start=1):
        for program in group:
            lines += _section(services[name], program, places, priority)
    return "\n".join(lines) + "\n"


def _section(service: Service, program: Program, places: Places, priority: int) -> list[str]:
    environment = {"PYTHONUNBUFFERED": "1", MARK: str(places.state), **program.environment}
    kind, _, count = service.restart.partition(":")
    restart = {"no": "false", "on-failure": "unexpected"}.get(kind, "true")
    return [
        f"[program:{program.name}]",
        f"command={_quoted(shlex.join(program.command))}",
        "environment=" + ",".join(f'{k}="{_quoted(v)}"' for k, v in environment.items()),
        f"priority={priority}",
        "autostart=false", f"autorestart={restart}", "exitcodes=0,2", f"startsecs={0 if kind == 'no' else 1}",
        f"startretries={count or RESTARTED_FOREVER}",
        "stopsignal=TERM", f"stopwaitsecs={int(service.stop_s)}", "stopasgroup=false", "killasgroup=true",
        f"stdout_logfile={places.logs}/{program.name}.log", "redirect_stderr=true",
        "stdout_logfile_maxbytes=20MB", "stdout_logfile_backups=3",
    ]  # fmt: skip


def _quoted(text: str) -> str:
    return text.replace("%", "%%")


class Supervisor:
    """A running supervisord in `places.state`."""

    def __init__(self, places: Places):
        self.places = places
        self.socket = places.state / "supervisor.sock"

    def pid(self) -> int | None:
        """Its process id while it lives."""
        try:
            pid = int((self.places.state / "supervisord.pid").read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def start(self, configuration: str) -> None:
        """Start supervisord, or give the one that runs these programs: those that differ are stopped and taken anew."""
        if len(str(self.socket)) > SOCKET_PATH_LIMIT:
            raise ConfigError(f"{self.socket} is too long for a socket; set STACK_DIR to a shorter path")
        self.places.logs.mkdir(parents=True, exist_ok=True)
        path = self.places.state / "supervisord.conf"
        path.write_text(configuration)
        path.chmod(0o600)
        if self.pid() is not None:
            self._reload()
            return
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            raise ConfigError(f"supervisord does not start: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        _until(lambda: self._reachable(), 10.0, "supervisord")

    def _reload(self) -> None:
        rpc = self._rpc()
        ((added, changed, removed),) = rpc.reloadConfig()
        for name in [*changed, *removed]:
            rpc.stopProcessGroup(name)
            rpc.removeProcessGroup(name)
        for name in [*added, *changed]:
            rpc.addProcessGroup(name)

    def states(self) -> list[Info]:
        """Name, statename, pid, start, exitstatus of every program."""
        return list(self._rpc().getAllProcessInfo())

    def launch(self, service: Service, group: list[Program], say: Callable[[str], None] = print) -> None:
        """Start all replicas that do not run, and wait until they are healthy, or done if they are meant to end."""
        up = {state["name"] for state in self.states() if state["statename"] in ("RUNNING", "STARTING")}
        group = [program for program in group if program.name not in up]
        for program in group:
            try:
                self._rpc().startProcess(program.name, False)
            except xmlrpc.client.Fault as fault:
                raise ConfigError(
                    f"{program.name} does not start ({fault.faultString}): {self.tail(program)}"
                ) from None
        check = service.healthcheck
        limit = seconds(check.get("start_period"), 0) + seconds(check.get("interval"), 30) * int(
            check.get("retries", 3)
        )
        ends = service.restart == "no"
        for program in group:
            _until(partial(self._ready, program, ends), max(limit, 3600.0 if ends else 60.0), program.name)
            say(f"  {program.name}: {'done' if ends else 'healthy' if program.health else 'started'}")

    def _ready(self, program: Program, ends: bool) -> bool:
        info = self._rpc().getProcessInfo(program.name)
        if info["statename"] in ("EXITED", "FATAL"):
            if info["statename"] == "EXITED" and info["exitstatus"] == 0:
                return True  # done; also a trainer whose run was already finished
            how = f"ended with code {info['exitstatus']}" if info["statename"] == "EXITED" else "does not stay up"
            raise ConfigError(f"{program.name} {how}: {self.tail(program)}")
        if ends or info["statename"] != "RUNNING":
            return False
        if not program.health:
            return True
        environment = {**os.environ, **program.environment}
        return (
            subprocess.run(program.health, capture_output=True, env=environment, cwd=self.places.root).returncode == 0
        )

    def stop(self) -> list[str]:
        """Everything, in reverse order; returns what was stopped, when supervisord and all it started are gone."""
        pid, stopped = self.pid(), list[str]()
        if pid is None:
            return stopped
        for state in reversed(self.states()):  # states come in order of priority
            if state["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
                self._rpc().stopProcess(state["name"])
                stopped.append(state["name"])
        os.kill(pid, signal.SIGTERM)
        _until(lambda: self.pid() is None, 30.0, "supervisord")
        return stopped

    def tail(self, program: Program, lines: int = 3) -> str:
        path = self.places.logs / f"{program.name}.log"
        text = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        return f"{path} says: " + " / ".join(line.strip() for line in text[-lines:])

    def _rpc(self) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _reachable(self) -> bool:
        try:
            return bool(self._rpc().getState()["statename"] == "RUNNING")
        except (OSError, xmlrpc.client.Error):
            return False


def require_free(programs: Mapping[str, list[Program]]) -> None:
    """ConfigError when another process listens on a port that one of them needs."""
    for program in (p for group in programs.values() for p in group):
        for port in program.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ConfigError(
                        f"{program.name} needs port {port} of 127.0.0.1: {error.strerror}; "
                        f"set {program.service.partition('-')[0].upper()}_PORT in .env to a free one"
                    ) from None


def _until(ready: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            raise ConfigError(f"{what} is not there after {limit_s:.0f} s; look into its log")
        time.sleep(0.3)


def orphans(places: Places) -> list[str]:
    """Living processes that were started from this state folder, by command line."""
    found = []
    mark = str(places.state).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if int(entry.name) != os.getpid() and (mark in line or MARK.encode() + b"=" + mark in environment):
            found.append(f"{entry.name} {line.replace(bytes(1), b' ').decode(errors='replace').strip()[:120]}")
    return found
