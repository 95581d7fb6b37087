"""docs/library.md, run as it stands: each Python block and each command of ours, in order, on the bundled model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rankspace
from rankspace.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/library.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the page assumes: the model under its name, and pairs.jsonl; v_hack.safetensors made by the page."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "Qwen").mkdir()
    (folder / "Qwen/Qwen3-0.6B").symlink_to(ROOT / "tasks/organism/model")
    rows = (ROOT / "tasks/pairs/pairs.jsonl").read_text().splitlines(keepends=True)
    train = [r for r in rows if '"split": "train"' in r][:10]
    heldout = [r for r in rows if '"split": "heldout"' in r][:4]
    (folder / "pairs.jsonl").write_text("".join(train + heldout))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS[:2]:
            assert ours(command) == 0
    return folder


def ours(command: str) -> int:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "rankspace"], command
    return main(words[3:])


def run(name, gradients=None):
    """Execute a block; `gradients` gets what every optimizer was given, one dict a step."""

    def note(optimizer, *_):
        if gradients is not None and "accelerate" not in type(optimizer).__module__:
            gradients.append({id(p): p.grad.clone() for group in optimizer.param_groups for p in group["params"]})

    handle = register_optimizer_step_pre_hook(note)
    names = {"__name__": name}
    torch.manual_seed(0)
    try:
        exec(compile(BLOCKS[name], f"docs/library.md:{name}.py", "exec"), names)
    finally:
        handle.remove()
    return names


def require_projected(names, gradients, steps):
    """delta_S moved, the optimizer saw nothing but delta_S, and no pull towards the hack in any module, in any step."""
    adapter, v = names["adapter"], names["direction"].vectors
    layout = rankspace.Layout.of(adapter.modules)
    assert len(gradients) == steps and adapter.get_flat().norm() > 0
    moved = 0
    for step in gradients:
        g = torch.cat([step.pop(id(p)).flatten() for p in adapter.parameters()])
        assert not step
        assert ((layout.pad(g) * layout.pad(v)).sum(-1) <= 1e-6 * max(g.norm().item(), 1e-12)).all()
        moved += bool(g.norm() > 0)
    assert moved


def test_the_page_has_the_blocks_that_these_tests_run():
    assert set(BLOCKS) == {"plain", "lora", "grpo", "engine", "load"}
    assert PAGE.count("```python") == len(BLOCKS) and len(COMMANDS) == 4
    assert not [name for name in re.findall(r"^\| `(\w+)[(`]", PAGE, re.MULTILINE) if not known(name)]
    table = PAGE.split("## API")[1].split("## Limits")[0]
    listed = set(re.findall(r"\b\w+\b", table))
    assert set(rankspace.__all__) - set(rankspace._MODULES) - listed <= {
        "Direction", "PairGradients", "Pair", "TokenizedPair", "SavedDelta", "Adapter", "detach", "split_flat"
    }  # fmt: skip


def known(name):
    return hasattr(rankspace, name) or name in ("trl", "ds_hook", "merged", "alone")


def test_plain_loop_then_export_then_load(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    seen: list[dict] = []
    names = run("plain", seen)
    require_projected(names, seen, 3)
    assert capsys.readouterr().out.count("fired in") == 3
    assert rankspace.read_delta("out/plain").trained["step"] == 3
    for command in COMMANDS[2:]:
        assert ours(command) == 0
    names = run("load")
    assert names["difference"] < 1e-4 and names["change"] > 10 * names["difference"]


def test_lora_script(desk, monkeypatch, capsys):
    """Only B trains, what is stepped on has no pull towards the hack, and PEFT reads its own files back."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(desk)
    seen: list[dict] = []
    names = run("lora", seen)
    require_projected(names | {"direction": names["v_hack"]}, seen, 3)
    assert capsys.readouterr().out.count("fired in") == 3
    base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", dtype="auto")
    again = rankspace.attach_lora(peft.PeftModel.from_pretrained(base, "out/lora"))
    assert torch.equal(again.get_flat(), names["adapter"].get_flat())
    assert again.fingerprint == names["adapter"].fingerprint  # A as it was drawn


def test_trl_script(desk, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.chdir(desk)
    seen: list[dict] = []
    names = run("grpo", seen)
    require_projected(names, seen, 3)
    rows = [row for row in names["trainer"].state.log_history if "loss" in row]
    assert len(rows) == 3 and all(row["projection/n_modules"] == 28 for row in rows)
    assert any(row["projection/frac_fired"] > 0 for row in rows)
    saved = rankspace.read_delta("out/trl")
    assert torch.equal(saved.flat, names["adapter"].get_flat())


def test_deepspeed_script(desk, monkeypatch):
    """In a process of its own, with what a launcher sets."""
    pytest.importorskip("deepspeed")
    start = "import deepspeed, torch; deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False\n"  # else compiled first
    start += "torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)\n"
    start += "deepspeed.init_distributed(dist_backend='gloo', verbose=False)\n"
    (desk / "engine.py").write_text(start + BLOCKS["engine"])
    environment = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "engine.py"], cwd=desk, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert rankspace.read_delta(desk / "out/deepspeed").flat.norm() > 0
