"""`python -m services.sandbox selftest`: try the walls of the jail and print each as present or absent.

A probe is not a look at a kernel version: a job really connects to a listener of ours, really signals a process of
ours and its own parent, really opens a canary file, and so on; the wall is present when the attempt failed *and* our
side saw nothing. Exit code 1 when a required wall is absent and --require-isolation was given.

Covers: the default executor on this machine, in this container, under this user, now. Does not cover: what no probe
tries; a kernel bug.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cli
from services.sandbox.jail import channel
from services.sandbox.jail.executor import Executor, Isolation, Limits

# name: (what is tried, Python expression that is True when the attempt was refused)
PROBES = {
    "tcp": ("connect to a loopback listener", "refused(lambda: socket.create_connection(('127.0.0.1', PORT), 1))"),
    "udp": ("make a UDP socket", "refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))"),
    "unix": ("connect to a path unix socket", "refused(lambda: unix(SOCKET))"),
    "kill": ("signal a process of the service", "refused(lambda: os.kill(VICTIM, 0))"),
    "kill parent": ("signal the fork server", "refused(lambda: os.kill(os.getppid(), 0))"),
    "read": ("read a canary file", "refused(lambda: open(CANARY).read())"),
    "write": ("write beside the canary", "refused(lambda: open(CANARY + '.written', 'w'))"),
    "proc": ("read the parent's environment", "refused(lambda: open('/proc/%d/environ' % os.getppid(), 'rb').read())"),
    "chmod": ("change the canary's mode", "refused(lambda: os.chmod(CANARY, 0o777))"),
    "fork": ("fork", "refused(fork)"),
    "exec": ("exec a program", "refused(lambda: os.execv('/bin/true', ['true']))"),
    "ptrace": ("trace the fork server", "libc.ptrace(16, os.getppid(), 0, 0) == -1"),
    "memory": ("map 8 GiB", "refused(lambda: mmap.mmap(-1, 8 << 30))"),
    "raise limits": ("lift the CPU limit", "refused(lambda: resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6)))"),
    "privileges": ("have none, and gain none", "libc.prctl(39, 0, 0, 0, 0) == 1 and capabilities() == 0"),
    "environment": ("find an environment", "not os.environ"),
    "descriptors": ("find a descriptor of the service", "open_descriptors() <= {0, 1, 2, 3, 4}"),
}
_PROGRAM = """
import ctypes, mmap, os, resource, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def refused(attempt):
    try: attempt()
    except (OSError, ValueError): return True
    return False
def unix(path):
    with socket.socket(socket.AF_UNIX) as s: s.connect(path)
def fork():
    if os.fork() == 0: os._exit(0)
def capabilities():
    header, data = struct.pack("<Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    libc.capget(header, data)
    return int.from_bytes(data.raw[0:8], "little") | int.from_bytes(data.raw[12:20], "little")
def open_descriptors():
    found = set()
    for fd in range(4096):
        try: os.fstat(fd)
        except OSError: continue
        found.add(fd)
    return found
"""
_HANG = """
import signal
for n in range(1, 32):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""


@dataclass(frozen=True)
class Wall:
    """One line of the report. required: a jail without it is refused under isolation='required'."""

    name: str
    present: bool
    detail: str
    required: bool = True


@contextlib.contextmanager
def _targets() -> Iterator[dict[str, Any]]:
    """Things of ours to attack: a listener, a unix socket, a process, a file."""
    with (
        tempfile.TemporaryDirectory(prefix="selftest-") as place,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        os.chmod(place, 0o755)
        canary = Path(place, "canary")
        canary.write_text("seen")
        canary.chmod(0o644)
        unix.bind(f"{place}/socket")
        unix.listen()
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            yield {
                "PORT": tcp.getsockname()[1],
                "SOCKET": f"{place}/socket",
                "VICTIM": victim.pid,
                "CANARY": str(canary),
                "tcp": tcp,
                "unix": unix,
                "process": victim,
            }
        finally:
            victim.kill()
            victim.communicate()


def _seen(targets: dict[str, Any]) -> dict[str, str]:
    """What our side noticed, by probe."""
    noticed = {}
    for name in ("tcp", "unix"):
        targets[name].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            targets[name].accept()[0].close()
            noticed[name] = "our listener was reached"
    if targets["process"].poll() is not None:
        noticed["kill"] = "our process was killed"
    if Path(targets["CANARY"] + ".written").exists():
        noticed["write"] = "a file was written"
    if os.stat(targets["CANARY"]).st_mode & 0o777 != 0o644:
        noticed["chmod"] = "the mode was changed"
    return noticed


def probe(executor: Executor) -> list[Wall]:
    """Attack the executor's jail once with each probe."""
    with _targets() as targets:
        constants = "".join(f"{name} = {value!r}\n" for name, value in targets.items() if name.isupper())
        walls, noticed = list[Wall](), dict[str, str]()
        for name, (attempt, expression) in PROBES.items():
            steps = [("eval", compile(expression, "<probe>", "eval"))]
            outcome = executor.run_calls(_PROGRAM + constants, steps, limits=Limits(wall_s=5))
            answers = [channel.decode(body) for tag, body in outcome.frames if tag == "V"]
            refused = bool(answers) and answers[0] is True
            noticed |= _seen(targets)
            detail = noticed.get(name) or ("" if refused else f"it succeeded ({outcome.ended})")
            walls.append(Wall(f"{name}: {attempt}", not detail, detail))
        started = time.monotonic()
        outcome = executor.run_script(_HANG, Limits(wall_s=0.5))
        stopped = outcome.ended == "timeout" and time.monotonic() - started < 4
    return [*walls, Wall("wall limit: outlive it, ignoring every signal", stopped, "" if stopped else outcome.ended)]


def examine(isolation: Isolation = "best_effort") -> list[Wall]:
    """Every layer and every probe. Raises IsolationError under 'required' when a layer is absent."""
    with Executor(isolation=isolation) as executor:
        layers = [
            Wall(f"layer: {name}", not why, why, name in ("landlock", "seccomp"))
            for name, why in executor.layers.items()
        ]
        return [*layers, *probe(executor)]


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m services.sandbox selftest", description=__doc__.split("\n")[0])
    p.add_argument("--require-isolation", action="store_true", help="exit code 1 when a required wall is absent")
    return p


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    walls = examine()
    for wall in walls:
        state = "present" if wall.present else "ABSENT " if wall.required else "absent "
        note = "" if wall.required else " (optional)"
        print(f"{state}  {wall.name}{note}{': ' + wall.detail if wall.detail else ''}")
    missing = [wall.name for wall in walls if wall.required and not wall.present]
    if missing and arguments.require_isolation:
        cli.fail(f"{len(missing)} required walls are absent: run on Linux 6.12 or later with Landlock and seccomp")
        return cli.EXIT_FAILED
    return 0
