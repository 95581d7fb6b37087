"""The fork server: a fresh Python that never saw a test, a secret or a socket of the service, and forks once per job.

    supervisor (executor.py)                 zygote (this file)                 job (a fork of it)
      Popen, empty environment  ──────────>  preimport, gc.freeze, walls
      'hello'                   <──────────  layers, address space
      limits + descriptors      ──────────>  fork ─────────────────────────────> limits, session, landlock, seccomp
      pidfd                     <──────────  poll(pidfd, control)                read the program from a memfd, run it
      ... SIGKILL by pidfd at the wall limit ...                                 result frames into a pipe
      wait status, rusage       <──────────  wait4

The program travels in a memfd that only the job opens: it never passes through the zygote's memory, so neither does a
word of an earlier submission. When the supervisor goes away (end of file on the control socket) the zygote kills the
job and ends. A zygote that dies, stops or does not answer is replaced; nothing in it is worth having.

Run as `python -I -S -B -X utf8 zygote.py FD`, standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import io
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from services.sandbox.jail import channel, isolation, packages, runners, syscalls
from services.sandbox.jail.runners import FRAME, PROGRAM_FD, RESULT_FD, RULESET_FD

del sys.path[0]

# What setup code and solutions usually import: loaded once here instead of once per job. Every shared library here
# makes every fork slower (unittest, hashlib, concurrent.futures: 0.1 ms each), so the rare ones are left to jobs.
PREIMPORT = (
    "abc array ast bisect cmath collections contextlib copy ctypes dataclasses datetime enum functools heapq inspect "
    "io itertools json math numbers operator queue random re string struct textwrap threading time traceback types "
    "typing warnings weakref"
)

_HAND_OVER_TRIES = 2000  # of 2 ms
_CONTROL_BYTES = 1 << 17


# ------------------------------------------------------------------------------------------------- inside the job


def enter_job(fds: list[int], spec: dict[str, Any], walls: dict[str, Any]) -> bytes:
    """Put up the job's walls in order, then read what to run. `fds`: program, results and, to capture, stdout, stderr.

    Without capture stdout and stderr are /dev/null, as stdin always is.
    """
    if walls["limits"]:
        isolation.set_limits(spec["limits"])
        os.setsid()
    for source, target in zip(fds, (PROGRAM_FD, RESULT_FD, 1, 2), strict=False):
        os.dup2(source, target)
    null = os.open(os.devnull, os.O_RDWR)  # anew: flags and locks of the server's own would reach the next job
    for target in range(3) if len(fds) == 2 else (0,):
        os.dup2(null, target)
    here = os.urandom(16).hex()
    os.mkdir(here)  # a directory of its own: what a job did to another one stays with that
    os.chdir(here)
    isolation.close_all_above(RULESET_FD)
    isolation.die_with_parent()
    isolation.not_dumpable()
    if walls["landlock"]:
        isolation.landlock_restrict(RULESET_FD)
    if walls["filter"]:
        walls["filter"].load(os.getpid())
    os.close(RULESET_FD)
    return isolation.read_exactly(PROGRAM_FD, spec["size"])


def job(fds: list[int], spec: dict[str, Any], walls: dict[str, Any]) -> None:
    """The forked child: never returns."""
    leave, code = os._exit, 70  # 70: our own failure, before the program ran
    try:
        request = marshal.loads(enter_job(fds, spec, walls)[FRAME.size :])
        results = runners.Results(RESULT_FD, request["value_bytes"])
        sys.setrecursionlimit(1000)
        if request["mode"] != "script":
            (runners.run_calls if request["mode"] == "calls" else runners.run_judge)(request, results)
            code = 0
        else:
            code = 71
            code = runners.run_script(request, results)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        leave(code)


# ------------------------------------------------------------------------------------------------- the server


def put_up_walls(options: dict[str, Any], scratch_fd: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layers of the server itself. Returns (what jobs need, report: layer -> '' or why it is absent)."""
    report: dict[str, str] = {}
    if options["uid"]:
        report["uid"] = isolation.drop_uid(options["uid"], scratch_fd)
    isolation.drop_capabilities()
    isolation.no_new_privs()
    if options["outer"]:
        isolation.die_with_parent()
    isolation.not_dumpable()
    policy = None
    abi = isolation.landlock_abi() if options["landlock"] else 0
    if abi >= isolation.LANDLOCK_ABI_WANTED:
        server = isolation.file_ruleset(scratch_fd, options["readable"])
        ruleset = isolation.landlock_ruleset(0, 0, isolation.SCOPE_ALL)
        os.dup2(ruleset, RULESET_FD)
        os.close(ruleset)
        isolation.landlock_restrict(server)
        os.close(server)
        report["landlock"] = ""
    else:
        report["landlock"] = f"kernel has Landlock ABI {abi}, {isolation.LANDLOCK_ABI_WANTED} is needed (Linux 6.12)"
    report["seccomp"] = _seccomp(options)
    if not report["seccomp"]:
        policy = isolation.Filter(syscalls.job_policy().assemble())
    return {"landlock": not report["landlock"], "filter": policy, "limits": options["limits"]}, report


def _seccomp(options: dict[str, Any]) -> str:
    if not options["seccomp"]:
        return "switched off"
    try:
        isolation.Filter(syscalls.outer_policy().assemble()).load()
    except OSError as error:
        return f"filter refused: {error.strerror}"
    return ""


def prepare_python(folders: dict[str, list[str]]) -> list[str]:
    """Imports, and a stdout that cannot raise on a lone surrogate (the published harness has a StringIO there)."""
    for name in PREIMPORT.split():
        __import__(name)
    readable = packages.load(folders)
    os.environ.clear()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=False)
    isolation.LIBC.mallopt(-8, 2)  # M_ARENA_MAX: arenas reserve 64 MiB of address space per thread otherwise
    for name in [name for name in sys.modules if name.split(".")[0] == "services"]:
        del sys.modules[name]
    return readable


def warm_up() -> None:
    """Do once here what the interpreter does lazily the first time (the types of `ast` alone cost a job 1 ms).

    A dozen runs of the real runner, into /dev/null: CPython 3.11 rewrites a function's bytecode in place while it is
    young, and every page of it that a job rewrites is a page copied.
    """
    source = "class Solution:\n    def f(self, x):\n        return [x, str(x), 1.5]\n"
    steps = tuple(("eval", compile(f"Solution().f(x = {x})", "<warm>", "eval")) for x in range(4))
    request = {"mode": "calls", "source": source, "steps": marshal.dumps(steps), "setup": b"", "value_bytes": 1 << 10}
    for _ in range(12):
        runners.SETUPS[b""] = {}
        runners.run_calls(marshal.loads(marshal.dumps(request)), runners.Results(RESULT_FD, 1 << 10))
    runners.SETUPS[b""] = {}
    channel.decode(channel.encode([2, "2", 1.5], 1 << 10))
    try:
        compile("x = ", "<warm>", "exec")
    except SyntaxError as error:
        traceback.format_exception(error)


def _oom_first() -> None:
    """Ask the kernel to prefer us when memory runs out on the machine."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # no /proc: the kernel then chooses by size, which a job has most of anyway


def _hand_over(control: socket.socket, pidfd: int) -> None:
    """Send the pidfd. The kernel counts descriptors under way by user, and every jail on the machine may be that user:
    while many jobs start at once their sum can pass our limit, for as long as the others take to receive theirs."""
    for _ in range(_HAND_OVER_TRIES):
        try:
            socket.send_fds(control, [b"P"], [pidfd])
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(0.002)
    socket.send_fds(control, [b"P"], [pidfd])


def _fork(control: socket.socket, fds: list[int], spec: dict[str, Any], walls: dict[str, Any]) -> None:
    """One job: fork, hand the supervisor its pidfd, wait for it or for the supervisor's end, report."""
    pid = os.fork()
    if pid == 0:
        job(fds, spec, walls)
    for fd in fds:
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    _hand_over(control, pidfd)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(control, select.POLLIN)
    ready = dict(poller.poll())
    if pidfd not in ready:  # the supervisor is gone, or out of step: end all
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    os.close(pidfd)
    control.send(b"W" + struct.pack("<idQ", status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss))


def serve(control: socket.socket, walls: dict[str, Any]) -> None:
    while True:
        message, fds, _flags, _address = socket.recv_fds(control, _CONTROL_BYTES, 8)
        if not message:
            os._exit(0)
        try:
            if message[:1] == b"S":
                runners.keep_setup(message[1:])
                control.send(b"S")
            else:
                _fork(control, fds, marshal.loads(message[1:]), walls)
        except OSError as error:
            control.send(b"F" + str(error).encode())


def _outer_wall(options: dict[str, Any]) -> str:
    """Enter fresh namespaces and continue as process 1 of them. The parent stays to be waited for."""
    if not options["outer"]:
        return "switched off"
    reason = _rehearse(options)
    if reason:
        return reason
    parent = os.open(os.path.dirname(options["scratch"]), os.O_PATH)
    isolation.enter_namespaces()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # the supervisor may be gone: leave no empty directory behind
            os.rmdir(os.path.basename(options["scratch"]), dir_fd=parent)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.close(parent)
    isolation.die_with_parent()
    return _mount(options)


def _mount(options: dict[str, Any]) -> str:
    size, inodes = options["scratch_mb"], options["scratch_inodes"]
    return isolation.mount_scratch(options["scratch"], size, inodes, options["readable"])


def _rehearse(options: dict[str, Any]) -> str:
    """The whole wall in a child that ends at once: a kernel or container may refuse any step, half way in."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            reason = isolation.enter_namespaces() or _mount(options)
        except BaseException as error:
            reason = repr(error)
        os.write(write, reason.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        reason = file.read().decode()
    os.waitpid(child, 0)
    return reason


def _high_descriptors(fd: int) -> socket.socket:
    """Move the control socket out of the way and occupy the numbers that mean something in a job."""
    control = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (RESULT_FD, PROGRAM_FD, RULESET_FD):
        if number != null:
            os.dup2(null, number)
    if null > RULESET_FD:
        os.close(null)
    return control


def main() -> None:
    control = _high_descriptors(int(sys.argv[1]))
    options = marshal.loads(control.recv(_CONTROL_BYTES))
    _oom_first()
    readable = prepare_python(options["packages"])
    space = isolation.address_space()
    options["readable"] = (
        readable + isolation.interpreter_files()
    )  # while there is a /proc to see which libraries are mapped
    outer = _outer_wall(options)
    os.chdir(options["scratch"])
    scratch_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    walls, report = put_up_walls(options, scratch_fd)
    report["outer wall"] = outer
    hello = {"layers": report, "address_space": space, "version": isolation.python_version()}
    socket.send_fds(control, [marshal.dumps(hello)], [scratch_fd])
    os.close(scratch_fd)
    os.dup2(1, 2)  # from here on nothing reads our stderr
    if options["limits"]:
        isolation.set_limits(isolation.SERVER_LIMITS)
    warm_up()
    gc.collect()
    gc.freeze()
    serve(control, walls)


if __name__ == "__main__":
    main()
