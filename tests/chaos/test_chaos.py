"""The fault suite in its CI form: every fault once on real runs; and load. `make chaos FAULTS=200` is the nightly form."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(module, *arguments, limit):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit
    )
    print(done.stdout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_faults_lose_nothing_and_change_no_bit():
    assert "none lost or doubled a group" in run("tests.chaos", "--faults", "24", limit=2300)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_faults_lose_nothing_where_no_step_repeats_its_bits():
    """The presets for GPUs: five steps lost at a kill, groups of the former process at hand, other weights each time."""
    kills = "kill_trainer,kill_trainer_optimised,kill_trainer_pushed,kill_generator_at_work,kill_redis"
    arguments = ("--faults", "10", "--like-gpu", "--only", kills)
    assert "none lost or doubled a group" in run("tests.chaos", *arguments, limit=1400)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_groups_leave_memory_level():
    run("tests.chaos.load", "--groups", "10000", limit=1700)
