"""The supervisor's view of one running job: limits, pipes, the poll loop that ends it, and how it ended.

    poll(control socket, stdout, stderr, results) until the fork server reports the wait status;
    SIGKILL by pidfd at the wall limit, when too much was written, or when the caller has seen enough

Covers: wall time, silence, output and result size, scratch size (a look every 50 ms). CPU and memory are the kernel's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from services.sandbox.jail import scratch

_GRACE_S = 5.0  # how long a killed job may take to be gone before its fork server is replaced
_WATCH_S = 0.05


@dataclass(frozen=True)
class Limits:
    """Bounds of one job, besides isolation.SERVER_LIMITS. `memory_mb` comes on top of what the interpreter maps."""

    wall_s: float = 6.0
    quiet_s: float | None = None  # longest time without a frame (run_calls: an answer); None: only wall_s counts
    cpu_s: int = 6
    memory_mb: int = 1024
    output_bytes: int = 1 << 20
    value_bytes: int = 8 << 20
    scratch_mb: int = 64
    scratch_files: int = 4096

    def rlimits(self, base_bytes: int) -> dict[str, int]:
        """Resource name -> hard limit."""
        return {"AS": base_bytes + (self.memory_mb << 20), "CPU": self.cpu_s}


@dataclass(frozen=True)
class Outcome:
    """How a job ended and what it left.

    ended: 'exit' (of itself), 'signal' (killed by one it caused), 'timeout' (wall), 'cpu', 'output' (too much stdout,
    stderr or results), 'disk' (too much scratch), 'stopped' (the caller had seen enough), 'server' (it took the fork
    server down with it).
    """

    ended: Literal["exit", "signal", "timeout", "cpu", "output", "disk", "stopped", "server"]
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    frames: list[tuple[str, bytes]] = field(default_factory=list)
    complete: bool = False  # the runner inside reached its end and nothing followed it
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    step: int = 0  # the job's own note: 0 compiling, 1 loading, 2 first step, ... (it may lie)


class Pipes:
    """The supervisor's ends of stdout, stderr and the result pipe, each with its own cap."""

    def __init__(self, limits: Limits, capture: bool) -> None:
        self.fds: dict[int, str] = {}
        self.child: list[int] = []
        self.data = {"results": bytearray(), "stdout": bytearray(), "stderr": bytearray()}
        self.caps = {
            "stdout": limits.output_bytes,
            "stderr": limits.output_bytes,
            "results": limits.value_bytes + (1 << 20),
        }
        self.over = False
        for name in self.data if capture else ("results",):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            self.fds[read] = name
            self.child.append(write)

    def close_child(self) -> None:
        while self.child:
            os.close(self.child.pop())

    def read(self, fd: int) -> bool:
        """Take what is there. False at end of file."""
        name = self.fds[fd]
        try:
            chunk = os.read(fd, 1 << 18)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        room = self.caps[name] - len(self.data[name])
        self.data[name] += chunk[:room]
        self.over = self.over or len(chunk) > room
        return True

    def drain(self) -> None:
        """What is left after the job's end: at most a pipe's buffer each, nobody writes any more."""
        for fd in list(self.fds):
            for _ in range(64):
                before = sum(map(len, self.data.values()))
                if not self.read(fd) or self.over or sum(map(len, self.data.values())) == before:
                    break

    def close(self) -> None:
        self.close_child()
        for fd in self.fds:
            os.close(fd)
        self.fds = {}


def split_frames(data: bytearray) -> tuple[list[tuple[str, bytes]], int]:
    """Whole frames at the start of `data`, and how many bytes they take. A frame of size 0 ends the reading."""
    frames, at = [], 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size == 0 or at + 4 + size > len(data):
            break
        frames.append((chr(data[at + 4]), bytes(data[at + 5 : at + 4 + size])))
        at += 4 + size
    return frames, at


class Watch:
    """The supervisor's view of one running job."""

    def __init__(
        self, control: socket.socket, scratch_fd: int, pidfd: int, pipes: Pipes, limits: Limits, on_frame: Any
    ) -> None:
        self.control, self.scratch_fd, self.pidfd, self.pipes = control, scratch_fd, pidfd, pipes
        self.limits, self.on_frame = limits, on_frame
        self.started = self.heard = time.monotonic()
        self.quiet = limits.wall_s if limits.quiet_s is None else limits.quiet_s
        self.ended: str | None = None
        self.frames: list[tuple[str, bytes]] = []
        self.used, self.needed = 0, 5  # bytes of results taken; how many more make a frame
        self.status: tuple[int, float, int] | None = None

    def run(self) -> Outcome:
        poller = select.poll()
        for fd in (self.control.fileno(), *self.pipes.fds):
            poller.register(fd, select.POLLIN)
        deadline = self.started + self.limits.wall_s
        while self.status is None and self.ended != "server":
            now = time.monotonic()
            until = deadline if self.ended else min(deadline, self.heard + self.quiet)
            if now >= until:
                if self.ended is not None:  # killed, and still not gone
                    self.ended = "server"
                    break
                self._kill("timeout")
                until = deadline = now + _GRACE_S
            events = poller.poll(min(_WATCH_S, max(0.001, until - now)) * 1000)
            for fd, _event in events:
                if fd == self.control.fileno():
                    self._control_message()
                elif not self.pipes.read(fd):
                    poller.unregister(fd)
            self._look()
            if self.ended is not None and deadline > now + _GRACE_S:
                deadline = now + _GRACE_S
        return self._outcome()

    def _kill(self, why: str) -> None:
        self.ended = self.ended or why
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _control_message(self) -> None:
        try:
            message = self.control.recv(1 << 16)
        except OSError:
            message = b""
        if message[:1] == b"W":
            self.status = struct.unpack("<idQ", message[1:])
        else:
            self._kill("server")
            self.ended = "server"

    def _look(self) -> None:
        """Everything that can end a job early: output, scratch, an answer that decides."""
        if self.pipes.over:
            self._kill("output")
        if (
            self.status is None
            and time.monotonic() - self.started > _WATCH_S
            and scratch.too_big(self.scratch_fd, self.limits.scratch_mb << 20, self.limits.scratch_files)
        ):
            self._kill("disk")
        self._take_frames()

    def _take_frames(self) -> None:
        data = self.pipes.data["results"]
        if len(data) - self.used < self.needed or self.ended == "stopped":
            return
        frames, size = split_frames(data[self.used :] if self.used else data)
        self.used += size
        self.needed = 4 + int.from_bytes(data[self.used : self.used + 4], "little")
        if frames:
            self.heard = time.monotonic()
        for frame in frames:
            self.frames.append(frame)
            if self.on_frame is not None and self.on_frame(*frame) is False:
                self._kill("stopped")
                return

    def _outcome(self) -> Outcome:
        wall = time.monotonic() - self.started
        self.pipes.drain()
        self._take_frames()
        if self.pipes.over and self.ended is None:
            self.ended = "output"
        code = number = None
        cpu, rss = 0.0, 0
        if self.status is not None:
            status, cpu, rss = self.status
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
            else:
                code = os.WEXITSTATUS(status)
        ended = self.ended or ("exit" if number is None else "signal")
        # nobody else sends these; half, because the kernel counts the limit in ticks
        if ended == "signal" and number in (signal.SIGKILL, signal.SIGXCPU) and cpu >= self.limits.cpu_s / 2:
            ended = "cpu"
        whole = self.used == len(self.pipes.data["results"])
        complete = ended == "exit" and whole and bool(self.frames) and self.frames[-1][0] == "Z"
        data = self.pipes.data
        return Outcome(
            ended,
            code,
            number,
            bytes(data["stdout"]),
            bytes(data["stderr"]),
            self.frames,
            complete,
            wall,
            cpu,
            rss / 1024,
        )
