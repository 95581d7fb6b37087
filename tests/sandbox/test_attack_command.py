"""`python -m services.sandbox attack` against graders of others: naive ones, strict ones, and commands that are none."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from common.errors import ConfigError
from services.sandbox import attack_cli
from services.sandbox.attack_programs import FORGERS, PLAIN, RIGHT, WRONG
from services.sandbox.jail.executor import landlock_present

ROOT = Path(__file__).resolve().parents[2]
NAIVE = """
import subprocess, sys
# env: nothing of the tests' own measuring in the program, which an honest one that closes descriptors would trip over
code = open(sys.argv[1]).read() + "\\n" + open(sys.argv[2]).read()
sys.exit(subprocess.run([sys.executable, "-c", code], capture_output=True, env={}).returncode)
"""
ORACLE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from services.sandbox.verdicts.oracle import Oracle
with Oracle() as oracle:
    for line in [open(sys.argv[1]).read()]:
        verdict = oracle.grade(line, open(sys.argv[2]).read().splitlines(), method="addTwo")
        print("verdict", verdict.correct)
"""


def attack(tmp_path, script, *more, name="grader"):
    (tmp_path / f"{name}.py").write_text(script)
    return attack_cli.main(["--command", f"{sys.executable} {tmp_path}/{name}.py {{program}} {{tests}}", *more])


def test_a_grader_that_runs_program_and_tests_together_pays_the_known_tricks(tmp_path, capsys):
    assert attack(tmp_path, NAIVE, "--out", str(tmp_path / "all.jsonl")) == 1
    said = capsys.readouterr().out
    for name in ("exit_zero_at_import", "system_exit_in_call", "always_equal", "mock_anything", "only_in_main_guard"):
        assert f"accepts {name} " in said
    assert "takes an exit code of 0 for passed tests" in said and said.splitlines()[-1].endswith("honest ones refused")
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {row["program"] for row in rows} == {*FORGERS, *PLAIN}
    assert f"{sum(row['accepted'] and not row['right'] for row in rows)} of {len(FORGERS)} attack programs" in said
    assert all(row["accepted"] for row in rows if row["right"])


@pytest.mark.slow
@pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
def test_our_own_oracle_pays_none_and_refuses_no_honest_one(tmp_path, capsys):
    assert attack(tmp_path, ORACLE, "--accepts", "verdict True") == 0
    assert f"0 of {len(FORGERS)} attack programs are accepted, 0 of {len(PLAIN)} honest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(0)", "plainly wrong"),
        ("raise SystemExit(1)", "refuses a right program"),
        ("import time; time.sleep(99)", "refuses a right program"),
    ],
)
def test_a_command_that_is_no_grader_is_told_so_and_nothing_else_is_run(tmp_path, script, said):
    with pytest.raises(ConfigError, match=said):
        attack(tmp_path, f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); {script}", "--timeout", "2")
    assert len((tmp_path / "runs").read_text()) <= 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--command", "cat {program}"], "name both files"),
        (["--command", "/no/such/grader {program} {tests}"], "does not start: No such file"),
        (["--command", "cat '{program} {tests}"], "quote it"),
        (["--command", "cat {program} {tests}", "--accepts", "("], "regular expression"),
    ],
)
def test_a_command_line_at_fault_is_one_line(argv, said):
    with pytest.raises(ConfigError, match=said):
        attack_cli.main(argv)


def test_what_is_run_outside_a_jail_ends_and_fills_nothing():
    """FORGERS are there, wrong, explained, and none sends signals, opens sockets, starts processes or fills memory."""
    assert set(FORGERS) <= set(WRONG) and set(PLAIN) <= set(RIGHT) and all(FORGERS.values())
    for name in (*FORGERS, *PLAIN):
        program = (WRONG | RIGHT)[name]
        for word in (
            "kill",
            "fork",
            "spawn",
            "socket",
            "ctypes",
            "ptrace",
            "mkdir",
            "open(",
            "1 << 2",
            "while True",
            "os.write",
        ):
            assert word not in program, f"{name} holds {word}"


def test_nothing_that_a_grader_started_outlives_its_turn(tmp_path):
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
{NAIVE}"""
    grader = attack_cli.Grader([sys.executable, "-c", script, "{program}", "{tests}"], None, 20.0)
    started = time.monotonic()
    assert grader.pays(RIGHT["plain"])  # though its child still holds the output open
    assert time.monotonic() - started < 15
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):  # a killed process takes a moment
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_a_place_that_takes_no_file_is_told_before_anything_is_run(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory; give a file that can be written"):
        attack(tmp_path, f"open({str(tmp_path / 'runs')!r}, 'a').write('x')", "--out", str(tmp_path))
    assert not (tmp_path / "runs").exists()
