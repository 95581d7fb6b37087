"""Whatever a program does, its completion is graded within 8 s of wall time on free cores, and nothing is left of it."""

from __future__ import annotations

import time

import pytest

from services.sandbox.jail import watch
from services.sandbox.jail.owntime import OwnTime
from services.sandbox.verdicts import beside as beside_module
from services.sandbox.verdicts.beside import Beside
from services.sandbox.verdicts.grade import grade_completion
from services.sandbox.verdicts.oracle import Oracle
from tests.sandbox.test_attacks import descendants
from tests.sandbox.test_grade import GOOD, fenced, problem

BOUND_S = 8.0
IN_F = "class Solution:\n    def f(self, x):\n        {}\n        return x + 1"
TESTS = "\n\ndef run_tests():\n    assert Solution().f(1) == 2"
LOOP = "while True: pass"
STUBBORN = "import signal\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\n"

PROGRAMS = {
    "loops_at_load": f"{GOOD}\n{LOOP}",
    "loops_at_load_unrecognised": f"import sys\n{GOOD}{TESTS}\n{LOOP}",
    "loops_in_every_program": f"{IN_F.format(LOOP)}\n\ndef run_tests():\n    {LOOP}",
    "sleeps_at_load": f"import time\ntime.sleep(99)\n{GOOD}",
    "sleeps_in_every_program": f"import time\n{IN_F.format('time.sleep(99)')}\n\n"
    "def run_tests():\n    import time; time.sleep(99)",
    "sleeps_and_computes": f"import time\nwhile True:\n    sum(range(10**6)); time.sleep(0.02)\n{GOOD}",
    "just_within_its_time": f"import time\n{IN_F.format('time.sleep(1.4)')}{TESTS}",
    "swallows_the_alarm": f"{GOOD}\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores_signals": f"{STUBBORN}{LOOP}\n{GOOD}",
    "ignores_signals_and_sleeps": f"{STUBBORN}import time\nwhile True: time.sleep(1)\n{GOOD}",
    "cancels_the_alarm_and_sleeps": f"import signal, time\nsignal.alarm(0)\ntime.sleep(99)\n{GOOD}",
    "stops_itself": f"import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n{GOOD}",
    "one_long_call": IN_F.format("sum(range(10**13))") + TESTS,
    "raises_its_limits": "import resource\nfor n in range(16):\n    try: resource.setrlimit(n, (-1, -1))\n"
    f"    except (ValueError, OSError): pass\n{LOOP}",
    "fork_bomb": f"import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n{GOOD}",
    "thread_bomb": f"import threading\n{GOOD}\ndef run(): sum(range(10**13))\n"
    "while True:\n    try: threading.Thread(target=run).start()\n    except Exception: pass",
    "output_flood": f"import os\n{GOOD}\nwhile True: os.write(1, b'x' * 65536)",
    "result_flood": f"import os\n{GOOD}\nwhile True: os.write(3, b'x' * 65536)",
    "error_flood": f"import sys\n{GOOD}\nwhile True: print('x' * 65536, file=sys.__stderr__)",
    "disk_flood": f"{GOOD}\nn = 0\nwhile True:\n    n += 1\n    open(str(n), 'w').write('x' * 65536)",
    "memory_bomb": f"{GOOD}\nx = ['x']\nwhile True:\n    try: x += x\n    except MemoryError: pass",
    "loops_at_exit": f"import atexit\ndef run():\n    {LOOP}\natexit.register(run)\n{GOOD}",
    "leaves_a_thread": f"import threading\ndef run():\n    {LOOP}\nthreading.Thread(target=run).start()\n{GOOD}",
    "loops_in_a_finaliser": f"class A:\n    def __del__(self):\n        {LOOP}\na = A()\ndel a\n{GOOD}",
    "a_million_answers": IN_F.format("return list(range(10**6))") + TESTS,
    "catastrophic_expression": f"import re\n{GOOD}\nre.match('(a*)*b', 'a' * 40)",
    "long_source": f"{GOOD}\n" + "x = [1, 2, 3]\n" * 60_000,
}


@pytest.fixture(scope="module")
def graders():
    with Oracle(isolation="best_effort") as jail:
        beside = Beside(6, cores=16, isolation="best_effort")
        yield jail, beside
        beside.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_completion_takes_longer(graders, monkeypatch, name):
    """Time that its programs waited for a core is not the completion's; on free cores there is none, and what `gt` may make
    superfluous begins early."""
    clocks: list[OwnTime] = []

    class Kept(OwnTime):
        def __init__(self, pidfd: int) -> None:
            super().__init__(pidfd)
            clocks.append(self)

    monkeypatch.setattr(watch, "OwnTime", Kept)
    monkeypatch.setattr(beside_module, "SHORT", 2.0)
    jail, beside = graders
    before = descendants()
    grade = grade_completion(problem(), fenced(PROGRAMS[name]), jail, beside=beside)
    waited = sum(clock.waited_s() for clock in clocks)
    assert grade.status == "graded", grade.reason
    assert grade.wall_s - waited <= BOUND_S, f"{grade.wall_s:.1f} s, of which {waited:.1f} s without a core"
    deadline = time.monotonic() + 10
    while len(descendants()) > len(before) and time.monotonic() < deadline:
        beside.executors.reap(idle_s=0.0)  # a helper gives its fork server back a moment after the last result
        time.sleep(0.05)
    assert len(descendants()) <= len(before), "a process outlived its program"
