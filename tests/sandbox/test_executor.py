"""The executor as a caller sees it: semantics of a program, limits, cleanliness between jobs, our own failures."""

from __future__ import annotations

import marshal
import os
import signal
import time

import pytest

from services.sandbox.jail import channel, scratch
from services.sandbox.jail.executor import Executor, IsolationError, Limits, landlock_present, split_frames

pytestmark = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")


@pytest.fixture(scope="module")
def executor():
    with Executor() as executor:
        yield executor


def evaluate(executor, source, expression, **more):
    """Value of one expression beside a program."""
    outcome = executor.run_calls(source, [("eval", compile(expression, "<test>", "eval"))], **more)
    assert outcome.complete, outcome
    return channel.decode(outcome.frames[2][1])


def test_a_script_is_a_fresh_interpreter_in_an_empty_namespace(executor):
    source = (
        "import sys, os\nprint(__name__, sorted(globals()), sys.stdin.read() == '', sys.getrecursionlimit(),"
        " dict(os.environ), os.listdir('.'))"
    )
    outcome = executor.run_script(source)
    assert outcome.stdout == b"builtins ['__builtins__', 'os', 'sys'] True 1000 {} []\n"
    assert (outcome.ended, outcome.exit_code, outcome.complete, outcome.stderr) == ("exit", 0, True, b"")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("x = ", 1),
        ("import os; os._exit(9)", 9),
    ],
)
def test_exit_codes(executor, source, code):
    outcome = executor.run_script(source)
    assert (outcome.ended, outcome.exit_code) == ("exit", code)


def test_end_of_a_script_joins_threads_runs_atexit_and_flushes(executor):
    source = (
        "import atexit, threading, time\natexit.register(print, 'atexit', end='')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\nprint('main')"
    )
    assert executor.run_script(source).stdout == b"main\nthread\natexit"


def test_traceback_goes_to_stderr_and_alarm_works(executor):
    assert b"ZeroDivisionError" in executor.run_script("1/0").stderr
    source = (
        "import signal, time\ndef ring(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, ring)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntry: time.sleep(9)\nexcept TimeoutError: print('rang')"
    )
    assert executor.run_script(source).stdout == b"rang\n"


def test_namespace_and_code_object(executor):
    code = compile("print(TEXT, N)", "<harness>", "exec")
    assert executor.run_script(code, namespace={"TEXT": "a\ud800", "N": 3}).stdout == b"a\\ud800 3\n"


@pytest.mark.parametrize(
    ("source", "limits", "ended"),
    [
        ("while True: pass", Limits(wall_s=0.3), "timeout"),
        ("import time; time.sleep(60)", Limits(wall_s=0.3), "timeout"),
        ("while True: pass", Limits(wall_s=20, cpu_s=1), "cpu"),
        ("while True: print('x' * 10000)", Limits(output_bytes=10_000), "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 10000)", Limits(output_bytes=10_000), "output"),
        ("import os\nos.kill(os.getpid(), 11)", Limits(), "signal"),
        ("b = bytearray(300 << 20)", Limits(memory_mb=100), "exit"),
    ],
)
def test_limits(executor, source, limits, ended):
    outcome = executor.run_script(source, limits)
    assert outcome.ended == ended
    assert not (outcome.complete and outcome.exit_code == 0)


def test_output_up_to_the_limit_arrives_whole(executor):
    outcome = executor.run_script("print('x' * 999_999)", Limits(output_bytes=1_000_000))
    assert (len(outcome.stdout), outcome.ended) == (1_000_000, "exit")


def test_quiet_limit_counts_from_the_last_answer(executor):
    steps = [("eval", compile("time.sleep(0.2)", "", "eval"))] * 4
    outcome = executor.run_calls("import time", steps, limits=Limits(wall_s=9, quiet_s=0.5))
    assert outcome.complete
    outcome = executor.run_calls(
        "import time", [("eval", compile("time.sleep(5)", "", "eval"))], limits=Limits(wall_s=9, quiet_s=0.3)
    )
    assert outcome.ended == "timeout" and outcome.wall_s < 3


@pytest.mark.parametrize("seconds", [0.25, 0.3, 0.37])
def test_a_job_that_computed_past_the_sleepers_limit_and_ended_is_no_sleeper(executor, seconds):
    """Its clock is gone with it: what the clock then says is not that it slept."""
    source = f"import time\nwhile time.process_time() < {seconds}: pass"
    for _ in range(5):
        assert executor.run_script(source, Limits(wall_s=5, asleep_s=0.2)).ended == "exit"
    assert executor.run_script("import time; time.sleep(9)", Limits(wall_s=5, asleep_s=0.2)).ended == "timeout"


@pytest.mark.parametrize(
    ("sleeps", "late_s", "limits"),
    [
        ([0.2], 0.9, Limits(wall_s=0.6)),  # ended long ago
        ([0.2], 0.9, Limits(wall_s=5, asleep_s=0.6)),
        ([0.2], 0.9, Limits(wall_s=5, quiet_s=0.6)),
        ([0.2, 0.2, 0.2, 0.4], 0.7, Limits(wall_s=5, quiet_s=0.6)),  # still runs, and its answers wait in the pipe
    ],
)
def test_a_job_is_not_late_because_its_supervisor_was(executor, sleeps, late_s, limits):
    steps = [("eval", compile(f"time.sleep({s})", "", "eval")) for s in sleeps]
    held = []

    def on_frame(tag, body):
        if not held:  # no core for the supervisor from here on
            held.append(time.sleep(late_s))

    outcome = executor.run_calls("import time", steps, limits=limits, on_frame=on_frame)
    assert outcome.complete, outcome


def test_disk_without_the_outer_tmpfs():
    with Executor(outer=False) as executor:
        source = "i = 0\nwhile True:\n    open(str(i), 'wb').write(bytes(1 << 20)); i += 1"
        outcome = executor.run_script(source, Limits(wall_s=10, scratch_mb=32))
        assert outcome.ended == "disk"
        assert os.listdir(executor._scratch) == []


def test_one_job_leaves_nothing_for_the_next(executor):
    executor.run_script(
        "import os, sys, builtins\nbuiltins.len = 3\nos.environ['A'] = 'b'\nos.mkdir('d')\n"
        "open('d/f', 'w').write('x')\nsys.modules['json'] = None\nos.umask(0o777)"
    )
    look = "import os, json\nprint(len([1]), os.listdir('.'), dict(os.environ))"
    assert executor.run_script(look).stdout == b"1 [] {}\n"


def test_setup_kept_by_the_server_is_each_jobs_own(executor):
    setup = marshal.dumps(compile("STATE = []\ndef helper(): return STATE", "<setup>", "exec"))
    for _ in range(2):
        assert evaluate(executor, "STATE.append(1)", "helper()", setup=setup, keep_setup=True) == [1]
    override = "class Node: pass\ndef helper(): return 'mine'"
    assert evaluate(executor, override, "helper()", setup=setup, keep_setup=True) == "mine"


def test_broken_setup_is_reported_by_the_job(executor):
    setup = marshal.dumps(compile("1 / 0", "<setup>", "exec"))
    assert not executor.run_calls("", [], setup=setup, keep_setup=True).complete


def test_hash_seed_is_the_servers():
    order = "print([s for s in {'alpha', 'beta', 'gamma', 'delta', 'epsilon'}])"
    outputs = set()
    for _ in range(2):
        with Executor(hash_seed=7) as executor:
            outputs |= {executor.run_script(order).stdout for _ in range(2)}
    assert len(outputs) == 1
    with Executor(hash_seed=7) as executor:
        assert executor.run_script("import os; print(dict(os.environ))").stdout == b"{}\n"


def test_a_fork_server_killed_under_its_outer_half_is_replaced():
    """The outer half then ends too, and takes the scratch away: as after an out-of-memory kill."""
    with Executor() as executor:
        if executor.layers["outer wall"]:
            pytest.skip(f"no outer wall here: {executor.layers['outer wall']}")
        for times in (1, 2):
            with open(f"/proc/{executor.pid}/task/{executor.pid}/children") as file:
                os.kill(int(file.read().split()[0]), signal.SIGKILL)
            os.waitid(os.P_PID, executor.pid, os.WEXITED | os.WNOWAIT)
            assert not os.path.exists(executor._scratch)
            assert executor.run_script("open('x', 'w'); print(1)").stdout == b"1\n" and executor.replaced == times
        last = executor._scratch
    assert not os.path.exists(last)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_fork_server_is_replaced(number):
    with Executor(outer=False) as executor:
        executor._control.settimeout(1)
        os.kill(executor.pid, number)
        assert executor.run_script("print(1)").stdout == b"1\n"
        assert executor.replaced == 1


def test_an_exception_in_the_callers_callback_does_not_poison_the_next_job(executor):
    def callback(tag, body):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        executor.run_calls("", [("eval", compile("1", "", "eval"))], on_frame=callback)
    assert evaluate(executor, "x = 5", "x") == 5


def test_required_isolation_refuses_and_best_effort_goes_without():
    with pytest.raises(IsolationError, match="landlock"):
        Executor(switch_off=("landlock",))
    with pytest.raises(IsolationError, match="seccomp"):
        Executor(switch_off=("seccomp",))
    with Executor(isolation="best_effort", switch_off=("landlock", "seccomp")) as executor:
        assert executor.layers["landlock"] and executor.layers["seccomp"]
        assert executor.run_script("print(1)").stdout == b"1\n"


def test_no_descriptor_and_no_process_leaks(executor):
    before = len(os.listdir("/proc/self/fd"))
    for source in ("print(1)", "while True: print('x' * 9999)", "import os; os._exit(70)", "import os; os.close(3)"):
        for _ in range(5):
            executor.run_script(source, Limits(output_bytes=10_000))
    assert len(os.listdir("/proc/self/fd")) == before


def test_frames_are_split_and_a_torn_one_is_left():
    whole = (2).to_bytes(4, "little") + b"Va"
    assert split_frames(bytearray(whole + whole[:5])) == ([("V", b"a")], 6)
    assert split_frames(bytearray(4)) == ([], 0)


def emptied(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        scratch.empty(fd)
    finally:
        os.close(fd)


def test_scratch_is_emptied_whatever_is_in_it(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("keep")
    top = tmp_path / "top"
    deep = top
    top.mkdir()
    for _ in range(200):
        deep = deep / "d"
        deep.mkdir()
    (top / "link").symlink_to(tmp_path)
    os.mkfifo(top / "fifo")
    (top / "-rf").write_text("")
    (top / os.fsdecode(b"bad\xff\n")).write_text("")
    locked = top / "locked"
    (locked / "inner").mkdir(parents=True)
    (locked / "inner" / "f").write_text("")
    (locked / "inner").chmod(0)
    locked.chmod(0)
    emptied(top)
    assert os.listdir(top) == [] and outside.read_text() == "keep"


def test_scratch_size_is_measured(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(bytes(100_000))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert scratch.too_big(fd, 50_000, 10) and scratch.too_big(fd, 10**9, 1)
        assert not scratch.too_big(fd, 10**9, 10)
    finally:
        os.close(fd)


def test_a_scratch_that_cannot_be_emptied_replaces_the_jail_and_keeps_the_verdict(monkeypatch):
    with Executor() as executor:

        def fails(_top):
            raise NotADirectoryError("'a' -> '.up-7-1'")

        with monkeypatch.context() as patch:
            patch.setattr(scratch, "empty", fails)
            assert executor.run_script("open('left', 'w').close(); print(1)").stdout == b"1\n"
        assert executor.run_script("import os; print(os.listdir('.'))").stdout == b"[]\n"
        assert executor.replaced == 1


def test_foreseen_names_of_the_cleaner_do_not_stop_it(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    for serial in range(20):
        (tmp_path / f".up-{os.getpid()}-{serial}").write_text("")
    emptied(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
@pytest.mark.parametrize("command", [6, 7, 37, 38, 1024])
def test_no_lock_outlives_a_job(command):
    lock = f"import fcntl, struct; fcntl.fcntl(0, {command}, struct.pack('hhqqi', 1, 0, 7, 1, 0))"
    with Executor() as executor:
        assert b"PermissionError" in executor.run_script(lock).stderr
