"""One process at a time in a folder."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from experiments.launch import run
from experiments.launch.dirlock import hold
from experiments.launch.stack import Stack

HOLDER = """
import sys
from pathlib import Path
from experiments.launch.dirlock import hold
file = hold(Path(sys.argv[1]), "x")
print("mine", flush=True)
input()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_has_it_and_a_killed_one_leaves_nothing(tmp_path, other):
    with pytest.raises(ConfigError, match=f"process {other.pid} is at work there"):
        hold(tmp_path, "run")
    other.kill()
    other.wait()
    hold(tmp_path, "run").close()
    hold(tmp_path, "run").close()


def test_services_are_not_started_twice_in_one_folder(tmp_path, other):
    with pytest.raises(ConfigError, match=r"services in .* is at work there"):
        Stack.start(tmp_path, "no model", graders=0)
    assert not (tmp_path / "redis").exists(), "refused before anything is touched"


def test_a_run_is_not_trained_twice_whatever_its_services(tmp_path, other):
    with pytest.raises(ConfigError, match=r"run .* is at work there"):
        run.train(SimpleNamespace(run_dir=tmp_path), "smoke")
    assert not (tmp_path / "trainer.json").exists()
