"""One trainer as a process of its own, on running services of the smoke preset."""

import json
import subprocess
import sys
from pathlib import Path

from common.settings import TrainerSettings, build, dump
from experiments.design import presets
from experiments.launch.direction import ensure_direction


def settings(root, name, stack, **changes):
    values = presets.resolve("smoke", "projected", 0, {}, root) | {"svd_cache": str(root / "svd")}
    values |= {"run_id": name, "run_dir": str(root / name)} | stack.access("trainer") | changes
    return build(TrainerSettings, values)


def start(s: TrainerSettings) -> subprocess.Popen:
    ensure_direction("smoke", "projected", 0, s)
    config = Path(str(s.run_dir) + ".config.json")
    config.write_text(dump(s))
    command = [sys.executable, "-m", "services.trainer", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, limit=300):
    out, _ = process.communicate(timeout=limit)
    return process.returncode, out


def rows(s, name="metrics.jsonl"):
    return [json.loads(line) for line in (s.run_dir / name).read_text().splitlines()]
