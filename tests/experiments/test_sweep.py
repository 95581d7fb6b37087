"""Where a sweep makes its runs: one set of services, or one a card; what fails leaves its runs to the others."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from experiments.launch import stack, sweep
from experiments.launch.sweep import Place


@contextlib.contextmanager
def _sound():
    yield SimpleNamespace(access=lambda user: {}, check=lambda: None)


def _broken():
    raise ConfigError("no such card")


@pytest.fixture
def made(monkeypatch):
    """run_id -> GPUs of the trainer that made it; a run called 'bad' ends with code 2."""
    found, lock = {}, threading.Lock()

    def train(s, preset, quiet, check, gpus):
        check()
        with lock:
            found[s.run_id] = gpus
        return 2 if s.run_id == "bad" else 0

    monkeypatch.setattr(sweep, "train", train)
    return found


def _runs(*names, root=Path("nowhere")):
    return [
        SimpleNamespace(
            run_id=name, run_dir=root / name, model_copy=lambda update, name=name: SimpleNamespace(run_id=name)
        )
        for name in names
    ]


def test_every_run_once_and_failures_are_returned_with_their_reason(made, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    status = {"state": "failed", "step": 94, "steps": 150, "reason": "the bound is 1.0"}
    (tmp_path / "bad/status.json").write_text(json.dumps(status))
    failed = sweep._run_all(
        _runs("a", "bad", "c", root=tmp_path), "smoke", [Place(_sound, ["0"]), Place(_sound, ["1"])]
    )
    said = capsys.readouterr().err
    assert f"failed: bad after 94 of 150 steps: the bound is 1.0; see {tmp_path}/bad/trainer.log" in said
    assert sweep.failure(_runs("killed")[0]) == "failed: killed; see nowhere/killed/trainer.log"
    assert [s.run_id for s in failed] == ["bad"]
    assert set(made) == {"a", "bad", "c"} and {g for (g,) in made.values()} <= {"0", "1"}


def test_a_card_without_services_leaves_its_runs_to_the_others(made, capsys):
    assert sweep._run_all(_runs("a", "b"), "smoke", [Place(_broken, ["0"]), Place(_sound, ["1"])]) == []
    assert made == {"a": ["1"], "b": ["1"]} and "warning: no such card" in capsys.readouterr().err


def test_no_card_with_services_is_an_error(made):
    with pytest.raises(ConfigError, match="no such card"):
        sweep._run_all(_runs("a"), "smoke", [Place(_broken, ["0"]), Place(_broken, ["1"])])
    assert made == {}


def test_cards_and_places_of_halves_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="leave out --trainer-gpus"):
        sweep.main(["--arms", "vanilla", "--cards", "0", "--trainer-gpus", "1", "--runs", str(tmp_path)])


@pytest.mark.parametrize(
    "more", [["--cards", "0"], ["--jobs", "2"], ["--trainer-gpus", "0"], ["--generator-gpus", "0"]]
)
def test_stacks_without_a_gpu_exclude_other_places(tmp_path, more):
    with pytest.raises(ConfigError, match="--stacks gives each run services of its own"):
        sweep.main(["--arms", "vanilla", "--stacks", "2", *more, "--runs", str(tmp_path)])


def test_graders_of_all_stacks_have_a_lane_a_core(monkeypatch):
    monkeypatch.setattr(stack.os, "sched_getaffinity", lambda _: set(range(32)))
    assert stack.lanes(2, stacks=4) == {"parallel": 4}, "32 cores, 8 graders"
    assert stack.lanes(2, stacks=28) == {"parallel": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("places", "names"), [(["--cards", "0,1"], ["0-0", "1-0"]), (["--stacks", "2"], ["0", "1"])])
def test_each_place_has_services_of_its_own(tmp_path, places, names):
    command = [sys.executable, "-m", "experiments", "sweep", "--preset", "smoke", "--arms", "vanilla,random_direction"]
    command += ["--seeds", "0", *places, "--isolation", "best_effort", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    ports = set()
    for arm, name in zip(("vanilla", "random_direction"), names, strict=True):
        assert json.loads((tmp_path / f"smoke-{arm}-s0" / "status.json").read_text())["state"] == "finished"
        ports.add(json.loads((tmp_path / ".stack" / f"sweep-{name}" / "ref_server.json").read_text())["redis_url"])
    assert len(ports) == 2
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "2 complete, 0 to do" in again.stdout
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)], (
        "nothing left running"
    )


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
