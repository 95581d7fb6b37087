"""The whole system on one card, with a model of a given shape: generator, reference, graders and trainer at once.

A few steps of 16 x 8 rollouts of up to 1024 tokens through the real services, one step off-policy, so that generation
and training overlap. Weights are random, so nearly every rollout runs to the limit (the worst case), and the practice
problems are only there to be prompts. What such rollouts earn is all alike, and groups without variance are, rightly,
not trained on: the rewards are drawn at random (trainer.py), so that every token goes through the optimizer. The KL
term is on, so that reference log-probs are made. The bases are random orthonormal ones (shapes.fill_cache).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.settings import TrainerSettings, build
from experiments.design import presets
from experiments.launch.run import train
from experiments.launch.stack import Stack

PHASES = ("total", "wait", "train", "push", "generate", "grade")


def measure(
    folder: Path, root: Path, svd_cache: Path, device: str, dtype: str, steps: int, max_tokens: int, groups: int = 16,
    size: int = 8, micro_batch: int = 8, graders: int = 6, checkpointing: bool = True, compiled: bool = False,
    kv_cache_gib: float | None = 20.0, bases_on: str = "gpu", gpus: Sequence[str] | None = None, preset: str = "smollm",
) -> dict[str, Any]:  # fmt: skip
    """Median seconds a step by phase over the `settled` steps, GPU use, and 200 steps at that pace.

    gpus: (the trainer's, the generator's); None: both on the first. preset: whose problems and tokenizer.
    """
    presets.prepare(preset)
    shutil.rmtree(root, ignore_errors=True)
    chosen = presets.get(preset).values
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(chosen["model"]) / name, folder / name)
    server = {"max_model_len": 256 + max_tokens, "dtype": dtype, "device": device, "svd_cache": str(svd_cache),
              "gpu_memory_utilization": 0.35, "kv_cache_gib": kv_cache_gib, "max_batch_groups": groups,
              "max_num_seqs": groups * size, "bases_on": bases_on}  # fmt: skip
    trainer_gpus, generator_gpus = ((), ()) if gpus is None else ([gpus[0]], [gpus[1]])
    own = Stack.start(root / "stack", str(folder), server, graders, "best_effort", gpus=generator_gpus)
    with own as stack, GpuUse() as use:
        values = chosen | {
            "run_id": "bench", "run_dir": str(root / "run"), "arm": "bench", **stack.access("trainer"),
            "model": str(folder), "dtype": dtype, "device": device, "svd_cache": str(svd_cache),
            "projection": "one_sided", "direction": "random", "steps": steps,
            "groups_per_step": groups, "group_size": size, "max_tokens": max_tokens, "temperature": 1.0,
            "mask_truncated": False, "micro_batch": micro_batch, "activation_checkpointing": checkpointing,
            "compile_layers": compiled,
            "max_staleness": 1, "eval_every": 0, "eval_problems": 1, "eval_samples": 1, "probe_bound": 0.25,
            "checkpoint_every": 100, "lr": 1e-4, "kl_beta": 1e-3,
        }  # fmt: skip
        settings = build(TrainerSettings, values)
        if train(settings, preset, quiet=True, check=stack.check, gpus=trainer_gpus, module="bench.gpu.trainer"):
            raise ConfigError(f"the run failed: {(settings.run_dir / 'trainer.log').read_text()[-800:]}")
    rows = [json.loads(line) for line in (settings.run_dir / "metrics.jsonl").read_text().splitlines()]
    median = medians([row["seconds"] for row in rows])
    tokens = statistics.median(row["tokens"] for row in settled(rows))
    return {
        "rollouts": groups * size, "groups": groups, "tokens_per_step": tokens,
        "trained_groups": groups - max(row["zero_variance_groups"] for row in rows), "seconds": median,
        "all_steps": [r["seconds"] for r in rows],
        "minutes_200_steps": 200 * median["total"] / 60, "gpus": use.summary(),
    }  # fmt: skip


def settled(steps: Sequence[Any]) -> Sequence[Any]:
    """Those that tell the pace of a long run: not the first three, in which layers are compiled while groups are sampled
    ahead, nor the last, beside which nothing is sampled any more. All, when that leaves none."""
    return steps[3:-1] or steps


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds by phase, over the settled steps."""
    chosen = settled(steps)
    return {p: statistics.median(s[p] for s in chosen if p in s) for p in PHASES if any(p in s for s in chosen)}


class GpuUse:
    """Samples nvidia-smi five times a second while it is open, for the GPUs this process may use; empty without any."""

    def __enter__(self) -> GpuUse:
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi"):
            query = "--query-gpu=index,utilization.gpu,memory.used"
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            which = ["-i", seen] if seen else []
            command = ["nvidia-smi", *which, query, "--format=csv,noheader,nounits", "-lms", "200"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            fields = [f.strip() for f in line.split(",")]
            if len(fields) == 3 and all(f.isdigit() for f in fields):
                self.samples[fields[0]].append((float(fields[1]), float(fields[2])))

    def summary(self) -> dict[str, dict[str, float]]:
        """By GPU: share of samples without a running kernel over the last half, and the most memory in use (GiB)."""
        return {
            gpu: {
                "idle_share": statistics.mean(use == 0 for use, _ in samples[len(samples) // 2 :]),
                "memory_gib": max(m for _, m in samples) / 1024,
            }
            for gpu, samples in self.samples.items()
        }
