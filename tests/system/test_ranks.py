"""Several ranks and several generators: told to stop they end as one; each generator has its share of every step."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from common.errors import UserError
from common.settings import TrainerSettings, build
from experiments import options
from experiments.design import presets
from experiments.launch.direction import ensure_direction
from experiments.launch.run import train
from experiments.launch.stack import Stack, environment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_stop_together_and_resume(tmp_path):
    free = {"steps": 6, "groups_per_step": 4, "group_size": 4, "eval_every": 0, "eval_problems": 2, "eval_samples": 1}
    s = build(TrainerSettings, presets.resolve("demo", "projected", 0, free, tmp_path))
    ensure_direction("demo", "projected", 0, s)
    config, log = tmp_path / "trainer.json", tmp_path / "trainer.log"
    rows, status = s.run_dir / "metrics.jsonl", s.run_dir / "status.json"
    with Stack.start(tmp_path / "stack", s.model, presets.get("demo").server, 1) as stack:
        config.write_text(s.model_copy(update=stack.access("trainer")).model_dump_json())
        command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "services.trainer", "--config", str(config)]
        with open(log, "ab") as out:
            first = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
            deadline = time.monotonic() + 400
            while not (rows.exists() and len(rows.read_text().splitlines()) >= 2):
                assert first.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.1)
            first.send_signal(signal.SIGTERM)
            first.wait(60)
            stopped = json.loads(status.read_text())
            assert stopped["state"] == "stopped" and 2 <= stopped["step"] < 6, log.read_text()[-2000:]
            assert subprocess.run(command, stdout=out, stderr=out, env=environment(), timeout=400).returncode == 0
    assert json.loads(status.read_text())["state"] == "finished"
    assert [json.loads(line)["step"] for line in rows.read_text().splitlines()] == list(range(6))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_generators_share_each_step_of_two_ranks(tmp_path):
    s = build(TrainerSettings, presets.resolve("smoke", "projected", 0, {}, tmp_path))
    ensure_direction("smoke", "projected", 0, s)
    root, server = tmp_path / "stack", {**presets.get("smoke").server, "max_batch_groups": 4}
    with Stack.start(root, s.model, server, 1, "best_effort", gpus=["2", "3"]) as stack:
        made = s.model_copy(update=stack.access("trainer"))
        assert train(made, "smoke", quiet=True, check=stack.check, gpus=["0", "1"]) == 0, (
            s.run_dir / "trainer.log"
        ).read_text()
        groups = [_generated(root / f"{name}.json") for name in ("ref_server", "ref_server-1")]
    assert json.loads((s.run_dir / "status.json").read_text())["state"] == "finished"
    assert all(groups), f"each made some: {groups}"
    assert json.loads((root / "ref_server-1.json").read_text())["max_batch_groups"] == 2


def _generated(config: Path) -> float:
    port = json.loads(config.read_text())["port"]
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rs_generated_groups_total{"))


def test_gpus_are_numbers_without_repeats():
    assert options.run().parse_args(["--arm", "vanilla", "--trainer-gpus", "0,3"]).trainer_gpus == ("0", "3")
    for wrong in ("0,0", "a", "0,", "-1"):
        with pytest.raises((SystemExit, UserError)):
            options.sweep().parse_args(["--arms", "vanilla", f"--generator-gpus={wrong}"])


def test_visible_gpus_are_the_childs_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert environment()["CUDA_VISIBLE_DEVICES"] == "5" and environment("1,2")["CUDA_VISIBLE_DEVICES"] == "1,2"
