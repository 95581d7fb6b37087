"""Each door under coverage-guided fuzzing for a while (`python -m tests.hostile.fuzz TARGET --seconds 3600` for longer)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15


def fuzz(target, *options):
    command = [sys.executable, "-m", "tests.hostile.fuzz", target, "--seconds", str(SECONDS), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS + 120)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["wire", "detector", "channel", "problems", "pairs", "settings"])
def test_no_input_breaks_a_door(target):
    done = fuzz(target)
    told = done.stderr.decode(errors="replace")
    assert done.returncode == 0, (done.stdout.decode(errors="replace") + told)[-3000:]
    found = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", told)}
    assert found["number_of_executed_units"] > 500
    assert found["new_units_added"] > 5  # coverage does guide it


@pytest.mark.slow
def test_a_fault_is_found():
    done = fuzz("trap")
    assert done.returncode != 0 and b"sprung" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_big_parents_memory_is_not_the_fuzzers():
    held = b"x" * (300 << 20)
    done = fuzz("settings", "--memory-mb", "250", "--seconds", "3")
    assert done.returncode == 0 and len(held) == 300 << 20, done.stderr.decode(errors="replace")[-2000:]
