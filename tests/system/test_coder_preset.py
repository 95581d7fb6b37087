"""The preset of a real code model, by its own name, on a CPU: a tiny random Qwen2 through all services for one step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.design.presets import ORGANISM_MODEL, PRACTICE_HELDOUT, PRACTICE_TRAIN


def _model(folder: Path) -> None:
    """Random weights in Qwen2's layout with the organism's tokenizer and chat template; vLLM wants heads of 32 on a CPU."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ORGANISM_MODEL)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True, **ends,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_coder_by_its_name_at_tiny_size(tmp_path):
    _model(tmp_path / "model")
    settings = {
        "model": tmp_path / "model", "device": "cpu", "dtype": "float32", "compile_layers": "false", "steps": 1,
        "groups_per_step": 2, "group_size": 2, "max_tokens": 16, "eval_problems": 2, "eval_samples": 1, "eval_every": 0,
        "train_problems": PRACTICE_TRAIN, "heldout_problems": PRACTICE_HELDOUT, "svd_cache": tmp_path / "svd",
        "generator.gpu_memory_utilization": 0.1, "sandbox.workers": 1,
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments", "run", "--preset", "coder-1.5b", "--arm", "projected"]
    command += ["--name", "tiny", "--isolation", "best_effort", "--runs", str(tmp_path / "runs")]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    run = tmp_path / "runs" / "tiny-projected-s0"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    direction = Path(json.loads((run / "config.json").read_text())["v_hack"])
    assert direction.name.startswith("v_hack_"), "apart from the preset's own model's"
    for left in direction.parent.glob(f"{direction.stem}*"):
        left.unlink()
    assert json.loads((run / "provenance.json").read_text())["name"] == "tiny"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    server = json.loads((tmp_path / "runs/.stack/tiny-projected-s0/ref_server.json").read_text())
    assert (server["dtype"], server["device"], server["max_model_len"]) == ("float32", "cpu", 2816 - 768 + 16)
    again = subprocess.run([*command, "--set", "lr=1"], capture_output=True, text=True, timeout=100)
    assert again.returncode == 2 and "lr=0.003, now 1.0" in again.stderr
