"""Five steps of the projected arm on the organism, every piece the real one, in one process.

    Trainer ── requests ──> Generator: vLLM under the version pushed, proof, reference log-probs
       ^                        │ completions: compared with the recorded ones, and replaced by them
       └── graded groups <── Worker: jail, both verdicts

Recorded completions are what makes the numbers worth pinning: a last bit that another machine rounds otherwise changes
one token of one completion, and without them every number after it.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, cast

from tasks.organism.make import PINNED

os.environ.update(PINNED)  # before torch is loaded: the same kernels on every x86-64 machine with AVX2

from common.metrics import Metrics
from common.queue import Queue, connect
from common.settings import RefServerSettings, SandboxSettings, TrainerSettings, build
from common.types import SamplingPlan
from experiments.design import presets
from services.ref_server.engine import Ended, Engine, Sample
from services.ref_server.generation import Generator
from services.ref_server.reference import Reference
from services.ref_server.rendering import Renderer
from services.ref_server.served_policy import ServedPolicy
from services.sandbox.worker import Worker
from services.trainer import wiring
from services.trainer.policy import Policy

Recorded = dict[str, list[Sample]]  # by the request's sampling seed, which says run, purpose, step and place
DIGITS = 5  # of a recorded log-prob
# Small enough for a minute; a temperature, a length, a staleness and a KL term that leave no part of the loss at zero.
SCALE = {
    "steps": 5, "groups_per_step": 8, "group_size": 6, "max_tokens": 40, "max_staleness": 1, "kl_beta": 1.0,
    "eval_problems": 4, "eval_samples": 2, "eval_every": 0, "checkpoint_every": 100,
}  # fmt: skip


@dataclass
class Sampling:
    """How what vLLM sampled compares with what is recorded."""

    asked: list[str] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class RecordedEngine:
    """The engine, whose completions are replaced by the recorded ones of the same request, where there are any."""

    def __init__(self, engine: Engine, recorded: Recorded):
        self.engine, self.recorded, self.sampling = engine, recorded, Sampling()
        self.fresh: Recorded = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(
        self,
        prompts: list[list[int]],
        plans: list[SamplingPlan],
        ended: Callable[[list[Ended]], None],
    ) -> list[list[Sample]]:
        out = []
        for i, (plan, new) in enumerate(zip(plans, self.engine.generate(prompts, plans), strict=True)):
            new = [Sample(s.token_ids, [round(p, DIGITS) for p in s.logprobs], s.finish_reason) for s in new]
            key = str(plan.seed)
            self.fresh[key] = new
            out.append(self.recorded.get(key, new))
            self._compare(key, new, out[-1])
            ended([(i, j, sample) for j, sample in enumerate(out[-1])])
        return out

    def _compare(self, key: str, new: list[Sample], old: list[Sample]) -> None:
        self.sampling.asked.append(key)
        for a, b in zip(new, old, strict=True):
            self.sampling.same.append(a.token_ids == b.token_ids)
            if a.token_ids == b.token_ids:
                self.sampling.gaps += [abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)]


def settings(root: Path, v_hack: Path) -> TrainerSettings:
    values = presets.resolve("smoke", "projected", 0, {}, root) | SCALE
    return build(TrainerSettings, values | {"run_id": "golden", "run_dir": str(root / "run"), "v_hack": str(v_hack),
                                            "svd_cache": str(root / "svd")})  # fmt: skip


def extract(s: TrainerSettings) -> dict[str, Any]:
    """Make v_hack with the command line of the library, in this process; its held-out numbers."""
    from rankspace.__main__ import main
    from rankspace.direction import load_direction

    main(["extract", "--model", s.model, "--pairs", str(s.pairs), "--out", str(s.v_hack), "--svd-cache", str(s.svd_cache),
          "--device", "cpu", "--dtype", "float32"])  # fmt: skip
    assert s.v_hack is not None
    found: dict[str, Any] = load_direction(s.v_hack).metadata["validation"]
    return found


def run(redis_url: str, root: Path, recorded: Recorded) -> tuple[dict[str, Any], Recorded, Sampling]:
    """(numbers, completions sampled, comparison of the two)."""
    s = settings(root, root / "v_hack.safetensors")
    numbers: dict[str, Any] = {"v_hack": extract(s)}
    server = RefServerSettings(**presets.get("smoke").server, model=s.model, replica="gen", svd_cache=s.svd_cache)
    render = Renderer(server)
    engine = RecordedEngine(Engine(server, render.eos_ids()), recorded)
    served = ServedPolicy(cast(Engine, engine), Queue(connect(redis_url), "gen"), server, Metrics("ref_server"))
    generator = Generator(served, Reference(server), render, served.queue, server, served.metrics)
    grading = SandboxSettings(name="grader", isolation="best_effort", parallel=2)
    worker = Worker(grading, Queue(connect(redis_url), "grader"), Metrics("sandbox"))

    def others() -> None:
        """What the other services do while the trainer waits."""
        generator.turn(wait_s=0.0)
        worker.turn(wait_s=0.0)
        worker.drain()

    try:
        train(s, redis_url, others)
    finally:
        worker.close()
    numbers["completions"] = graded(s)
    for name in ("metrics", "eval"):
        numbers[name] = [json.loads(line) for line in (s.run_dir / f"{name}.jsonl").read_text().splitlines()]
    return numbers, engine.fresh, engine.sampling


def train(s: TrainerSettings, redis_url: str, others: Callable[[], None]) -> None:
    """The trainer without its signals, lock and terminal."""

    def nothing(*_: object) -> None:
        pass

    around = wiring.Around(threading.Event(), others, nothing, nothing)
    parts = connect(redis_url), Policy(s), wiring.read_problems(s), Metrics("trainer"), around
    trainer = wiring.build(s, *parts)
    trainer.run()
    trainer.record.close()


def graded(s: TrainerSettings) -> list[dict[str, Any]]:
    """Per step: labels, rewards and advantages of every completion, in order of group and place."""
    steps = []
    for path in sorted((s.run_dir / "rollouts").glob("step_*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            rows = [row for row in map(json.loads, file) if row["purpose"] == "train"]
        names = ("label", "reward", "oracle_correct", "policy_version")
        found: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
        steps += [found | {"advantage": [round(row["advantage"], 6) for row in rows]}] if rows else []
    return steps


def read(path: Path) -> Recorded:
    with gzip.open(path, "rt") as file:
        return {seed: [Sample(*one) for one in group] for seed, group in json.load(file).items()}


def write(path: Path, recorded: Recorded) -> None:
    text = json.dumps({seed: [astuple(one) for one in group] for seed, group in recorded.items()})
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main(redis_url: str, root: str, recorded: str) -> None:
    """Leaves numbers.json and completions.json.gz in `root`. `recorded`: completions to train on; "" for those sampled."""
    numbers, fresh, sampling = run(redis_url, Path(root), read(Path(recorded)) if recorded else {})
    same = sum(sampling.same) / len(sampling.same)
    numbers["sampling"] = {"requests": sampling.asked, "same": same, "gap": max(sampling.gaps, default=math.inf)}
    (Path(root) / "numbers.json").write_text(json.dumps(numbers))
    write(Path(root) / "completions.json.gz", fresh)


if __name__ == "__main__":
    main(*sys.argv[1:])
