"""One program of the published evaluation through the real jail: what it may do, how deep, how long.

Programs run with time limits of 3 s in the product; the few that must hit one are marked slow or use a sleep.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from published_rows import GT, SETUP, said

from services.sandbox.jail.watch import STARVED
from services.sandbox.verdicts import published
from services.sandbox.verdicts.published import Program, run_program
from services.sandbox.verdicts.published_input import for_job, whole_text


def run(runner, source, tests=("pass",), setup=SETUP):
    return run_program(runner, Program(source, tuple(tests)), setup)


# ---- one program ----


@pytest.mark.parametrize(
    ("source", "tests", "expected"),
    [
        ("x = 1", ["assert x == 1", "assert x == 1"], (True, 2)),
        ("x = 1", ["assert x == 1", "assert x == 2", "assert x == 1"], (True, 1)),  # a prefix, not a fraction
        ("x = 1", [], (True, 0)),
        ("def f(): return False", ["f()"], (True, 1)),  # return values are ignored
        ("x = 1", ["global x\nx += 1", "assert x == 2"], (True, 2)),  # tests share their state
        ("x = 1", ["raise SystemExit(0)"], (True, 0)),
        ("x = 1", ["x = = 1"], (True, 0)),
        ("x = 1", ["raise KeyboardInterrupt"], (True, 0)),
        ("x = 1", ["raise MemoryError"], (True, 0)),
        ("x = (", ["pass"], (False, 0)),
        ("x = 1\n  y = 2", ["pass"], (False, 0)),
        ("def f():", ["pass"], (False, 0)),  # the harness must not become its body
        ("@staticmethod", ["pass"], (False, 0)),
        ("x = '''", ["pass"], (False, 0)),
        ("return 1", ["pass"], (False, 0)),
        ("from __future__ import annotations", ["pass"], (False, 0)),  # late: setup code comes first
        ("eval('1 +')", ["pass"], (False, 0)),  # a SyntaxError at run time
        ("raise IndentationError('x')", ["pass"], (False, 0)),
        ("x = 1\x00", ["pass"], (False, 0)),
        ("raise NameError('x')", ["pass"], (True, 0)),
        ("import no_such_module", ["pass"], (True, 0)),
        ("input()", ["pass"], (True, 0)),  # EOFError
        ("raise MemoryError", ["pass"], (True, 0)),
        ("x = bytearray(4 * 10**9)", ["pass"], (True, 0)),
        ("raise SystemExit(0)", ["pass"], (False, 0)),
        ("import sys; sys.exit()", ["pass"], (False, 0)),
        ("raise KeyboardInterrupt", ["pass"], (False, 0)),
        ("raise GeneratorExit", ["pass"], (False, 0)),
        ("import os; os._exit(0)", ["pass"], (False, 0)),
        ("import ctypes; ctypes.string_at(0)", ["pass"], (False, 0)),  # a segfault
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ["pass"], (False, 0)),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", ["pass"], (False, 0)),
        ("class E(Exception):\n    def __str__(self): raise self", ["raise E"], (False, 0)),
        ("class E(Exception):\n    def __str__(self): raise ValueError", ["raise E"], (True, 0)),
        ("import sys; sys.__stdout__.write('x')", ["pass"], (False, 0)),
        ("import os; os.write(1, b'x\\n')", ["pass"], (False, 0)),
        ("import os; os.write(1, b'\\n')", ["pass"], (True, 1)),  # white space does not hurt the JSON
        ("import os; os.write(1, b'\\xff')", ["pass"], (True, 0)),  # the original's reader fails before it reads JSON
        ("import os; os.system('echo')", ["pass"], (False, 0)),
        ("import atexit; atexit.register(lambda: print('bye'))", ["pass"], (False, 0)),
        ("import atexit; atexit.register(lambda: None)", ["pass"], (True, 1)),
        ("print('no newline', end='')", ["pass"], (True, 0)),  # the result line is glued to it
        ("print('no newline', end='')\nprint()", ["pass"], (True, 1)),
        ("print('{\"tests_passed\": 9}')", ["pass"], (True, 1)),  # the last result line counts
        ("print('{\"tests_passed\": 9}')\nprint('x', end='')", ["pass"], (True, 9)),
        ("print('  {\"tests_passed\": 8}  ')\nprint('x', end='')", ["pass"], (True, 8)),
        ("print('{bad}')\nprint('x', end='')", ["pass"], (True, 0)),
        ("print = lambda *a: None", ["pass"], (True, 0)),
        ("json = sys = None", ["pass"], (True, 1)),
        ("dict = list = set = isinstance = range = None", ["pass"], (True, 1)),
        ("len = None", ["pass"], (True, 0)),  # the harness uses it
        ("exec = lambda code: None", ["assert False"], (True, 1)),  # published: shadowing exec passes
        ("type = None", ["assert False"], (True, 0)),
        ("test_cases = [1]\ndef f(): return test_cases", ["assert f() == ['x'] or len(f()) == 1"], (True, 1)),
        ("assert __name__ == 'builtins'", ["pass"], (True, 1)),
        ("__file__", ["pass"], (True, 0)),
        ("import sys\nsys.stdout.buffer", ["pass"], (True, 0)),
        ("import sys\nassert sys.stdin.read() == ''", ["pass"], (True, 1)),
        ("assert 'self' not in globals() and 'code' not in globals()", ["pass"], (True, 1)),
        ("pow(2, 3, 5)", ["pass"], (True, 0)),  # math.pow by the setup's star import
        ("import sys\nsys.stderr.write('x' * 100000)", ["pass"], (True, 1)),
        ("x = 'a\rb'\nassert x == 'a\\nb'", ["pass"], (False, 0)),  # newlines are translated, also inside strings
        ("x = '''a\r\nb\rc'''\nassert x == 'a\\nb\\nc'", ["pass"], (True, 1)),
        ("x = 'é ☃'\nprint(x, '\\ud800')", ["assert len(x) == 3"], (True, 1)),
        ("import subprocess\nsubprocess.run(['true'])", ["pass"], (True, 0)),  # policy: no processes
        ("import threading\nthreading.Thread(target=lambda: None).start()", ["pass"], (True, 1)),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int = 0", ["assert A().a == 0"], (True, 1)),
    ],
)
def test_one_program(runner, source, tests, expected):
    assert said(run(runner, source, tests)) == expected


def test_a_lone_surrogate_is_not_run(runner):
    assert said(run(runner, "x = '\ud800'")) == (True, 0)


def test_forged_result_is_believed(runner):
    forged = json.dumps({"stdout": {"tests_passed": 2}})
    assert said(run(runner, f"import os\nos.write(1, {forged!r}.encode())\nos._exit(0)", GT)) == (True, 2)


def test_patched_json_reaches_the_verdict_as_in_the_original(runner):
    patch = "import json\nreal = json.dumps\njson.dumps = lambda o: real({'stdout': {'tests_passed': 2}})"
    assert said(run(runner, patch, GT)) == (True, 2)


def deepest(runner_or_python):
    program = "def down(n):\n    global deepest\n    deepest = n\n    down(n + 1)\n"
    program += "try:\n    down(0)\nexcept RecursionError:\n    pass"
    if runner_or_python is None:
        text = whole_text(program, (), "") + "\nimport os; os.write(2, str(deepest).encode())"
        done = subprocess.run([sys.executable, "-c", f"exec({text!r}, {{}})"], capture_output=True)
        return int(done.stderr)
    for guess in range(970, 1010):
        if run(runner_or_python, program, [f"assert deepest == {guess}"]).passed:
            return guess
    return None


def test_recursion_goes_exactly_as_deep_as_in_a_fresh_interpreter(runner):
    assert deepest(runner) == deepest(None)


def test_nothing_is_left_for_the_next_program(runner):
    leave = "import builtins, json, sys\nbuiltins.leak = 1\nsys.leak = 1\njson.dumps.__dict__['leak'] = 1\n"
    leave += "open('leak', 'w').write('x')"
    assert said(run(runner, leave)) == (True, 1)
    look = "import builtins, json, os, sys\nassert os.listdir('.') == []\n"
    look += "assert not any(hasattr(m, 'leak') for m in (builtins, sys, json.dumps))"
    assert said(run(runner, look)) == (True, 1)


# ---- time ----


def test_sleeping_too_long_at_module_level(runner):
    result = run(runner, "import time\ntime.sleep(30)")
    assert said(result) == (True, 0) and result.reason == "time limit"


def test_swallowing_the_alarm_passes(runner):
    source = "import time\ndef f():\n    try:\n        time.sleep(30)\n    except Exception:\n        pass"
    assert said(run(runner, source, ["f()"])) == (True, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "tests", "expected"),
    [
        ("import time", ["pass", "time.sleep(30)", "pass"], (True, 1)),
        ("while True: pass", ["pass"], (True, 0)),  # policy: the alarm wins, not the kernel's SIGKILL
        ("x = 1", ["while True: pass"], (True, 0)),
        ("import time\nwhile True:\n    try:\n        time.sleep(1)\n    except Exception: pass", ["pass"], (True, 0)),
        ("while True:\n    try:\n        while True: pass\n    except Exception: pass", ["pass"], (True, 0)),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()", ["pass"], (True, 0)),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(1,)).start()", ["pass"], (True, 1)),
        ("import threading as t, time\nt.Thread(target=time.sleep, args=[9], daemon=1).start()", ["pass"], (True, 1)),
        ("sum(range(10**13))", ["pass"], (True, 0)),  # one long C call: no alarm can end it
        # the alarm taken away: nobody in the job ends it, and it is over the limit all the same
        ("import signal, time\nsignal.alarm(0)\ntime.sleep(5)", ["pass"], (True, 0)),
        ("import signal, time\nsignal.alarm(0)\ntime.sleep(30)", ["pass"], (True, 0)),
    ],
)
def test_time_limits(runner, source, tests, expected):
    assert said(run(runner, source, tests)) == expected


def test_the_clock_is_fair_on_a_busy_machine():
    """The job's deadline against a processor that the test controls: starved is not late, asleep is."""
    names: dict = {"limits": published.LIMITS}
    exec(published.job_text().partition("\nbegan, clock")[0], names)
    acted: list[float] = []

    def live(share: float, until: float = 99.0, late: float = 0.0, late_until: float = 999.0) -> float:
        """Wall time at which a program is ended that gets `share` of a core `until` then and sleeps afterwards; its alarms
        come `late` seconds after they were due."""
        clock, timers = {"wall": 0.0, "cpu": 0.0}, []
        acted.clear()
        names["deadline"](
            (3.0, 5.0), lambda: acted.append(clock["wall"]), lambda: clock["wall"], lambda: clock["cpu"],
            lambda which, seconds: timers.append(seconds),
        )  # fmt: skip
        while not acted:
            clock["wall"] += timers.pop() + (late if clock["wall"] < late_until else 0.0)
            clock["cpu"] = share * min(clock["wall"], until)
            signal.getsignal(signal.SIGALRM)(None, None)
        return acted[0]

    before = signal.getsignal(signal.SIGALRM)
    try:
        assert live(0.0) == pytest.approx(3.15)  # asleep: wall time, and the looks that make sure
        assert live(0.02) == pytest.approx(3.15)  # hardly anything
        assert live(0.0, late=0.3) >= 150  # it gets no core at all: starved, not asleep
        assert live(0.02, late=0.15) >= 150
        assert 10 < live(0.0, late=0.3, late_until=10) < 11  # it was asleep, as is seen once there are cores again
        assert 4.9 <= live(1.0) <= 5.2  # alone on its core: CPU time
        assert 9.8 < live(0.5) < 10.5  # half a core: the same CPU time
        assert 19 < live(0.25) <= 20.5  # a quarter
        assert 98 < live(0.05) <= 102  # a twentieth
        assert 150 <= live(0.032, until=999) < 156  # and not for ever
        assert live(0.9, until=2.0) < 6.5  # computed, then slept
        outside = STARVED * published.JOB_LIMITS.wall_s  # no verdict, and before the job's own patience ends
        assert outside < published.LIMITS["stretch"] * published.LIMITS["cpu"]
    finally:
        signal.signal(signal.SIGALRM, before)


SOURCES = [
    "x = 1", "'doc'\nassert __doc__ is None", "assert '__doc__' not in globals()", "from __future__ import annotations",
    "x = (", "def f():", "if 1:", "try:\n    x = 1", "@staticmethod", "x = 1 \\", "x = '''", "else:\n    pass",
    "global inf\ninf = 2", "    x = 1", "x: int = 1\nassert __annotations__ == {'x': int}", "\ufeffx = 1", "# comment",
    "x = 1\r\ny = 2", "test_cases = 5", "result = json = None", "del math", "math", "print('x', end='')", "nonlocal x",
    "class A:\n    x = pow", "lambda: (yield)", "await x", "", "return",
]  # fmt: skip
SETUPS = [
    "", "# nothing", SETUP, "'doc'", "from __future__ import division", "x = (", "if True:\n    pass", "raise OSError",
    "pass",
]  # fmt: skip


def whole_unit(source, tests, setup_code):
    given = dict.fromkeys(("setup", "prepared", "harness", "tests"))
    return {**given, "source": whole_text(source, tests, setup_code)}, b""


def test_parts_say_the_same_as_the_one_unit_of_the_original(runner, monkeypatch):
    """Setup, program and tests compiled apart, the setup run once for all jobs, also where a program could tell."""
    tests = ["pass", "assert True", "assert False"]
    pairs = [(source, setup) for setup in SETUPS for source in SOURCES]
    apart = [said(run(runner, source, tests, setup)) for source, setup in pairs]
    assert for_job("x = 1", (), SETUP)[0]["harness"] is not None  # it was apart
    assert for_job("x = 1", (), SETUP)[1], "and its setup code run once for all jobs"
    assert not for_job("x = 1", (), "x = [f(1)]")[1]
    assert for_job("global x", (), SETUP)[0]["harness"] is None
    monkeypatch.setattr(published, "for_job", whole_unit)
    whole = [said(run(runner, source, tests, setup)) for source, setup in pairs]
    different = [(pair, a, b) for pair, a, b in zip(pairs, apart, whole, strict=True) if a != b]
    assert different == []
    assert len(set(whole)) > 2


@pytest.mark.parametrize(
    "program",
    [
        "assert x == [1] and C.seen == []\nx.append(2); C.seen.append(2)\nimport math\nmath.pi = 3",
        "assert math.pi > 3.1\nmath.pi = 3\ndel math",
        "assert sorted(k for k in locals() if k[0] != '_') == ['C', 'g', 'math', 'x']\ny = 1",
        "assert g() == [1]\nx = 7\nassert g() == 7",
        "assert '__name__' not in locals() and __name__ == 'builtins'\n__name__ = 'm'",
        "import builtins\nassert builtins.len is len\n__builtins__.pop('abs')",
    ],
)
def test_setup_code_that_is_run_once_is_each_programs_own(runner, program):
    """Whatever a program does to it, the next one finds it as it was."""
    setup = "import math\nx = [1]\nclass C:\n    seen = []\ndef g():\n    return x"
    assert for_job(program, (), setup)[1]
    for _ in range(3):
        first = run(runner, program + "\npassed = 1", ["passed"], setup)
        assert first.can_compile, first
        assert said(run(runner, program.partition("\n")[0], ["pass"], setup)) == (True, 1)


STARVED_JOB = """
import os, subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from services.sandbox.jail.executor import Executor
from services.sandbox.verdicts import published
loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
os.nice(13)  # some 2% of the core
programs = (("for i in range(2 * 10 ** 6): pass", "pass"), ("import time", "time.sleep(60)"))
try:
    with Executor() as executor:
        for source, test in programs:
            found = published.run_program(published.jailed(executor), published.Program(source, ("pass", test)), "")
            print(found.rate, found.cpu_s < 0.1 * found.wall_s)
finally:
    for loop in loops:
        loop.kill()
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_program_that_hardly_gets_a_core_is_not_asleep():
    done = subprocess.run([sys.executable, "-c", STARVED_JOB], capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines() == ["1.0 True", "0.5 True"], done.stdout + done.stderr[-2000:]
