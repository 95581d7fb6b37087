"""What runs inside the jail for one program of the published evaluation. Not a module: its text is compiled once
(published.py) and executed in a job, with these names put into its namespace:

    source   text of the program                     setup    code object executed before it, or None
    prepared the namespace in which setup code that only imports and defines has run already, or None
    harness  code object of the tests, or None       tests    the tests' statements, for the harness
    limits   (seconds, grace, idle, stretch, exit code of a job that ends itself; `note`, if it is there, is a descriptor
             at whose start the job says how far it is: LOADING, LOADED, TESTED)

It executes the program in an empty namespace with a StringIO for stdout, reads the last result line printed there, and
reports on the real stdout, in the process and with the `json` that the program had its hands on: hackable on purpose.
Whatever it touches is a page to copy for every job, so it does without classes, regular expressions and contextlib.
"""
# ruff: noqa: F821, SIM105

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Callable
    from typing import Any, NoReturn

# put there by published.py; an annotation assigns nothing
source: str
setup: types.CodeType | None
prepared: dict[str, Any] | None
harness: types.CodeType | None
tests: list[str]
limits: dict[str, float]

BASE_DEPTH = 2  # recursion depth at which a fresh `python -c` executes its program
KEPT = ("tests_evaluated", "tests_passed", "tests_total", "test_errors")
CLIP = 300
SPAN = 2.0  # seconds: where cores are short, a program that computes may well get nothing for a shorter time
LATE, LOOK = 0.1, 0.05  # seconds: how late an alarm may come to a program asleep; from one such alarm to the next
CALM = 4  # alarms in a row that have to find it asleep
LOADING, LOADED, TESTED = b"\1", b"\2", b"\3"
alarms: list[float] = []  # when the alarm rang: where a test swallows it, the tests end like any others


def deadline(
    limit: tuple[float, float],
    act: Callable[[], object],
    now: Callable[[], float] = time.monotonic,
    cpu: Callable[[], float] = time.process_time,
    set_timer: Callable[[int, float], object] = signal.setitimer,
) -> None:
    """Call `act` after `limit` seconds of wall time, unless the program has been computing without pause and merely
    did not get the processor: then after `limits[1]` seconds of CPU time, or `stretch` times that of wall time.

    One that used next to nothing is asleep only if the alarm then finds it at once, CALM times in a row: to a program that
    gets no core at all the alarm comes late, as everything does.
    """
    wall_limit, cpu_limit = limit
    start_wall, start_cpu = now(), cpu()
    last = [start_wall, start_cpu]  # where the span began over which its use of the processor is looked at
    rung = [start_wall, start_cpu]  # the same at the last alarm
    due, calm = start_wall, 0  # when the next alarm is due; how many in a row found it asleep

    def arm(seconds: float) -> None:
        nonlocal due
        due = now() + seconds
        set_timer(signal.ITIMER_REAL, seconds)

    def ring(signum: int, frame: object) -> None:
        nonlocal calm
        wall, used = now(), cpu()
        span = wall - last[0]
        idle = span >= SPAN and used - last[1] <= limits["idle"] * span
        still = idle and wall - due < LATE and used - rung[1] <= limits["idle"] * (wall - rung[0])
        calm = calm + 1 if still else 0
        rung[:] = wall, used
        if span >= SPAN and not idle:
            last[:] = wall, used
        left = cpu_limit - (used - start_cpu)
        if calm >= CALM or left <= 0.02 * cpu_limit or wall - start_wall >= limits["stretch"] * cpu_limit:
            act()
        else:
            arm(LOOK if idle else max(0.2, left))

    signal.signal(signal.SIGALRM, ring)
    arm(wall_limit)


def time_out() -> NoReturn:
    """The alarm: an ordinary Exception, which the program may swallow."""
    alarms.append(time.monotonic())
    deadline((limits["grace"], limits["grace"]), end)
    raise type("TimeoutException", (Exception,), {})("Execution timed out")


def end(leave: Callable[[int], object] = os._exit) -> None:
    leave(int(limits["killed"]))


def system(command: object, write: Callable[[int, bytes], int] = os.write) -> int:
    """os.system without a process: it is taken to have printed something."""
    write(1, b"[os.system]")
    return 0


def progress(stage: bytes, write: Callable[[int, bytes, int], int] = os.pwrite) -> None:
    if "note" in limits and (harness is not None or stage == TESTED):
        try:
            write(int(limits["note"]), stage, 0)
        except OSError:  # the program closed it: no note, and nothing that the original would see
            pass


def execute() -> None:
    # At module level in the original: here some frames deeper, which the recursion limit makes up for.
    try:
        sys.setrecursionlimit(1)
    except RecursionError as error:
        depth = str(error).partition("depth ")[2].partition(":")[0]
        sys.setrecursionlimit(1000 + int(depth) - BASE_DEPTH)
    if "\0" in source:  # what Pythons from 3.11.4 on make of it; older ones raise ValueError, which is another verdict
        raise SyntaxError("source code string cannot contain null bytes")
    program = compile(source, "<string>", "exec", dont_inherit=True)
    namespace: dict[str, Any] = {} if prepared is None else prepared
    if setup is not None:
        exec(setup, namespace)
    progress(LOADING)
    exec(program, namespace)
    progress(LOADED)
    if harness is not None:
        namespace["test_cases"] = tests
        exec(harness, namespace)
    if not alarms:
        progress(TESTED)


def last_result(content: str) -> dict[str, Any] | None:
    """The last line of the program's output that is a JSON object, cut to the fields that are read; or None."""
    for line in reversed(content.strip().split("\n")):
        line = line.strip()
        if line.startswith("{") and line.endswith("}"):
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            kept = {key: found[key] for key in found if key in KEPT}
            if "test_errors" in kept:
                kept["test_errors"] = str(kept["test_errors"])[:CLIP]
            return kept
    return None


def report() -> str:
    """The result line of the job. Raises what the original would die of: SystemExit, an exception without a text."""
    output: dict[str, Any] = {"success": True, "compiled": True, "timeout": False, "oom": False, "stdout": {}}
    printed, real = io.StringIO(), sys.stdout
    sys.stdout = printed
    try:
        try:
            deadline((limits["wall"], limits["cpu"]), time_out)
            execute()
        finally:
            sys.stdout = real
        found = last_result(printed.getvalue())
        if found is None:
            output["why"] = "no result line"
        else:
            output["stdout"] = found
    except (SyntaxError, IndentationError) as error:
        output["success"] = output["compiled"] = False
        output["why"] = f"SyntaxError: {error.msg}"
    except MemoryError:
        output["success"], output["oom"] = False, True
    except Exception as error:
        output["success"] = False
        output["timeout"] = type(error).__name__ == "TimeoutException"
        output["why"] = type(error).__name__ + ": " + str(error)[:CLIP]
    return json.dumps(output)


began, clock = time.monotonic(), time.monotonic
atexit._clear()
os.system = system
sys.argv = ["-c"]
sys.modules["__main__"] = type(sys)("__main__")
try:
    sys.stdout.write(report())
except BaseException:  # no result line
    pass
# threads that outlive the program have what is left of the time, atexit functions too
rest = max(limits["grace"], limits["wall"] + limits["grace"] - (clock() - began))
deadline((rest, rest), end)
