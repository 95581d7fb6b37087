"""GradientHook under DDP and FSDP2: every rank projects the same reduced gradient, that of all the data on one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("ddp_driver.py")


def start(rank: int, ranks: int, meet: Path, how: str, variant: str) -> subprocess.Popen:
    names = {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    root = {"PYTHONPATH": str(DRIVER.parents[2]), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, DRIVER, meet, how, variant], env=os.environ | names | root, stdout=-1, stderr=-1, text=True
    )


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-1500:]
    return json.loads(out)


@pytest.mark.parametrize(
    ("how", "variant"), [("ddp", "one_sided"), ("fsdp2", "one_sided"), ("fsdp2", "update"), ("fsdp2", "moments")]
)
def test_two_ranks_project_as_one_with_all_the_data(tmp_path, how, variant):
    """Gradient, parameters and AdamW's moments are read whole and written back in parts."""
    pair = [start(rank, 2, tmp_path / "meet", how, variant) for rank in range(2)]
    first, second = (finish(process) for process in pair)
    alone = finish(start(0, 1, tmp_path / "alone", how, variant))
    assert first == second
    assert first["delta"] == pytest.approx(alone["delta"], rel=1e-3, abs=1e-5)
    assert any(cos > 0 for step in alone["cos"] for cos in step)
    for ours, theirs in zip(first["cos"], alone["cos"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
