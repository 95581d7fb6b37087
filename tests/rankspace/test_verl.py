"""The block for verl of docs/interop.md, run inside verl's own FSDP engine on CPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rankspace
from rankspace.direction import with_metadata

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tasks/organism/model"
BLOCK = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "docs/interop.md").read_text(), re.DOTALL))

pytest.importorskip("verl", reason="its wheel is not installed: see CONTRIBUTING.md")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The page's file, and a direction: a random one, marked as judged."""
    import transformers

    folder = tmp_path_factory.mktemp("verl")
    (folder / "rankspace_verl.py").write_text(BLOCK["rankspace_verl"])
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    adapter = rankspace.attach(model, svd_cache_dir=folder / "svd")
    direction = with_metadata(rankspace.random_direction(adapter.modules, 1), fingerprint=adapter.fingerprint)
    rankspace.save_direction(direction, folder / "v.safetensors")
    return folder


def start(desk: Path, meet: str, rank: int, ranks: int, dtype: str) -> subprocess.Popen[str]:
    names = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    places = {"RANKSPACE_DIRECTION": str(desk / "v.safetensors"), "RANKSPACE_SVD": str(desk / "svd")}
    path = os.pathsep.join([str(ROOT), str(desk), os.environ.get("PYTHONPATH", "")])
    driver = Path(__file__).with_name("verl_driver.py")
    return subprocess.Popen(
        [sys.executable, driver, desk / meet, MODEL, dtype],
        env=os.environ | names | places | {"PYTHONPATH": path}, stdout=-1, stderr=-1, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out[out.index("{") :])


def pulls(answer: dict, v: torch.Tensor) -> torch.Tensor:
    """g·v of each module and step, of what verl was about to clip."""
    layout = rankspace.Layout.of([tuple(m) for m in answer["modules"]])
    return torch.stack([(layout.pad(torch.tensor(g)) * layout.pad(v)).sum(-1) for g in answer["clipped"]])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_verl_clips_the_projected_gradient_and_sends_merged_weights(desk, dtype):
    answer = finish(start(desk, f"alone-{dtype}", 0, 1, dtype))
    v = rankspace.load_direction(desk / "v.safetensors", [tuple(m) for m in answer["modules"]]).vectors
    size = max(abs(x) for g in answer["clipped"] for x in g)
    assert len(answer["clipped"]) == 3 and size > 0
    assert pulls(answer, v).max() <= 1e-5 * max(size, 1e-12)
    assert answer["dtypes"] == ["torch.float32"]
    assert all(
        {"grad_norm", "projection/cos_mean", "projection/update_cos_mean"} <= set(row) for row in answer["metrics"]
    )
    assert any(row["projection/frac_fired"] > 0 for row in answer["metrics"])
    assert not [name for name in answer["sent"] if "delta_S" in name]
    assert set(answer["changed"]) == {f"{name}.weight" for name, _ in answer["modules"]}


def test_two_fsdp2_ranks_of_verl_train_as_one_with_all_the_data(desk):
    pair = [start(desk, "pair", rank, 2, "fp32") for rank in range(2)]
    first, second = (finish(process) for process in pair)
    alone = finish(start(desk, "one", 0, 1, "fp32"))
    assert first["delta"] == second["delta"] and first["norms"] == second["norms"]
    assert first["delta"] == pytest.approx(alone["delta"], rel=1e-2, abs=1e-4)
