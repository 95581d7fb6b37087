"""A trainer of two ranks under torchrun: told to stop it saves and ends as one, and started again it goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.settings import TrainerSettings, build
from experiments import presets
from experiments.run import ensure_direction
from experiments.stack import Stack, environment


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
