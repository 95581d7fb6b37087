"""What is not the program's fault is never its verdict: kills from outside, a dead judge, tests and setup code at fault."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.types import Problem
from services.sandbox.jail.executor import Executor, Limits, Outcome, SandboxError, landlock_present
from services.sandbox.verdicts import oracle as oracle_module
from services.sandbox.verdicts.grade import grade_completion
from services.sandbox.verdicts.oracle import Oracle

pytestmark = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
RIGHT = "def f(x): return x + 1\n"


@pytest.fixture
def oracle():
    with Oracle() as oracle:
        yield oracle


def killed_from_outside(executor: Executor, number: int, times: int) -> list[int]:
    """From now on, the first jobs of the executor get a signal from us 50 ms after their start."""
    sent: list[int] = []
    launch = executor._launch

    def launch_and_kill(fds, spec):
        pidfd = launch(fds, spec)
        if len(sent) < times and pidfd is not None:
            sent.append(number)
            mine = os.dup(pidfd)

            def kill():
                time.sleep(0.05)
                signal.pidfd_send_signal(mine, number)
                os.close(mine)

            threading.Thread(target=kill).start()
        return pidfd

    executor._launch = launch_and_kill
    return sent


SLOW = "import time\ndef f(x):\n    time.sleep(0.15)\n    return x + 1\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_from_outside_is_not_the_programs_fault(oracle, number):
    sent = killed_from_outside(oracle.executor, number, times=1)
    verdict = oracle.grade(SLOW, ["assert f(1) == 2", "assert sorted([f(2)]) == [3]"], "", "f")
    assert sent and verdict.correct, verdict


def test_a_kill_from_outside_changes_no_script(oracle):
    sent = killed_from_outside(oracle.executor, signal.SIGKILL, times=1)
    outcome = oracle.executor.run_script("import time; print('a'); time.sleep(0.15); print('b')")
    assert sent and outcome.ended == "exit" and outcome.stdout == b"a\nb\n"


@pytest.mark.parametrize("way", ["os.kill(os.getpid(), 9)", "os._exit(70)", "signal.raise_signal(15)"])
def test_a_program_that_kills_itself_is_wrong(oracle, way):
    verdict = oracle.grade(f"import os, signal\ndef f(x): {way}\n", ["assert f(1) == 2"], "", "f")
    assert verdict.correct is False


def test_killing_itself_late_gains_no_second_life(oracle):
    program = "import os, time\ndef f(x):\n    time.sleep(4)\n    os.kill(os.getpid(), 9)\n"
    started = time.monotonic()
    assert not oracle.grade(program, ["assert f(1) == 2"], "", "f").correct
    assert time.monotonic() - started < 30  # twice 4 s and 3.5 s of own time; the rest is a busy machine


JUDGED = ["assert sorted(f([2, 1])) == [1, 2]"]


def test_a_judge_killed_from_outside_is_asked_again(oracle):
    assert oracle.grade("def f(x): return x\n", JUDGED, "", "f").correct
    os.kill(oracle._judge.pid, signal.SIGKILL)
    assert oracle.grade("def f(x): return x\n", JUDGED, "", "f").correct
    sent = killed_from_outside(oracle._judge, signal.SIGKILL, times=1)
    slow = ["assert f(2) - sum(range(20_000_000)) < 0"]
    assert oracle.grade("def f(x): return x\n", slow, "", "f").correct and sent


@pytest.mark.parametrize("ended", ["timeout", "signal", "cpu", "server"])
def test_a_judge_that_can_do_nothing_is_our_fault(oracle, monkeypatch, ended):
    monkeypatch.setattr(oracle, "judge", lambda *_: Outcome(ended, signal=9 if ended == "signal" else None))
    with pytest.raises(SandboxError, match="judge"):
        oracle.grade("def f(x): return x\n", JUDGED, "", "f")


def test_an_answer_that_ends_the_judge_is_wrong_and_a_test_that_does_so_is_no_verdict(oracle, monkeypatch):
    monkeypatch.setattr(oracle_module, "default_limits", lambda _: Limits(wall_s=1.0, cpu_s=1))
    bomb = "def f(x): return (1 << 60_000_000) - 1\n"
    assert not oracle.grade(bomb, ["assert f(4) ** 2 == 16"], "", "f").correct
    with pytest.raises(ConfigError, match="cannot be judged"):
        oracle.grade("def f(x): return x\n", ["assert f(1) - sum(range(10**11)) == 0"], "", "f")
    with pytest.raises(ConfigError, match="expected value ends the judge"):
        oracle.grade("def f(x): return x\n", ["assert f(1) == sum(range(10**11))"], "", "f")


@pytest.mark.parametrize(
    ("test", "setup", "words"),
    [
        ("assert f(1) == 1 / 0", "", "ZeroDivisionError"),
        ("assert f(1) == [0] * 10**12", "", "MemoryError"),
        ("assert f(1) == 2", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("assert f(1) == 2", "x = {}['key']", "KeyError"),
        ("assert f(1) == 2", "def (", "parse"),
        ("assert f(1) = 2", "", "parse"),
    ],
)
def test_a_row_at_fault_is_no_verdict_and_says_why(oracle, test, setup, words):
    with pytest.raises(ConfigError, match=words):
        oracle.grade(RIGHT, [test], setup, "f")
    problem = Problem(
        id=1, prompt=[{"role": "user", "content": "x"}], gt_answer=[test], func_name="f", setup_code=setup
    )
    grade = grade_completion(problem, f"```python\n{RIGHT}```", oracle)
    assert grade.status == "infra_error" and words in grade.reason and grade.reward is None


def test_setup_code_that_hangs_is_no_verdict(oracle):
    with pytest.raises(ConfigError, match="setup code fails"):
        oracle.grade(RIGHT, ["assert f(1) == 2"], "while True: pass", "f", Limits(wall_s=1, cpu_s=1))


def test_no_mark_on_its_directory_reaches_the_next_job():
    mark = (
        "import os\nbefore = sorted(os.listdir('.')) + sorted(os.listdir('..'))[1:]\n"
        "print(before, os.path.basename(os.getcwd()))\n"
        "for d in ('.', '..'):\n    os.mkdir(d + '/left'); open(d + '/file', 'w').write('x')\n"
    )
    with Executor() as executor:
        first, second = (executor.run_script(mark).stdout.decode() for _ in range(2))
        assert os.listdir(executor._scratch_fd) == []
    assert first.startswith("[] ") and second.startswith("[] ") and first != second


def test_a_shared_folder_is_no_part_of_a_jobs_own(tmp_path):
    with Executor(scratch_dir=str(tmp_path)) as executor:
        assert executor.run_script("open('x', 'w').write('1'); print(open('x').read())").stdout == b"1\n"
        assert list(Path(tmp_path).rglob("x")) == []
