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

import atexit
import contextlib
import fcntl
import gc
import marshal
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from services.sandbox import channel, isolation, syscalls

del sys.path[0]

# What setup code and solutions usually import: loaded once here instead of once per job. Every shared library here
# makes every fork slower (unittest and hashlib would cost 0.1 ms each), so the rare ones are left to the job.
PREIMPORT = (
    "abc array ast bisect cmath collections concurrent.futures concurrent.futures.thread contextlib copy ctypes "
    "dataclasses datetime enum functools heapq inspect io itertools json math numbers operator queue random re string "
    "struct textwrap threading time traceback types typing warnings weakref"
)

RESULT_FD, PROGRAM_FD, RULESET_FD = 3, 4, 5  # in a job; kept occupied in the server, so nothing is received there
FRAME = struct.Struct("<I")
_CONTROL_BYTES = 1 << 17
SETUPS: dict[bytes, dict] = {b"": {}}  # marshalled setup code -> its namespace; a job is a fork, so it owns its copy
_SETUPS_KEPT = 8


# ------------------------------------------------------------------------------------------------- inside the job

def enter_job(fds: list[int], spec: dict, walls: dict) -> bytes:
    """Put up the job's walls in order, then read what to run. `fds`: program, results and, to capture, stdout, stderr.

    Without capture stdout and stderr are the server's: /dev/null.
    """
    if walls["limits"]:
        isolation.set_limits(spec["limits"])
        os.setsid()
    for source, target in zip(fds, (PROGRAM_FD, RESULT_FD, 1, 2), strict=False):
        os.dup2(source, target)
    isolation.close_all_above(RULESET_FD)
    isolation.die_with_parent()
    isolation.not_dumpable()
    if walls["landlock"]:
        isolation.landlock_restrict(RULESET_FD)
    if walls["filter"]:
        walls["filter"].load(os.getpid())
    os.close(RULESET_FD)
    return isolation.read_exactly(PROGRAM_FD, spec["size"])


def progress(stage: int) -> None:
    """Leave a note of how far we are, for the reason of a verdict (a submission may scribble over it)."""
    os.pwrite(PROGRAM_FD, FRAME.pack(stage), 0)


class Results:
    """The job's end of the result pipe: frames, buffered, written out when old or large. Survives O_NONBLOCK."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.limit, self.buffer, self.last = fd, limit, bytearray(), time.monotonic()
        self._write, self._clock, self._select, self._len = os.write, time.monotonic, select.select, len

    def frame(self, tag: bytes, body: bytes = b"") -> None:
        self.buffer += FRAME.pack(self._len(body) + 1) + tag + body
        now = self._clock()
        if self._len(self.buffer) > 60_000 or now - self.last > 0.02:
            self.flush()
            self.last = now

    def flush(self) -> None:
        view = memoryview(bytes(self.buffer))
        self.buffer.clear()
        while view:
            try:
                view = view[self._write(self.fd, view):]
            except BlockingIOError:
                self._select([], [self.fd], [], 1.0)


def _ascii(name: str) -> bytes:
    return name.encode("ascii", "replace")[:200]


def run_calls(request: dict, results: Results) -> None:
    """Setup, then the submission, then step by step: statements, and expressions whose value is an answer.

    Frames: 'C' compiled, 'L' loaded, 'V' value | 'U' value without encoding | 'E' exception (name), 'Z' the end.
    The first exception in a step ends the run: one failed test decides.
    """
    namespace = SETUPS.get(request["setup"])
    encode, name_of, error, note = channel.encode, channel.type_name, channel.ChannelError, progress
    if namespace is None:
        exec(marshal.loads(request["setup"]), namespace := {})
    steps = marshal.loads(request["steps"])
    try:
        code = compile(request["source"], "<submission>", "exec", dont_inherit=True)
    except BaseException as failure:
        return results.frame(b"E", b"compile " + _ascii(name_of(failure)))
    results.frame(b"C")
    note(1)
    try:
        exec(code, namespace)
    except BaseException as failure:
        return results.frame(b"E", b"load " + _ascii(name_of(failure)))
    results.frame(b"L")
    for number, (kind, step) in enumerate(steps, 2):
        note(number)
        try:
            if kind == "exec":
                exec(step, namespace)
                continue
            answer = encode(eval(step, namespace), results.limit)
        except error as failure:
            return results.frame(b"U", _ascii(failure.args[0]))
        except BaseException as failure:
            return results.frame(b"E", b"call " + _ascii(name_of(failure)))
        results.frame(b"V", answer)
    return results.frame(b"Z")


def run_judge(request: dict, results: Results) -> None:
    """Trusted test text on plain values; no submission anywhere near. `items`: (imports code, expression code, values).

    Frames: 'J' 1 or 0 (the assert's verdict; an exception is 0), or, for values None, 'V' value of the expression
    itself, 'U' when it has no plain value, 'E' when it raised.
    """
    namespace = SETUPS.get(request["setup"])
    sys.setrecursionlimit(100_000)
    if namespace is None:
        exec(marshal.loads(request["setup"]), namespace := {})
    for imports, expression, values in marshal.loads(request["steps"]):
        scope = dict(namespace)
        try:
            exec(marshal.loads(imports), scope)
            if values is None:
                results.frame(b"V", channel.encode(eval(marshal.loads(expression), scope), results.limit))
                continue
            plain = [_materialise(channel.decode(value), scope) for value in values]
            scope.update(_hole=plain, _each=[iter(value) if isinstance(value, list) else value for value in plain])
            results.frame(b"J", b"1" if eval(marshal.loads(expression), scope) else b"0")
        except channel.ChannelError:
            results.frame(b"U")
        except Exception as failure:
            results.frame(b"J" if values is not None else b"E", b"0" if values is not None else _ascii(repr(failure)))
    results.frame(b"Z")


def _materialise(value: object, scope: dict) -> object:
    """Chains and trees as nodes, of the setup code's classes where it has them, so that its helpers can walk them."""
    if isinstance(value, channel.Chain):
        node = None
        for item in reversed(value.values):
            node = _node(scope, "ListNode", val=_materialise(item, scope), next=node)
        return node
    if isinstance(value, channel.Tree):
        nodes = [_node(scope, "TreeNode", val=_materialise(item, scope)) for item in value.values]
        rest = iter(nodes[1:])
        for node, bits in zip(nodes, value.shape, strict=True):
            node.left, node.right = next(rest) if bits & 1 else None, next(rest) if bits & 2 else None
        return nodes[0]
    if isinstance(value, (list, tuple)):
        return type(value)(_materialise(item, scope) for item in value)
    return value


def _node(scope: dict, name: str, **fields: object) -> object:
    try:
        node = scope[name]()
    except (KeyError, TypeError):
        node = types.SimpleNamespace()
    for field, value in fields.items():
        setattr(node, field, value)
    return node


def run_script(request: dict, results: Results) -> int:
    """A program as a fresh interpreter would run it, in an empty namespace. Returns the exit code.

    As at interpreter exit: non-daemon threads are joined, atexit functions run, stdout is flushed.
    """
    code = 0
    try:
        program = request["source"]
        if isinstance(program, bytes):
            program = marshal.loads(program)
        else:
            program = compile(program, "<string>", "exec", dont_inherit=True)
        exec(program, dict(request["namespace"]))
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:
        code = 1
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    results.frame(b"Z")
    sys.stdout.flush()
    return code


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def job(fds: list[int], spec: dict, walls: dict) -> None:
    """The forked child: never returns."""
    leave, code = os._exit, 70  # 70: our own failure, before the program ran
    try:
        request = marshal.loads(enter_job(fds, spec, walls)[FRAME.size:])
        results = Results(RESULT_FD, request["value_bytes"])
        sys.setrecursionlimit(1000)
        if request["mode"] != "script":
            (run_calls if request["mode"] == "calls" else run_judge)(request, results)
            code = 0
        else:
            code = 71
            code = run_script(request, results)
        results.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        leave(code)


# ------------------------------------------------------------------------------------------------- the server

def put_up_walls(options: dict, scratch_fd: int) -> tuple[dict, dict]:
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
        server = isolation.file_ruleset(scratch_fd)
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


def _seccomp(options: dict) -> str:
    if not options["seccomp"]:
        return "switched off"
    try:
        isolation.Filter(syscalls.outer_policy().assemble()).load()
    except OSError as error:
        return f"filter refused: {error.strerror}"
    return ""


def prepare_python() -> None:
    """Imports, and a stdout that cannot raise on a lone surrogate (the published harness has a StringIO there)."""
    for name in PREIMPORT.split():
        __import__(name)
    os.environ.clear()
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=False)
    isolation.LIBC.mallopt(-8, 2)  # M_ARENA_MAX: arenas reserve 64 MiB of address space per thread otherwise
    for name in [name for name in sys.modules if name.split(".")[0] == "services"]:
        del sys.modules[name]


def _oom_first() -> None:
    """Ask the kernel to prefer us when memory runs out on the machine."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # no /proc: the kernel then chooses by size, which a job has most of anyway


def _fork(control: socket.socket, fds: list[int], spec: dict, walls: dict) -> None:
    """One job: fork, hand the supervisor its pidfd, wait for it or for the supervisor's end, report."""
    pid = os.fork()
    if pid == 0:
        job(fds, spec, walls)
    for fd in fds:
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(control, [b"P"], [pidfd])
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


def serve(control: socket.socket, walls: dict) -> None:
    while True:
        message, fds, _flags, _address = socket.recv_fds(control, _CONTROL_BYTES, 8)
        if not message:
            os._exit(0)
        try:
            if message[:1] == b"S":
                _keep_setup(message[1:])
                control.send(b"S")
            else:
                _fork(control, fds, marshal.loads(message[1:]), walls)
        except OSError as error:
            control.send(b"F" + str(error).encode())


def _keep_setup(code: bytes) -> None:
    """Run setup code that only imports and defines (the supervisor checked), once for all jobs that use it."""
    namespace: dict = {}
    try:
        exec(marshal.loads(code), namespace)
    except Exception:
        return  # the job will meet the same error, in its own process
    while len(SETUPS) > _SETUPS_KEPT:
        del SETUPS[next(key for key in SETUPS if key)]
    SETUPS[code] = namespace
    gc.collect()
    gc.freeze()


def _outer_wall(options: dict) -> str:
    """Enter fresh namespaces and continue as process 1 of them. The parent stays to be waited for."""
    if not options["outer"]:
        return "switched off"
    reason = _rehearse(options)
    if reason:
        return reason
    isolation.enter_namespaces()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # what is mounted there went with the namespace
            os.rmdir(options["scratch"])
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    isolation.die_with_parent()
    return _mount(options)


def _mount(options: dict) -> str:
    return isolation.mount_scratch(options["scratch"], options["scratch_mb"], options["scratch_inodes"])


def _rehearse(options: dict) -> str:
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
    prepare_python()
    space = isolation.address_space()
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
    gc.collect()
    gc.freeze()
    serve(control, walls)


if __name__ == "__main__":
    main()
