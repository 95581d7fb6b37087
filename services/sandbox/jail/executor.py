"""The only place that runs untrusted code.

    with Executor() as executor:                                   # one fork server; not thread-safe; make several
        outcome = executor.run_script("print(6 * 7)")              # a whole program, its stdout and exit code
        outcome.stdout, outcome.ended, outcome.exit_code           # b"42\\n", "exit", 0
        outcome = executor.run_calls("def f(x): return x + 1", steps=[("eval", compile("f(1)", "", "eval"))])
        outcome.frames                                             # [("C", b""), ("L", b""), ("V", ...), ("Z", b"")]

`run_script(source, limits, namespace=None)`: `source` is program text, or a code object (compiled once by the caller,
sent as marshal). It is compiled as one unit and exec'ed in a fresh copy of `namespace` (default `{}`), so `__name__`
is 'builtins'; stdin is at its end; the recursion limit is 1000; signals are at their defaults and `signal.alarm`
works. A harness of the caller's own is simply program text or code around the submission, with the submission handed
over as plain data in `namespace`. At the end non-daemon threads are joined, atexit runs, stdout is flushed, as in a
fresh interpreter. An uncaught exception prints a traceback on stderr and exits 1.

Hash seed: a fork server has one seed for life (`Executor(hash_seed=n)`, default random per server), so set order is
the same in every job of one executor, unlike a fresh interpreter per program.

Covers: what zygote.py, isolation.py and syscalls.py list; own time (owntime.py), CPU, memory, output, scratch size; every job is
dead and its scratch empty when `run_*` returns. Does not cover: a kernel bug; CPU-time side channels; disk use between
two looks at the scratch (every 50 ms) where the tmpfs of the outer wall is absent.
"""

from __future__ import annotations

import contextlib
import logging
import marshal
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from services.sandbox.jail import isolation, scratch
from services.sandbox.jail import packages as third_party
from services.sandbox.jail.owntime import OwnTime
from services.sandbox.jail.watch import Limits, Outcome, Pipes, Watch, split_frames

Isolation = Literal["required", "best_effort"]
__all__ = [
    "Executor",
    "Isolation",
    "IsolationError",
    "Limits",
    "Outcome",
    "SandboxError",
    "landlock_present",
    "split_frames",
]

REQUIRED_LAYERS = ("landlock", "seccomp")
_ZYGOTE = Path(__file__).with_name("zygote.py")
log = logging.getLogger(__name__)
_NOTE_BYTES = 4  # at the start of a job's memory file: how far it is
_SETUP_BYTES = 100_000
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what a kernel or an operator sends
_TWO_RUNS_S = 7.5  # own time of both runs, where a job is run again


class SandboxError(Exception):
    """Our own failure (no fork server, no memory to fork): an infra error, never a wrong answer."""


class IsolationError(SandboxError):
    """A required layer is absent. The message names the layers and the reasons."""


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _step(memfd: int) -> int:
    return int.from_bytes(os.pread(memfd, _NOTE_BYTES, 0), "little")


class Executor:
    """One fork server and one job at a time.

    isolation: 'required' raises IsolationError when Landlock or seccomp is absent; 'best_effort' goes without.
    outer: try the outer wall (namespaces, bounded tmpfs as scratch); reported in `layers`, never required.
    packages: third-party packages that programs may import besides the standard library (packages.py). Raises ConfigError.
    layers: layer -> '' when present, else why it is absent.
    """

    def __init__(
        self,
        isolation: Isolation = "required",
        scratch_dir: str | None = None,
        hash_seed: int | None = None,
        outer: bool = True,
        switch_off: tuple[str, ...] = (),
        packages: Sequence[str] = (),
    ) -> None:
        self._isolation, self._hash_seed, self._outer, self._switch_off = isolation, hash_seed, outer, switch_off
        self._scratch_dir = scratch_dir
        try:
            self._packages = third_party.find(packages)
        except ValueError as error:
            raise ConfigError(f"sandbox.packages: {error}") from None
        self._scratch = self._new_scratch()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._scratch_fd = -1
        self._base = 0
        self._setups: set[bytes] = set()
        self.layers: dict[str, str] = {}
        self.replaced = 0
        # asked every 50 ms, with how far the job says it is (Outcome.step) and its clock; True ends the job as 'stopped'
        self.superfluous: Callable[[int, OwnTime], bool] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the fork server and remove the scratch. May be called twice."""
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -I ignores PYTHONHASHSEED, so a fixed seed needs the flags that -I stands for, less -E
            flags = ["-I"] if self._hash_seed is None else ["-s", "-P"]
            environment = {} if self._hash_seed is None else {"PYTHONHASHSEED": str(self._hash_seed)}
            python = getattr(sys, "_base_executable", None) or sys.executable
            self._process = subprocess.Popen(
                [python, *flags, "-S", "-B", "-X", "utf8", str(_ZYGOTE), str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                cwd="/",
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._control = ours
        ours.settimeout(30)
        ours.send(marshal.dumps(self._options()))
        message, fds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
        if not message or not fds:
            raise SandboxError(f"the fork server did not start: {self._last_words()}")
        hello = marshal.loads(message)
        if hello["version"] != sys.version:
            raise SandboxError(f"the fork server runs Python {hello['version']}, we run {sys.version}")
        self._setups = set()
        self._scratch_fd, self._base, self.layers = fds[0], hello["address_space"], hello["layers"]
        self._require()

    def _options(self) -> dict[str, Any]:
        # A user of its own, under a number that says nothing of our pids.
        uid = 2_000_000 + secrets.randbelow(1 << 30) if os.geteuid() == 0 else 0
        off = set(self._switch_off)
        return {
            "scratch": self._scratch,
            "scratch_mb": 64,
            "scratch_inodes": 4096,
            "uid": 0 if "uid" in off else uid,
            "outer": self._outer,
            "landlock": "landlock" not in off,
            "seccomp": "seccomp" not in off,
            "limits": "limits" not in off,
            "packages": self._packages,
        }

    def _require(self) -> None:
        absent = [f"{name}: {self.layers[name]}" for name in REQUIRED_LAYERS if self.layers[name]]
        if absent and self._isolation == "required":
            raise IsolationError(f"required isolation is absent ({'; '.join(absent)})")

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert self._process is not None  # _start has made it
            return self._process.communicate(timeout=5)[1].decode("utf-8", "replace").strip()[-600:]
        return "no answer"

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stderr is not None  # a pipe: _start asked for it
            self._process.stderr.close()
            self._process = None
        if self._scratch_fd >= 0:
            os.close(self._scratch_fd)
            self._scratch_fd = -1

    def _new_scratch(self) -> str:
        return tempfile.mkdtemp(prefix="sandbox-", dir=self._scratch_dir)

    def _replace(self) -> None:
        self._stop()
        self.replaced += 1
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch = self._new_scratch()  # whatever a job did to the old one stays behind
        self._start()

    @property
    def _running(self) -> socket.socket:
        """The connection to the fork server, where it has been started."""
        assert self._control is not None
        return self._control

    @property
    def pid(self) -> int:
        """Of the fork server (of its outer half when there is an outer wall)."""
        assert self._process is not None, "the executor is closed"
        return self._process.pid

    # ------------------------------------------------------------------ jobs

    def run_script(
        self,
        source: str | types.CodeType,
        limits: Limits | None = None,
        namespace: dict[str, Any] | None = None,
        capture: bool = True,
        setup: bytes = b"",
    ) -> Outcome:
        """Run a program; see the module docstring. setup: marshalled code that only imports and defines, run once for all
        jobs; the program finds its namespace as `prepared`. Raises SandboxError when *we* fail."""
        limits = limits or Limits()
        program = marshal.dumps(source) if isinstance(source, types.CodeType) else source
        request = {"mode": "script", "source": program, "namespace": namespace or {}, "setup": setup}
        return self._run(request, limits, capture, None, bool(setup))

    def run_calls(
        self,
        source: str,
        steps: Iterable[tuple[str, types.CodeType]] | bytes,
        setup: bytes = b"",
        limits: Limits | None = None,
        on_frame: Any = None,
        keep_setup: bool = False,
        on_restart: Callable[[], None] | None = None,
    ) -> Outcome:
        """Run a submission, then evaluate steps beside it; the answers come back as frames (zygote.run_calls).

        steps: ('exec' | 'eval', code) pairs, or their marshal. setup: marshalled code object run before the submission
        in the same namespace; keep_setup: it only imports and defines, so the fork server may run it once for all
        jobs. on_frame(tag, body) is called as frames arrive; False ends the job at once ('stopped'). on_restart() is
        called before the job is run again because its first run ended as if from outside: frames begin anew.
        """
        steps = steps if isinstance(steps, bytes) else marshal.dumps(tuple(tuple(step) for step in steps))
        request = {"mode": "calls", "source": source, "steps": steps, "setup": setup}
        return self._run(request, limits or Limits(), False, on_frame, keep_setup, on_restart)

    def run_judge(
        self, items: list[tuple[Any, ...]], setup: bytes = b"", limits: Limits | None = None, keep_setup: bool = False
    ) -> Outcome:
        """Evaluate trusted test text on plain values in a job of its own (zygote.run_judge). Never give this executor
        a submission: use a separate one, so that nothing a submission did can be near."""
        request = {"mode": "judge", "steps": marshal.dumps(tuple(items)), "setup": setup}
        return self._run(request, limits or Limits(), False, None, keep_setup)

    def _run(
        self,
        request: dict[str, Any],
        limits: Limits,
        capture: bool,
        on_frame: Any,
        keep_setup: bool = False,
        on_restart: Callable[[], None] | None = None,
    ) -> Outcome:
        request["value_bytes"] = limits.value_bytes
        blob = bytes(_NOTE_BYTES) + marshal.dumps(request)
        setup = request["setup"] if keep_setup else b""
        outcome = self._attempt(blob, limits, capture, on_frame, setup)
        if not _as_if_from_outside(outcome):
            return outcome
        # A kill by the kernel or an operator looks like one of the program's own. The program does it again.
        if on_restart is not None:
            on_restart()
        left = replace(limits, wall_s=min(limits.wall_s, max(1.0, _TWO_RUNS_S - outcome.wall_s)))
        outcome = self._attempt(blob, left, capture, on_frame, setup)
        if outcome.ended == "server" or (outcome.exit_code == 70 and not outcome.frames):
            self._blame(outcome)
        return outcome

    def _attempt(self, blob: bytes, limits: Limits, capture: bool, on_frame: Any, setup: bytes) -> Outcome:
        """One run. setup: what the fork server is to keep."""
        if self._control is None:
            self._replace()
        if setup:
            self._keep_setup(setup)
        outcome = self._job(blob, limits, capture, on_frame)
        if outcome.ended == "starved":
            raise SandboxError(f"a job got no core for {outcome.wall_s:.0f} s: more graders than cores?")
        if outcome.ended == "server":
            self._replace()
        return outcome

    def _blame(self, outcome: Outcome) -> None:
        """Twice in a row, or a job that failed before the program began (70, which anyone can say): the program's doing if
        a trivial job works, ours otherwise."""
        request = {"mode": "judge", "setup": b"", "steps": marshal.dumps(()), "value_bytes": 1 << 10}
        blob = bytes(_NOTE_BYTES) + marshal.dumps(request)
        if not self._job(blob, Limits(), False, None).complete:
            raise SandboxError(f"jobs cannot be started: {outcome.stderr[-300:].decode('utf-8', 'replace')}")

    def _job(self, blob: bytes, limits: Limits, capture: bool, on_frame: Any) -> Outcome:
        pipes = Pipes(limits, capture)
        memfd = os.memfd_create("job", os.MFD_CLOEXEC)
        try:
            _write_all(memfd, blob)
            spec = {"limits": limits.rlimits(self._base), "size": len(blob)}
            pidfd = self._launch([memfd, *pipes.child], spec)
            pipes.close_child()
            if pidfd is None:
                return Outcome("server")
            try:
                try:
                    outcome = Watch(
                        self._running, self._scratch_fd, pidfd, pipes, limits, on_frame, self._cancelled(memfd)
                    ).run()
                except BaseException:
                    self._stop()  # its answer about this job is still to come: start afresh next time
                    raise
                return replace(outcome, step=_step(memfd))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
        finally:
            os.close(memfd)
            pipes.close()
            self._clean()

    def _cancelled(self, memfd: int) -> Callable[[OwnTime], bool] | None:
        asked = self.superfluous
        return None if asked is None else lambda clock: asked(_step(memfd), clock)

    def _clean(self) -> None:
        """Empty the scratch after a job. One that cannot be emptied goes with its fork server; the verdict stays."""
        if self._scratch_fd < 0:
            return
        try:
            scratch.empty(self._scratch_fd)
        except Exception as error:  # whatever a job left there, it must not end its grader
            log.warning("a scratch could not be emptied, its jail is replaced: %s: %s", type(error).__name__, error)
            self._stop()

    def _keep_setup(self, setup: bytes) -> None:
        """Have the fork server run setup code once; its jobs then find the namespace ready."""
        if setup in self._setups or len(setup) > _SETUP_BYTES:
            return
        self._setups.add(setup)
        with contextlib.suppress(OSError):  # a server that is gone is noticed at the launch
            self._running.send(b"S" + setup)
            self._running.recv(1)

    def _launch(self, fds: list[int], spec: dict[str, Any]) -> int | None:
        """The job's pidfd, or None when the fork server is gone."""
        try:
            socket.send_fds(self._running, [b"J" + marshal.dumps(spec)], fds)
            message, answer, _, _ = socket.recv_fds(self._running, 1 << 16, 1)
        except OSError:
            return None
        if message[:1] == b"F":
            raise SandboxError(f"the fork server could not fork: {message[1:].decode()}")
        return answer[0] if message[:1] == b"P" and answer else None


def _as_if_from_outside(outcome: Outcome) -> bool:
    """It took its server down, failed before the program began, or was killed: the program's doing, or somebody else's."""
    if outcome.ended == "signal":
        return outcome.signal in _SENT
    return outcome.ended == "server" or (outcome.exit_code == 70 and not outcome.frames)


def landlock_present() -> bool:
    """Whether this kernel offers the Landlock version that `isolation='required'` asks for."""
    return isolation.landlock_abi() >= isolation.LANDLOCK_ABI_WANTED
