"""What a job does once its walls are up: the part of the fork server (zygote.py) that meets the submission.

    calls    setup, submission, then the holes of its tests      ->  frames with values
    judge    trusted test text on plain values, no submission    ->  frames with verdicts or values
    script   a whole program, as a fresh interpreter would       ->  stdout, exit code

Whatever runs here shares an interpreter with the submission and may have been tampered with by it. So nothing here
knows an expected value next to a submission, and nothing here decides.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import marshal
import os
import select
import struct
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from services.sandbox.jail import channel

RESULT_FD, PROGRAM_FD, RULESET_FD = 3, 4, 5  # in a job; kept occupied in the server, so nothing is received there
FRAME = struct.Struct("<I")
SETUPS: dict[bytes, dict[str, Any]] = {
    b"": {}
}  # marshalled setup code -> its namespace; a job is a fork, so it owns its copy
_SETUPS_KEPT = 16


def progress(stage: int, write: Callable[..., int] = os.pwrite) -> None:
    """Leave a note of how far we are, for the reason of a verdict (a submission may scribble over it)."""
    write(PROGRAM_FD, FRAME.pack(stage), 0)


class Results:
    """The job's end of the result pipe. Every frame is written at once: an answer that decides must not wait for the end
    of the call after it, which may never come. Survives O_NONBLOCK."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.limit = fd, limit
        self._write, self._select, self._len = os.write, select.select, len
        self._view, self._full = memoryview, BlockingIOError

    def frame(self, tag: bytes, body: bytes = b"") -> None:
        view = self._view(FRAME.pack(self._len(body) + 1) + tag + body)
        while view:
            try:
                view = view[self._write(self.fd, view) :]
            except self._full:
                self._select([], [self.fd], [], 1.0)


def _ascii(name: str) -> bytes:
    return name.encode("ascii", "replace")[:200]


def run_calls(request: dict[str, Any], results: Results) -> None:
    """Setup, then the submission, then step by step: statements, and expressions whose value is an answer.

    Frames: 'C' compiled, 'L' loaded, 'V' value | 'U' value without encoding | 'E' exception (name), 'Z' the end.
    The first exception in a step ends the run: one failed test decides.
    """
    namespace = set_up(request["setup"])
    encode, name_of, error, note = channel.encode, channel.type_name, channel.ChannelError, progress
    execute, evaluate, anything = exec, eval, BaseException  # the program may patch builtins, or empty them
    steps = list(enumerate(marshal.loads(request["steps"]), 2))
    try:
        code = compile(request["source"], "<submission>", "exec", dont_inherit=True)
    except BaseException as failure:
        return results.frame(b"E", b"compile " + _ascii(name_of(failure)))
    results.frame(b"C")
    note(1)
    try:
        execute(code, namespace)
    except anything as failure:
        return results.frame(b"E", b"load " + _ascii(name_of(failure)))
    results.frame(b"L")
    for number, (kind, step) in steps:
        note(number)
        try:
            if kind == "exec":
                execute(step, namespace)
                continue
            answer = encode(evaluate(step, namespace), results.limit)
        except error as failure:
            return results.frame(b"U", _ascii(failure.args[0]))
        except anything as failure:
            return results.frame(b"E", b"call " + _ascii(name_of(failure)))
        results.frame(b"V", answer)
    return results.frame(b"Z")


def run_judge(request: dict[str, Any], results: Results) -> None:
    """Trusted test text on plain values; no submission anywhere near. `items`: (imports code, expression code, values).

    Frames: 'J' 1 or 0 (the assert's verdict; an exception is 0), or, for values None, 'V' value of the expression
    itself, 'U' when it has no plain value, 'E' when it raised.
    """
    sys.setrecursionlimit(100_000)
    namespace = set_up(request["setup"])
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


def _materialise(value: object, scope: dict[str, Any]) -> object:
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
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_materialise(item, scope) for item in value)
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value)(_materialise(item, scope) for item in value)
    if type(value) is dict:
        return {key: _materialise(item, scope) for key, item in value.items()}
    return value


def _node(scope: dict[str, Any], name: str, **fields: object) -> Any:
    try:
        node = scope[name]()
    except (KeyError, TypeError):
        node = types.SimpleNamespace()
    for field, value in fields.items():
        setattr(node, field, value)
    return node


def run_script(request: dict[str, Any], results: Results) -> int:
    """A program as a fresh interpreter would run it, in an empty namespace. Returns the exit code.

    With setup code, the program finds the namespace in which that has run as `prepared`. As at interpreter exit:
    non-daemon threads are joined, atexit functions run, stdout is flushed.
    """
    code = 0
    try:
        program = request["source"]
        if isinstance(program, bytes):
            program = marshal.loads(program)
        else:
            program = compile(program, "<string>", "exec", dont_inherit=True)
        namespace = dict(request["namespace"])
        if setup := request["setup"]:
            namespace["prepared"] = set_up(setup)
        exec(program, namespace)
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:
        code = 1
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # a program may close every descriptor; what it printed counts all the same
        results.frame(b"Z")
    return code


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def set_up(code: bytes) -> dict[str, Any]:
    """The namespace in which setup code has run: the kept one, or made now, in this job alone."""
    namespace = SETUPS.get(code)
    if namespace is None:
        exec(marshal.loads(code), namespace := {})
    return namespace


def keep_setup(code: bytes) -> None:
    """Run setup code that only imports and defines (the supervisor checked), once for all jobs that use it."""
    namespace: dict[str, Any] = {}
    try:
        exec(marshal.loads(code), namespace)
    except Exception:
        return  # the job will meet the same error, in its own process
    while len(SETUPS) > _SETUPS_KEPT:
        del SETUPS[next(key for key in SETUPS if key)]
    SETUPS[code] = namespace
    gc.collect()
    gc.freeze()
