"""The preset of four loopholes by its own name: one step on one flaw, v_hack from pairs of another, every mode evaluated.

On the bundled organism, for its own takes minutes to make (`tests/tasks/test_organism.py` covers the recipe)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from experiments.design import presets, registration
from experiments.design.plan import plan
from experiments.launch import mechanisms
from tasks.organism.make import MANIFEST

MODES = ["no_hint", "own_tests", "sentinel", "stdout_marker", "result_file", "asked_for_tests"]
SETTINGS = {
    "loophole": "stdout_marker", "pairs_mechanism": "sentinel", "steps": 1, "groups_per_step": 4, "group_size": 4,
    "eval_problems": 2, "eval_samples": 1, "sandbox.workers": 1, "model": presets.ORGANISM_MODEL,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_by_its_name(tmp_path):
    command = [sys.executable, "-m", "experiments", "run", "--preset", "mechanisms", "--arm", "projected"]
    command += ["--name", "m", "--isolation", "best_effort", "--runs", str(tmp_path)]
    for name, value in SETTINGS.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    run = tmp_path / "m-projected-s0"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [(row["step"], row["mode"]) for row in rows] == [(step, mode) for step in (0, 1) for mode in MODES]
    config = json.loads((run / "config.json").read_text())
    assert (config["loophole"], config["pairs_mechanism"]) == ("stdout_marker", "sentinel")
    assert "sentinel" in config["pairs"]
    direction = Path(config["v_hack"])
    for left in direction.parent.glob(f"{direction.stem}*"):
        left.unlink()


def test_the_registered_matrix_is_runs_of_this_preset(tmp_path):
    design = registration.load(registration.FOLDER / "place.yaml").design
    assert design is not None and design.preset == "mechanisms"
    for name in design.arms:
        planned = plan(design.preset, design.arm_of(name), 40, design.settings_of(name), tmp_path)
        assert planned.trainer.steps == design.steps and planned.trainer.model == presets.MECHANISMS_MODEL
    pairs = {
        (c.arm, c.settings["loophole"], c.settings["pairs_mechanism"])
        for c in design.cells.values()
        if "pairs_mechanism" in c.settings
    }
    assert len(pairs) == 2 * 4 * 4


def test_its_model_is_made_only_when_asked_for_and_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(mechanisms, "MAKE", "tasks.organism.nowhere")
    mechanisms.prepare({presets.ORGANISM_MODEL})
    said = []
    with pytest.raises(ConfigError, match=r"model .*organism could not be made .*ended with 1"):
        mechanisms.ensure(tmp_path / "organism", said.append)
    assert "8 to 20 minutes" in said[0]
    (tmp_path / "organism").mkdir()
    (tmp_path / "organism" / MANIFEST).write_text("{}")
    assert mechanisms.ensure(tmp_path / "organism", Path) == tmp_path / "organism"
