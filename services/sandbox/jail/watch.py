"""The supervisor's view of one running job: limits, pipes, the poll loop that ends it, and how it ended.

    poll(control socket, stdout, stderr, results) until the fork server reports the wait status;
    SIGKILL by pidfd at the time limit, when too much was written, or when the caller has seen enough

Covers: own time (owntime.py: wall time less the wait for a core), silence, sleep, output and result size, scratch size (a
look every 50 ms). CPU and memory are the kernel's. A job that gets so little of a core that its own time stays within its
limit for STARVED times as long is ended as 'starved': that is our failure, not the program's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from services.sandbox.jail import scratch
from services.sandbox.jail.owntime import OwnTime

_GRACE_S = 5.0  # how long a killed job may take to be gone before its fork server is replaced
_WATCH_S = 0.05
_UNHEARD_S = 0.003  # most jobs have ended by then: being woken for each of their answers would cost more than they do
_ALL_FRAMES_BYTES = 64 << 20  # what the answers of one job may come to together
STARVED = 20.0  # times its limit of own time that a job may take of wall time


@dataclass(frozen=True)
class Limits:
    """Bounds of one job, besides isolation.SERVER_LIMITS. `memory_mb` comes on top of what the interpreter maps.

    wall_s, quiet_s and asleep_s count the job's own time (owntime.py): wall time on a free core.
    """

    wall_s: float = 6.0
    quiet_s: float | None = None  # longest time without a frame (run_calls: an answer); None: only wall_s counts
    asleep_s: float | None = None  # ends a job that has used less than `idle` of this time; None: only wall_s counts
    idle: float = 0.15
    nice: int = 0  # above 0: gives way to other jobs where cores are short, after its first 50 ms
    cpu_s: int = 6
    memory_mb: int = 1024
    output_bytes: int = 1 << 20
    value_bytes: int = 8 << 20
    scratch_mb: int = 64
    scratch_files: int = 4096

    def rlimits(self, base_bytes: int) -> dict[str, int]:
        """Resource name -> hard limit."""
        return {"AS": base_bytes + (self.memory_mb << 20), "CPU": self.cpu_s}


Ended = Literal["exit", "signal", "timeout", "cpu", "output", "disk", "stopped", "server", "starved"]


@dataclass(frozen=True)
class Outcome:
    """How a job ended and what it left.

    ended: 'exit' (of itself), 'signal' (killed by one it caused), 'timeout' (own time), 'starved' (no core for it), 'cpu',
    'output' (too much stdout, stderr or results), 'disk' (too much scratch), 'stopped' (the caller had seen enough),
    'server' (it took the fork server down with it).
    """

    ended: Ended
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

    def read_results(self) -> None:
        """Take what is in the result pipe."""
        for fd, name in self.fds.items():
            if name == "results":
                self.read(fd)

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
        self,
        control: socket.socket,
        scratch_fd: int,
        pidfd: int,
        pipes: Pipes,
        limits: Limits,
        on_frame: Any,
        cancelled: Callable[[OwnTime], bool] | None = None,
    ) -> None:
        self.control, self.scratch_fd, self.pidfd, self.pipes = control, scratch_fd, pidfd, pipes
        self.limits, self.on_frame, self.cancelled = limits, on_frame, cancelled
        self.started = time.monotonic()
        self.clock = OwnTime(pidfd)
        self.own = self.heard = 0.0  # own time now, and at the last frame
        self.gave_way = not limits.nice
        self.quiet = limits.wall_s if limits.quiet_s is None else limits.quiet_s
        self.ended: Ended | None = None
        self.gone = False  # it was seen to have ended
        self.frames: list[tuple[str, bytes]] = []
        self.taken, self.needed = 0, 5  # bytes of results taken; how many more make a frame
        self.status: tuple[int, float, int] | None = None

    def run(self) -> Outcome:
        poller = select.poll()
        unheard = [fd for fd, name in self.pipes.fds.items() if name == "results"]
        for fd in {self.control.fileno(), *self.pipes.fds} - set(unheard):
            poller.register(fd, select.POLLIN)
        killed_at = 0.0
        while self.status is None and self.ended != "server":
            if self.ended is None:
                self._time()
            if self.ended is not None or self.gone:
                killed_at = killed_at or time.monotonic()
                if time.monotonic() - killed_at > _GRACE_S:  # killed or gone, and the fork server does not say so
                    self.ended = "server"
                    break
            events = poller.poll(max(1.0, min(_UNHEARD_S if unheard else _WATCH_S, self._left()) * 1000))
            while unheard and time.monotonic() - self.started >= _UNHEARD_S:
                poller.register(unheard.pop(), select.POLLIN)
            for fd, _event in events:
                if fd == self.control.fileno():
                    self._control_message()
                elif not self.pipes.read(fd):
                    poller.unregister(fd)
            self._look()
        return self._outcome()

    def _left(self) -> float:
        """Seconds until the next limit of own time, at most; a busy machine makes it later."""
        if self.ended is not None:
            return _WATCH_S
        return max(0.0, min(self.limits.wall_s - self.own, self.quiet - (self.own - self.heard)))

    def _time(self) -> None:
        """End a job that has had its time. Cheap for short ones: the kernel is asked only once a limit could be near."""
        wall, limits = time.monotonic() - self.started, self.limits
        if not self.gave_way and wall > _WATCH_S:  # by then it has made its own session
            self.clock.give_way(limits.nice)
            self.gave_way = True
        nearest = min(limits.wall_s, self.quiet, limits.asleep_s or limits.wall_s)
        if self.cancelled is not None and wall > _WATCH_S and self.cancelled(self.clock):
            self._kill("stopped")
        elif wall < nearest:  # own time is never more than wall time
            self.own = wall
        else:
            self.own = self.clock.own_s()
            why = self._overdue(wall)
            # Looked at last: of a process that is gone the clock knows nothing, and one that has ended of itself while we
            # waited for a core was in time for all we know. Its status is on the way.
            self.gone = self.gone or self._has_ended()
            if why is not None and not self.gone:
                self._kill(why)

    def _overdue(self, wall: float) -> Ended | None:
        """The limit of time that is used up, if any."""
        if self.own >= self.limits.wall_s or self._asleep():
            return "timeout"
        if self.own - self.heard >= self.quiet:
            self.pipes.read_results()  # it may have answered while there was no core for us
            self._take_frames()
            if self.own - self.heard >= self.quiet:
                return "timeout"
        return "starved" if wall >= STARVED * self.limits.wall_s else None

    def _has_ended(self) -> bool:
        """Whether all its threads have ended, of themselves or killed; the fork server may not have said so yet."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def _asleep(self) -> bool:
        bound = self.limits.asleep_s
        return bound is not None and self.own >= bound and self.clock.cpu_s() < self.limits.idle * self.own

    def _kill(self, why: Ended) -> None:
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
        if len(data) < self.needed or self.ended == "stopped":
            return
        frames, size = split_frames(data)
        del data[:size]  # the cap of the pipe is for one answer, not for all of them
        self.taken += size
        self.needed = 4 + int.from_bytes(data[:4], "little")
        if self.taken > _ALL_FRAMES_BYTES:
            self._kill("output")
        if frames:
            self.heard = self.own
        for frame in frames:
            self.frames.append(frame)
            if self.on_frame is not None and self.on_frame(*frame) is False:
                self._kill("stopped")
                return

    def _outcome(self) -> Outcome:
        wall = time.monotonic() - self.started
        self.pipes.drain()
        self._take_frames()
        if (self.pipes.over or self.taken > _ALL_FRAMES_BYTES) and self.ended is None:
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
        whole = not self.pipes.data["results"]
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
