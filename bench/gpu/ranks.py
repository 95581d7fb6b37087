"""One optimizer step of the real trainer's policy on one rank and on two, ZeRO-2, with the projection: the same numbers?

The same rows, direction and seeds go to `Policy` under one process and under torchrun's two; compared are the cosines of
the reduced gradient with v, per module, and delta_S after the last step. In fp32 they may differ by rounding alone (rows
are added up in another order); seconds a step say what the second card brings. Bases are random (shapes.fill_cache).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.trainer.collate import TrainingSample

ROWS, PROMPT = 32, 32


def measure(
    folder: Path, root: Path, svd_cache: Path, device: str, dtype: str, steps: int, tokens: int, micro_batch: int,
    rows: int = ROWS,
) -> dict[str, Any]:  # fmt: skip
    """{"seconds": {"1": median a step, "2": ...}, "cos_gap", "delta_gap", ...}; both gaps are the largest difference,
    that of delta_S relative to its largest entry."""
    root.mkdir(parents=True, exist_ok=True)
    plan = {"folder": str(folder), "svd_cache": str(svd_cache), "device": device, "dtype": dtype, "steps": steps,
            "tokens": tokens, "micro_batch": micro_batch, "rows": rows}  # fmt: skip
    found = {ranks: _with_ranks(plan, root, ranks) for ranks in (1, 2)}
    one, two = found[1], found[2]
    cosines = [abs(a - b) for x, y in zip(one["cos"], two["cos"], strict=True) for a, b in zip(x, y, strict=True)]
    deltas = [abs(a - b) for a, b in zip(one["delta"], two["delta"], strict=True)]
    return {
        "rows": rows, "tokens": tokens, "steps": steps, "dtype": dtype, "modules": len(one["cos"][0]),
        "seconds": {str(ranks): statistics.median(x["seconds"][1:] or x["seconds"]) for ranks, x in found.items()},
        "cos_gap": max(cosines), "cos_largest": max(abs(c) for step in one["cos"] for c in step),
        "delta_gap": max(deltas) / max(abs(d) for d in one["delta"]), "fired": [one["fired"], two["fired"]],
    }  # fmt: skip


def _with_ranks(plan: dict[str, Any], root: Path, ranks: int) -> dict[str, Any]:
    from experiments.launch.run import launcher
    from experiments.launch.stack import environment

    out = root / f"ranks-{ranks}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, *launcher(ranks), "-m", "bench.gpu.ranks", json.dumps(plan | {"out": str(out)})]
    subprocess.run(command, check=True, env=environment())
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main(plan: dict[str, Any]) -> None:
    """One rank's part; rank 0 writes what it found."""
    import numpy as np

    from common.settings import TrainerSettings
    from services.trainer.policy import Policy

    s = TrainerSettings(
        run_id="ranks", run_dir=Path("unused"), model=plan["folder"], train_problems=Path("unused"),
        heldout_problems=Path("unused"), svd_cache=plan["svd_cache"], device=plan["device"], dtype=plan["dtype"],
        projection="one_sided", direction="random", groups_per_step=plan["rows"] // 8, group_size=8,
        max_tokens=plan["tokens"], micro_batch=plan["micro_batch"], zero_stage=2, lr=1e-3, activation_checkpointing=True,
    )  # fmt: skip
    policy = Policy(s)
    found: dict[str, Any] = {"seconds": [], "cos": [], "fired": []}
    for step in range(plan["steps"]):
        rows = synthetic_rows(plan["rows"], plan["tokens"], policy.model.config.vocab_size, step)
        began = time.perf_counter()
        metrics = policy.train_step(rows)
        assert metrics is not None, "every synthetic row has tokens to learn from"
        policy.vector()  # waits for the device
        found["seconds"].append(time.perf_counter() - began)
        found["cos"].append(metrics["cos"].tolist())
        found["fired"].append(metrics["frac_fired"])
    found["delta"] = np.frombuffer(policy.vector(), dtype="<f4").tolist()
    if policy.rank == 0:
        Path(plan["out"]).write_text(json.dumps(found))


def synthetic_rows(count: int, tokens: int, vocabulary: int, seed: int) -> list[TrainingSample]:
    """Rows of random tokens, of unlike length, with advantages of both signs; the same for every rank."""
    import random

    from services.trainer.collate import TrainingSample

    rng = random.Random(seed)

    def row() -> TrainingSample:
        length = rng.randint(max(1, tokens // 2), tokens)
        ids = [rng.randrange(2, vocabulary) for _ in range(PROMPT + length)]
        return TrainingSample(ids[:PROMPT], ids[PROMPT:], [-8.0] * length, None, rng.uniform(-1, 1), masked=False)

    return [row() for _ in range(count)]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
