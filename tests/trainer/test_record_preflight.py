"""Run directories and the checks before a run: nothing half-written, every complaint one line."""

import gzip
import json
import subprocess
import sys
import time

import pytest

from common.errors import ConfigError
from common.metrics import Metrics
from common.settings import TrainerSettings, build
from services.trainer import preflight
from services.trainer.record import Record, keep_directions, open_run
from tests.samples import broken, grade, graded

MODEL = "tasks/organism/model"
PATHS = {
    "model": MODEL,
    "train_problems": "tasks/practice/practice_train.jsonl",
    "heldout_problems": "tasks/practice/practice_heldout.jsonl",
}


@pytest.fixture
def settings(tmp_path):
    return build(TrainerSettings, {"run_id": "r", "run_dir": str(tmp_path / "r"), **PATHS})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_crash_leaves_each_step_once_after_resuming(settings):
    open_run(settings)
    record = Record(settings, Metrics("trainer"), [("a", 2)], None)
    for step in range(4):
        record.rollouts(step, [graded([grade(), broken()])], [[1.0, float("nan")]], "train")
        with open(settings.run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step}) + "\n")
    with open(settings.run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "half')
    record.cut(2)
    assert [r["step"] for r in rows(settings.run_dir / "metrics.jsonl")] == [0, 1]
    assert sorted(p.name for p in (settings.run_dir / "rollouts").iterdir()) == [
        "step_000000.jsonl.gz", "step_000001.jsonl.gz",
    ]  # fmt: skip
    with gzip.open(settings.run_dir / "rollouts" / "step_000000.jsonl.gz", "rt") as file:
        first, second = map(json.loads, file)
    assert (first["advantage"], second["advantage"], second["status"]) == (1.0, None, "infra_error")
    made = graded([grade(), broken()]).group
    assert first["prompt_ids"] == made.prompt_ids and first["token_ids"] == made.completions[0].token_ids


@pytest.mark.parametrize(
    ("acts", "kept"), [("none", []), ("random", ["v_ref"]), ("v_hack", ["v_hack", "v_ref"])]
)  # fmt: skip
def test_a_run_keeps_the_directions_that_it_uses(settings, tmp_path, acts, kept):
    files = {name: tmp_path / f"{name}_of_the_cache" for name in ("v_hack", "v_ref")}
    for name, path in files.items():
        path.write_text(name)
    s = settings.model_copy(update={"direction": acts, **files})
    open_run(s)
    keep_directions(s)
    found = {path.stem: path.read_text() for path in s.run_dir.glob("*.safetensors")}
    assert found == {name: name for name in kept}


def test_another_config_in_the_same_directory_is_refused_and_named(settings):
    open_run(settings)
    open_run(settings.model_copy(update={"redis_url": "redis://elsewhere", "steps": 99, "probe_bound": 0.7}))
    with pytest.raises(ConfigError, match=r"lr=0\.02, now 0\.5"):
        open_run(settings.model_copy(update={"lr": 0.5}))


def test_a_nan_is_never_written(settings):
    open_run(settings)
    record = Record(settings, Metrics("trainer"), [("a", 2)], None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.evaluation({"step": 0, "mode": "hint", "pass_oracle": float("nan"), "hack_strict": 0.0})


def run_trainer(tmp_path, *assignments):
    command = [sys.executable, "-m", "services.trainer", "--set", f"run_dir={tmp_path / 'run'}", "--set", "run_id=r"]
    for item in [f"{k}={v}" for k, v in PATHS.items()] + list(assignments):
        command += ["--set", item]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - started


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (
            ["direction=v_hack", "v_hack=/nowhere/v.safetensors"],
            ["no file /nowhere/v.safetensors", "rankspace extract"],
        ),
        (["learning_rate=1"], ["unknown field 'learning_rate'"]),
        (["redis_url=redis://127.0.0.1:1/0"], ["no Redis answers", "127.0.0.1:1"]),
        (["model=/nowhere"], ["field 'model'", "/nowhere"]),
        (["train_problems=/nowhere.jsonl"], ["train_problems", "/nowhere.jsonl"]),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(tmp_path, assignments, words):
    done, _ = run_trainer(tmp_path, *assignments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def foreign_direction(path, rename=None, rank=None):
    import torch

    from rankspace import random_direction
    from rankspace.direction import save_direction, with_metadata

    shapes = preflight.weight_shapes(MODEL)
    modules = [(n.removesuffix(".weight"), min(s)) for n, s in shapes.items() if n.endswith("proj.weight")]
    if rename:
        modules[3] = (rename, modules[3][1])
    if rank:
        modules[3] = (modules[3][0], rank)
    direction = random_direction(modules, 0)
    torch.manual_seed(0)
    save_direction(with_metadata(direction, validation={"frac_positive": 0.9, "n_pairs": 3}), path)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"rename": "model.layers.9.mlp.up_proj"}, "no such module"), ({"rank": 7}, "with adapter antipasto has")],
)
def test_a_direction_of_another_model_is_refused(tmp_path, change, word):
    path = tmp_path / "v.safetensors"
    foreign_direction(path, **change)
    with pytest.raises(ConfigError, match=word) as caught:
        preflight.check_direction(path, preflight.weight_shapes(MODEL), 0.5)
    assert "\n" not in str(caught.value)


def test_a_model_without_matching_modules_is_refused_from_its_headers(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text("{}")
    save_file({"transformer.h.0.attn.c_attn.weight": np.zeros((4, 4), "f4")}, tmp_path / "model.safetensors")
    done, _ = run_trainer(tmp_path, f"model={tmp_path}")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "no module that the adapter knows" in line
    assert "c_attn" in line


def test_a_truncated_direction_is_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    foreign_direction(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="damaged"):
        preflight.check_direction(path, preflight.weight_shapes(MODEL), 0.5)


def test_a_direction_below_the_gate_is_refused(tmp_path):
    import torch

    from rankspace.direction import Direction, save_direction

    shapes = preflight.weight_shapes(MODEL)
    modules = [(n.removesuffix(".weight"), min(s)) for n, s in shapes.items() if n.endswith("proj.weight")]
    vectors = torch.ones(sum(r for _, r in modules))
    path = tmp_path / "v.safetensors"
    for validation, word in (({"frac_positive": 0.4}, "only 40%"), (None, "no held-out validation")):
        metadata = {} if validation is None else {"validation": validation}
        save_direction(Direction("v_hack", vectors, modules, metadata), path)
        with pytest.raises(ConfigError, match=word):
            preflight.check_direction(path, shapes, 0.5)


@pytest.mark.parametrize(
    ("status", "checkpoints", "word"),
    [(None, True, "no run in"), ("running", True, "is running; finish it"), ("finished", False, "has no checkpoints")],
)
def test_a_run_to_start_from_must_have_finished(tmp_path, status, checkpoints, word):
    run = tmp_path / "first"
    run.mkdir()
    if status is not None:
        (run / "status.json").write_text(json.dumps({"state": status}))
    if checkpoints:
        (run / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=f"field 'start_from': .*{word}") as found:
        preflight.check_start(run)
    assert "\n" not in str(found.value)
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "status.json").write_text(json.dumps({"state": "finished"}))
    preflight.check_start(run)
