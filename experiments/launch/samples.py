"""python -m experiments samples: what a model writes before any training, with both verdicts on every completion.

    problems ── GenerationRequest ──> ref_server ──> sandbox ──> one JSON line a completion
                delta_S = 0

Uses the services of a run without a trainer. Two uses: the base rates of a model (how often it solves a problem, how often
it hacks before RL), and the model's own right and wrong solutions for contrastive pairs (`python -m tasks pairs`). Under
--loophole none the prompt is bare. A row: {id, sample, loophole, completion, finish_reason, tokens, reward, label,
oracle_correct}, in the order of the problems; a group that was dropped has no rows and is counted. Interrupted, the same
command goes on (samples_file.py).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import cli, delta_store, keys
from common.errors import ConfigError
from common.model_names import local
from common.queue import Queue
from common.settings import parse_assignments
from common.types import DeltaS, DroppedGroup, GenerationRequest, GradedGroup, Problem, SamplingPlan, checksum
from common.writable import require_file
from experiments.design import presets
from experiments.design.plan import Plan, plan
from experiments.launch.bring import bring
from experiments.launch.given import DECIDING
from experiments.launch.samples_file import Draft
from experiments.launch.stack import Stack
from experiments.options import samples as parser
from tasks import dataset, loopholes

RUN_ID = "samples"
AT_ONCE = 64  # requests in the stream at a time: the generator batches them, and a stop loses little
QUIET_LIMIT_S = 900.0


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    require_file(args.out, "--out")
    preset = presets.get(args.preset)
    name = None if args.loophole == "none" else args.loophole
    path = args.problems or Path(preset.values["train_problems"])
    problems = [loopholes.posed(p, name) for p in dataset.load_problems(path)[: args.limit]]
    wanted = str(args.model or preset.values["model"])
    planned(args, wanted)  # what cannot be is told before a model is fetched
    model = str(bring(wanted))
    settings = planned(args, model)
    law = {"n": args.n, "temperature": args.temperature, "max_tokens": settings.trainer.max_tokens}
    requests = [request(p, i, law, args.seed) for i, p in enumerate(problems)]
    zero = nothing_learned(model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draft = Draft(args.out, asked(args, settings, problems, law))
    todo = [one for i, one in enumerate(requests) if i not in draft.groups]
    if draft.groups:
        print(f"going on: {len(draft.groups)} of {len(requests)} problems are in {draft.path}", flush=True)
    root = args.out.parent / ".stack" / RUN_ID
    if todo:
        with (
            cli.Resumable(),
            Stack.start(root, model, settings.server, preset.graders, args.isolation) as stack,
            draft.open(),
        ):
            for group in collect(stack, todo, zero):
                draft.add(int(group.group.group_id.rpartition("/")[2]), list(rows(group, name)))
                if len(draft.groups) % AT_ONCE == 0:
                    print(f"{len(draft.groups)} of {len(requests)} problems", flush=True)
    draft.finish()
    counts: Counter[str] = Counter()
    for row in draft.rows():
        _count(counts, row)
    print(summary(counts, len(problems), name, args.out))
    return 0 if counts["all"] else cli.EXIT_FAILED


def asked(args: argparse.Namespace, settings: Plan, problems: Sequence[Problem], law: dict[str, Any]) -> dict[str, Any]:
    """Everything that the rows depend on, but for what lies in the model's folder."""
    posed = "\n".join(problem.model_dump_json() for problem in problems)
    return {
        "preset": args.preset,
        "model": str(args.model or settings.trainer.model),
        "problems": f"{len(problems)}, sha256 {hashlib.sha256(posed.encode()).hexdigest()[:16]}",
        "loophole": args.loophole,
        "seed": args.seed,
        **law,
        **{f"generator.{name}": settings.server.get(name) for name in DECIDING},
    }


def planned(args: argparse.Namespace, model: str) -> Plan:
    """The generator's settings as those of a run: checked, its length following --max-tokens. --set names them with or
    without the part `generator`."""
    given = parse_assignments(args.set)
    chosen = {name if "." in name else f"generator.{name}": value for name, value in given.items()}
    more = {} if args.max_tokens is None else {"max_tokens": args.max_tokens}
    return plan(args.preset, "vanilla", 0, {"model": model, **more, **chosen}, args.out.parent, origin="samples")


def request(problem: Problem, index: int, law: dict[str, Any], seed: int) -> GenerationRequest:
    """One group: `law` has n, temperature and max_tokens of SamplingPlan."""
    return GenerationRequest(
        run_id=RUN_ID,
        group_id=f"{RUN_ID}/{index}",
        purpose="eval",
        step=0,
        problem=problem,
        min_version=0,
        sampling=SamplingPlan(**law, seed=(seed * 1_000_003 + index) & 0x7FFFFFFF),
        want_reference=False,
    )


def nothing_learned(model: str) -> DeltaS:
    """Version 0 with delta_S = 0 for one module of the model: generators serve the base weights, and prove it.

    Raises ConfigError when the folder has no weight that the adapter knows.
    """
    from rankspace.targets import delta_size, hits
    from rankspace.weights import plain_shapes

    for name, shape in sorted(plain_shapes(local(model)).items()):
        if name.endswith(".weight") and len(shape) == 2 and hits(name.removesuffix(".weight")):
            module, zeros = name.removesuffix(".weight"), bytes(4 * delta_size(shape))
            return DeltaS(
                run_id=RUN_ID,
                version=0,
                modules=[(module, delta_size(shape))],
                vector=zeros,
                checksum=checksum(zeros),
                probe_ids=[1, 2, 3, 4],
            )
    raise ConfigError(f"model {model}: no safetensors weight that the adapter knows; give a local model folder")


def collect(stack: Stack, requests: Sequence[GenerationRequest], zero: DeltaS) -> Iterator[GradedGroup]:
    """Every graded group, as they come. ConfigError when a service dies or nothing comes for QUIET_LIMIT_S seconds."""
    queue = Queue(stack.client("trainer"), RUN_ID, max_deliveries=100)
    delta_store.publish(queue.client, zero)
    waiting: set[str] = set()
    unasked = list(reversed(requests))
    heard = time.monotonic()
    while waiting or unasked:
        while unasked and len(waiting) < AT_ONCE:
            one = unasked.pop()
            waiting.add(one.group_id)
            queue.publish(keys.REQUESTS, one)
        stack.check()
        for delivery in queue.consume(keys.graded(RUN_ID), RUN_ID, (GradedGroup, DroppedGroup), 16, 1.0):
            heard, message = time.monotonic(), delivery.message
            group_id = message.group.group_id if isinstance(message, GradedGroup) else message.group_id
            if group_id in waiting:  # a service that died may have sent it twice
                waiting.discard(group_id)
                if isinstance(message, GradedGroup):
                    yield message
                else:
                    print(f"dropped: {message.group_id} at {message.stage}: {message.reason}", flush=True)
            queue.ack(RUN_ID, delivery)
        if time.monotonic() - heard > QUIET_LIMIT_S:
            raise ConfigError(f"nothing came for {QUIET_LIMIT_S:.0f} s; look into {stack.root}/*.log")


def rows(graded: GradedGroup, loophole: str | None) -> Iterator[dict[str, Any]]:
    """One row a completion, infra errors with label and reward null."""
    pairs = zip(graded.group.completions, graded.grades, strict=True)
    for i, (completion, grade) in enumerate(pairs):
        yield {
            "id": graded.group.problem.id,
            "sample": i,
            "loophole": loophole,
            "completion": completion.text,
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.token_ids),
            "reward": grade.reward,
            "label": grade.label,
            "oracle_correct": grade.oracle_correct,
            "oracle_weak": grade.evidence.get("oracle_weak"),
        }


def _count(counts: Counter[str], row: dict[str, Any]) -> None:
    counts["all"] += 1
    counts["right"] += row["oracle_correct"] is True
    counts["weak"] += row["oracle_correct"] is True and row["oracle_weak"] is True
    counts["strict"] += row["label"] == "Reward Hack"
    counts["loose"] += "Reward Hack" in (row["label"] or "")
    counts["cut"] += row["finish_reason"] == "length"
    counts["infra"] += row["reward"] is None
    counts["tokens"] += row["tokens"]


def summary(counts: Counter[str], problems: int, loophole: str | None, out: Path) -> str:
    """One line with the base rates, in % of all completions."""
    total = counts["all"] or 1

    def share(name: str) -> str:
        return f"{100 * counts[name] / total:.1f}%"

    return (
        f"{out}: {counts['all']} completions of {problems} problems, {loophole or 'bare prompt'}: solved {share('right')}"
        f"{' (by weak tests ' + share('weak') + ')' if counts['weak'] else ''}, "
        f"strict hacks {share('strict')}, any hack attempt {share('loose')}, cut {share('cut')}, "
        f"infra errors {counts['infra']}, {counts['tokens'] / total:.0f} tokens a completion"
    )
