"""The presets qwen3-4b and qwen3.5-2b, by their own names, on a CPU: tiny random models in the published form, with a
template that thinks unless it is told not to, through all services for one step."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.design.presets import ORGANISM_MODEL, PAIRS, PRACTICE_HELDOUT, PRACTICE_TRAIN

TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}return{% endif %}"
)
# vLLM imports torchvision for every Qwen3.5, and calls nothing of it for text.
PRETENCE = {
    "torchvision-0.28.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n",
    "torchvision/__init__.py": "__version__ = '0.28.0'\nfrom . import io, transforms\n",
    "torchvision/transforms/__init__.py": "import enum\nfrom . import functional, v2\n\n\n"
    "class InterpolationMode(enum.Enum):\n    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(7)\n",
} | dict.fromkeys(
    ("torchvision/io/__init__.py", "torchvision/transforms/functional.py", "torchvision/transforms/v2/functional.py",
     "torchvision/transforms/v2/__init__.py"),
    "def __getattr__(name):\n    if name.startswith('__'):\n        raise AttributeError(name)\n    return type(name, (), {})\n",
)  # fmt: skip


def _save(folder: Path, preset: str) -> None:
    import torch
    import transformers as t

    tokenizer = t.AutoTokenizer.from_pretrained(ORGANISM_MODEL)
    tokenizer.chat_template = TEMPLATE
    size = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")} | {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    torch.manual_seed(0)
    if preset == "qwen3-4b":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**size))
    else:  # heads of 128 are what vLLM's linear attention takes on a CPU
        linear = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 1,
                  "linear_num_value_heads": 1, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
        eyes = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
        config = t.Qwen3_5Config(text_config=size | linear, vision_config=eyes, tie_word_embeddings=True)
        model = t.Qwen3_5ForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _some_pairs(path: Path) -> Path:
    rows = [json.loads(line) for line in Path(PAIRS).read_text().splitlines()]
    few = [[r for r in rows if r["split"] == split][:n] for split, n in (("train", 8), ("heldout", 4))]
    path.write_text("".join(json.dumps(r) + "\n" for part in few for r in part))
    return path


def _environment(tmp_path: Path, preset: str) -> dict[str, str]:
    if preset != "qwen3.5-2b" or find_spec("torchvision") is not None:
        return dict(os.environ)
    for name, text in PRETENCE.items():
        (tmp_path / "pretence" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pretence" / name).write_text(text)
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'pretence'}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["qwen3-4b", "qwen3.5-2b"])
def test_by_its_name_at_tiny_size(tmp_path, preset):
    _save(tmp_path / "model", preset)
    settings = {
        "model": tmp_path / "model", "device": "cpu", "steps": 1, "groups_per_step": 2, "group_size": 2, "max_tokens": 16,
        "eval_problems": 2, "eval_samples": 1, "eval_every": 0, "train_problems": PRACTICE_TRAIN, "gate": 0,
        "heldout_problems": PRACTICE_HELDOUT, "svd_cache": tmp_path / "svd", "pairs": _some_pairs(tmp_path / "pairs.jsonl"),
        "generator.gpu_memory_utilization": 0.1, "sandbox.workers": 1, "compile_layers": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments", "run", "--preset", preset, "--arm", "projected"]
    command += ["--name", "tiny", "--isolation", "best_effort", "--runs", str(tmp_path / "runs")]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=_environment(tmp_path, preset))
    log = tmp_path / "runs/.stack/tiny-projected-s0/ref_server.log"
    assert done.returncode == 0, done.stdout + done.stderr[-2000:] + (log.read_text()[-2000:] if log.is_file() else "")
    run = tmp_path / "runs" / "tiny-projected-s0"
    config = json.loads((run / "config.json").read_text())
    direction = Path(config["v_hack"])
    for left in direction.parent.glob(f"{direction.stem}*"):
        left.unlink()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert config["chat_template_kwargs"] == {"enable_thinking": False} and config["dtype"] == "bfloat16"
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert row["groups"] == 2 and row["probe_gap"] < 0.25
    from transformers import AutoTokenizer

    tail = AutoTokenizer.from_pretrained(tmp_path / "model")("<assistant>return", add_special_tokens=False)["input_ids"]
    with gzip.open(run / "rollouts" / "step_000000.jsonl.gz", "rt") as file:
        prompts = [json.loads(line)["prompt_ids"] for line in file]
    assert all(ids[-len(tail) :] == tail for ids in prompts), "thinking was not switched off"
