"""Where delta_S has gone along v_hack: hand-worked numbers, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments.report import drift_page
from rankspace.direction import Direction, save_direction

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
MODULES = [(NAMES[0], 2), (NAMES[1], 3)]
V = torch.tensor([0.6, 0.8, 1.0, 0.0, 0.0])


def direction(path, vectors=V, fingerprint="w0"):
    save_direction(Direction("v_hack", vectors, MODULES, {"fingerprint": fingerprint}), path)
    return path


def run(root, delta, step=150, fingerprint="w0", names=NAMES, **plan):
    path = write(root, Plan(rollouts=False, **plan))
    (path / "modules.json").write_text(json.dumps({"names": names, "ranks": [2, 3]}))
    (path / "v_hack.json").write_text(json.dumps({"kind": "v_hack", "fingerprint": fingerprint}))
    if delta is not None:
        folder = path / f"checkpoints/step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "delta_S.f32").write_bytes(np.asarray(delta, "<f4").tobytes())
    return path


def measured(tmp_path, *more):
    argv = ["--runs", str(tmp_path / "runs"), "--v-hack", str(tmp_path / "v"), "--out", str(tmp_path / "out"), *more]
    assert drift_page.main(argv) == 0
    return list(csv.DictReader((tmp_path / "out/drift.csv").read_text().splitlines()))


def test_one_line_a_run_from_its_last_checkpoint(tmp_path, capsys):
    direction(tmp_path / "v")
    path = run(tmp_path / "runs", [9, 9, 9, 9, 9], step=100, arm="vanilla", hack=[0.2, 0.8], passed=[0.1, 0.1])
    (path / "checkpoints/step_000150").mkdir()
    (path / "checkpoints/step_000150/delta_S.f32").write_bytes(np.array([-3, -4, -2, 0, 0], "<f4").tobytes())
    run(tmp_path / "runs", [3, 4, 0, 5, 0], arm="projected", hack=[0.2, 0.0], passed=[0.1, 0.7])
    run(tmp_path / "runs", None, arm="rebound", hack=[0.2, 0.0], passed=[0.1, 0.7])
    first, second = measured(tmp_path)
    assert (first["arm"], first["step"], float(first["drift"])) == ("vanilla", "150", 1.0)
    assert (second["arm"], float(second["drift"]), float(second["norm"])) == (
        "projected",
        -0.5,
        pytest.approx(50**0.5, rel=1e-5),
    )
    assert (float(first["hack_strict"]), float(second["hack_strict"])) == (0.8, 0.0)
    assert (tmp_path / "out/drift.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert said.index("projected-s0") < said.index("vanilla-s0"), "furthest from the hack first"
    assert "no checkpoint kept: demo-rebound-s0" in said


@pytest.mark.parametrize(
    ("delta", "more", "says"),
    [
        ([1, 2, 3], {}, "has 12 bytes, its modules need 20: damaged"),
        ([1, 2, 3, 4, 5], {"fingerprint": "other"}, "trained on other weights"),
        ([1, 2, 3, 4, 5], {"names": NAMES[::-1]}, "its modules are not those of the direction"),
    ],
)
def test_a_direction_of_another_model_is_refused(tmp_path, delta, more, says):
    direction(tmp_path / "v")
    run(tmp_path / "runs", delta, **more)
    with pytest.raises(ConfigError, match=says):
        measured(tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_said(tmp_path):
    run(tmp_path / "runs", None)
    with pytest.raises(ConfigError, match="--v-hack: no v_hack at"):
        measured(tmp_path)
    direction(tmp_path / "v")
    with pytest.raises(ConfigError, match="no run has a checkpoint"):
        measured(tmp_path)
    save_direction(Direction("subspace", torch.stack([V, V]), MODULES, {}), tmp_path / "v")
    with pytest.raises(ConfigError, match="several vectors per module"):
        measured(tmp_path)


def named(path, file):
    """The run as if its preset kept the direction in `file`."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"v_hack": str(file)}))


def test_without_a_flag_the_direction_is_the_one_in_the_settings(tmp_path):
    argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    named(run(tmp_path / "runs", [1, 2, 3, 4, 5]), direction(tmp_path / "own"))
    assert drift_page.main(argv) == 0
    named(run(tmp_path / "runs", [1, 2, 3, 4, 5], seed=1), direction(tmp_path / "another", -V))
    with pytest.raises(ConfigError, match=r"have several .*another.*own.*; give --v-hack FILE"):
        drift_page.main(argv)


def test_runs_that_were_moved_bring_their_direction_along(tmp_path):
    """Each run's own copy; the file that its settings name is gone, or has been made anew from other pairs."""
    argv = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    for seed in (0, 1):
        path = run(tmp_path / "runs", [1, 2, 3, 4, 5], seed=seed)
        named(path, tmp_path / f"gone-{seed}")
        direction(path / "v_hack.safetensors")
    assert drift_page.main(argv) == 0
    save_direction(Direction("v_hack", -V, MODULES, {}), tmp_path / "runs/demo-vanilla-s1/v_hack.safetensors")
    with pytest.raises(ConfigError, match="have several"):
        drift_page.main(argv)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"12345", "delta_S.f32 has 5 bytes, its modules need 20: damaged, .*delete its folder"),
        (np.full(5, np.nan, "<f4").tobytes(), "delta_S.f32 holds NaN or Inf.*delete its folder"),
        (None, "no run has a checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, data, says):
    direction(tmp_path / "v")
    file = run(tmp_path / "runs", [1, 2, 3, 4, 5]) / "checkpoints/step_000150/delta_S.f32"
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        measured(tmp_path)


def test_a_checkpoint_that_is_being_written_does_not_count(tmp_path):
    direction(tmp_path / "v")
    (run(tmp_path / "runs", [3, 4, 0, 5, 0]) / "checkpoints/step_000155.draft").mkdir()
    assert [r["step"] for r in measured(tmp_path)] == ["150"]
