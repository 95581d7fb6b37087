"""python -m deploy.scaling [--write]: the tables of docs/scaling.md, computed from deploy/scaling.yaml. Pure but for the files.

    a step = slowest of { sample and score | grade | receive, train, push }      when they overlap (max_staleness 1)
           = sample + score + train (+ grading that is slower)                   on one shared card

A card samples R(b) = R_max b / (b + b_half) tokens a second with b sequences at a time. Whatever has the longest time in
a step is what saturates first.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.types import Completion, DeltaS, Problem, RolloutGroup, checksum
from common.wire import pack

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- computed by python -m deploy.scaling -->", "<!-- end -->"
MB = 1e6


@dataclass(frozen=True)
class Cluster:
    """Cards and how they are divided; graders is the most that may run."""

    gpus: int
    generators: int
    ranks: int
    graders: int
    shared: bool
    overlay: str | None = None


def load(path: Path = ROOT / "deploy" / "scaling.yaml") -> tuple[dict[str, Any], dict[str, float], list[Cluster]]:
    """(model shape, number by name, clusters)."""
    document = yaml.safe_load(path.read_text())
    return (
        document["model"],
        {name: float(entry["value"]) for name, entry in document["numbers"].items()},
        [Cluster(**entry) for entry in document["clusters"]],
    )


def modules(model: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of each weight that the adapter takes."""
    h, q, kv, wide = (int(model[k]) for k in ("hidden", "q_rows", "kv_rows", "intermediate"))
    layer = [
        ("self_attn.q_proj", q, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h), ("self_attn.o_proj", h, q),
        ("mlp.gate_proj", wide, h), ("mlp.up_proj", wide, h), ("mlp.down_proj", h, wide),
    ]  # fmt: skip
    return [
        (f"model.layers.{i}.{name}", rows, columns)
        for i in range(int(model["layers"]))
        for name, rows, columns in layer
    ]


def delta_numbers(model: Mapping[str, Any]) -> int:
    """How many numbers are trained: one a singular value."""
    return sum(min(rows, columns) for _, rows, columns in modules(model))


def push_bytes(model: Mapping[str, Any]) -> int:
    """Bytes of one push, by packing one."""
    sizes = [(name, min(rows, columns)) for name, rows, columns in modules(model)]
    vector = bytes(4 * sum(size for _, size in sizes))
    delta = DeltaS(run_id="qwen3-4b-projected-s0", version=1, modules=sizes, vector=vector, checksum=checksum(vector),
                   probe_ids=list(range(64)))  # fmt: skip
    return len(pack(delta))


def merge_flop(model: Mapping[str, Any]) -> float:
    """FLOP of W0 + U diag(delta) Vh over all modules."""
    return sum(2.0 * rows * columns * min(rows, columns) for _, rows, columns in modules(model))


@cache
def rollout_bytes(completion_tokens: int) -> float:
    """Bytes of one graded rollout on the wire, by packing one of that length."""
    draw = random.Random(0)
    problem = Problem(id="p", prompt=[{"role": "user", "content": "x"}], gt_answer=["assert f(1) == 1"], func_name="f")
    one = Completion(
        token_ids=[draw.randrange(150_000) for _ in range(completion_tokens)],
        logprobs=[-draw.random() for _ in range(completion_tokens)],
        ref_logprobs=[-draw.random() for _ in range(completion_tokens)],
        text="four" * completion_tokens, finish_reason="stop",
    )  # fmt: skip
    group = RolloutGroup(run_id="r", group_id="r/train/0/0", purpose="train", step=0, problem=problem, policy_version=0,
                         replica="gen-0", prompt_ids=[1], completions=[one], generate_s=1.0)  # fmt: skip
    return float(len(pack(group)))


def step_seconds(model: Mapping[str, Any], n: Mapping[str, float], c: Cluster, groups: int) -> dict[str, float]:
    """Seconds that each part is busy for one step of `groups` groups."""
    rollouts = groups * n["group_size"]
    size = n["completion_tokens"]
    batch = rollouts / c.generators
    rate = n["generate_tokens_s"] * batch / (batch + n["generate_half_batch"])
    train_rate = n["train_tokens_s"] * n["train_parameters"] / float(model["parameters"])
    tokens = rollouts * (n["prompt_tokens"] + size)
    wire = rollouts * rollout_bytes(int(size)) / MB
    push = push_bytes(model) / MB
    return {
        "sample": batch * size / rate,
        "score": tokens / c.generators / (train_rate * n["forwards_in_training"]),
        "grade": rollouts * n["grade_cpu_s"] / c.graders,
        "train": tokens / (c.ranks * train_rate),
        "receive": wire / n["decode_mb_s"],
        "push": push * c.generators / n["network_mb_s"] + merge_flop(model) / n["merge_flop_s"],
        # rollouts and graded groups are each written once and read once; the push is written once and read by all
        "redis": (2 * wire + push) * n["redis_write_s_mb"] + (2 * wire + push * c.generators) * n["redis_read_s_mb"],
    }


def stages(parts: Mapping[str, float], shared: bool) -> dict[str, float]:
    """Parts that wait for each other, as one: what can overlap with the others."""
    card = {
        "generators": parts["sample"] + parts["score"],
        "trainer": parts["receive"] + parts["train"] + parts["push"],
    }
    if shared:
        card = {"card": sum(card.values())}
    return card | {"graders": parts["grade"], "Redis": parts["redis"]}


def graders_needed(parts: Mapping[str, float], c: Cluster, seconds: float) -> int:
    """Graders with which grading takes as long as the rest of a step."""
    return math.ceil(parts["grade"] * c.graders / seconds)


def row(model: Mapping[str, Any], n: Mapping[str, float], c: Cluster, groups: int) -> list[str]:
    parts = step_seconds(model, n, c, groups)
    busy = stages(parts, c.shared)
    step = max(busy.values())
    rest = max(seconds for name, seconds in busy.items() if name != "graders")
    first, second = sorted(busy, key=busy.__getitem__, reverse=True)[:2]
    rollouts = groups * n["group_size"]
    graders = graders_needed(parts, c, rest)
    return [
        str(c.gpus), "shared" if c.shared else f"{c.generators} + {c.ranks}", f"{rollouts:.0f}", f"{rollouts / c.generators:.1f}",
        *(f"{parts[k]:.2f}" for k in ("sample", "score", "train", "receive", "push", "redis")), f"{step:.2f}",
        f"{rollouts * n['completion_tokens'] / step:,.0f}", f"{graders} ({graders / c.gpus:.1f})",
        f"{first}, then {second} ({busy[second] / step:.0%})",
    ]  # fmt: skip


HEAD = ("GPUs", "generators + ranks", "rollouts a step", "a generator", "sample s", "score s", "train s", "receive s", "push s",
        "Redis s", "step s", "tokens/s", "graders (a GPU)", "saturates first")  # fmt: skip


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])


def page(path: Path = ROOT / "deploy" / "scaling.yaml") -> str:
    """What stands between BEGIN and END of docs/scaling.md."""
    model, n, clusters = load(path)
    plan = int(n["groups_per_step"])
    numbers, size = delta_numbers(model), push_bytes(model)
    entries = yaml.safe_load(path.read_text())["numbers"]
    full = float(model["parameters"]) * 2
    return "\n".join([
        f"delta_S has {numbers:,} numbers; a push is {size:,} bytes ({size / full:.3%} of the model in bf16), and merging it "
        f"takes {merge_flop(model) / 1e12:.1f} TFLOP. One rollout of {n['completion_tokens']:.0f} tokens is "
        f"{rollout_bytes(int(n['completion_tokens'])):,.0f} bytes on the wire.", "",
        f"The plan's batch ({plan} groups of {n['group_size']:.0f}), on more cards:", "",
        table(HEAD, [row(model, n, c, plan) for c in clusters]), "",
        f"{plan} groups *a generator*:", "",
        table(HEAD, [row(model, n, c, plan * c.generators) for c in clusters]), "",
        "Computed with:", "",
        table(("number", "value", "unit", "source"),
              [[f"`{k}`", f"{float(e['value']):g}", e["unit"], e["source"]] for k, e in entries.items()]),
    ])  # fmt: skip


def main(argv: list[str]) -> int:
    if argv == ["--write"]:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{page()}\n{END}{rest.partition(END)[2]}")
    elif argv:
        print(__doc__.strip())
        return 0 if argv[0] in ("-h", "--help") else 2
    else:
        print(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
