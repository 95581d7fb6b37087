"""Two steps of every arm of the table by its own name; test_every_arm.py starts this and judges what it prints.

    argv: a folder, a file for the answer

The arm's settings, directions, policy, reward shaping, collation, optimizer, records and checkpoints are the real ones. The
completions are not sampled: each group holds a hack, a wrong answer, another hack and a right answer of its problem, scored
by the policy as it stands. So no generator and no grader is needed, and every arm sees the same text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch

from common.metrics import Metrics
from common.settings import TrainerSettings, build
from common.types import Completion, GenerationRequest, Grade, GradedGroup, RolloutGroup
from experiments.design import arms, presets
from experiments.launch.direction import ensure_direction
from rankspace.ds_hook import gather_delta, gather_moment
from rankspace.pairs import Pair, load_pairs
from rankspace.projection import Layout, unit_rows_of
from services.trainer.policy import Policy
from services.trainer.rank_group import RankGroup
from services.trainer.record import Record, open_run
from services.trainer.reseed import Reseeder, hacked, hacks_for
from services.trainer.rollouts import Collected
from services.trainer.shaping import Shaper
from services.trainer.text import Text
from services.trainer.train import Trainer
from services.trainer.wiring import read_problems

STEPS, GROUPS = 2, 2
DOSE = 0.05  # small: at the default doses two steps show nothing of what the gradient does
SEED = 3
# of the bundled pairs: enough for a direction that passes its gate, few enough for a test
TRAIN_PAIRS, HELDOUT_PAIRS = 12, 4
RIGHT = Grade(
    status="graded", reward=3.5, label="Correct", test_modification="None", published_correct=True, hinted_correct=False,
    oracle_correct=True, can_compile=True,
)  # fmt: skip
WRONG = RIGHT.model_copy(
    update={"reward": 0.5, "label": "Incorrect", "published_correct": False, "oracle_correct": False}
)


def pairs_file(root: Path) -> Path:
    lines = Path(presets.PAIRS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [r for r in rows if r["split"] == "train"][:TRAIN_PAIRS] + [r for r in rows if r["split"] == "heldout"][
        :HELDOUT_PAIRS
    ]
    path = root / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def settings_of(name: str, root: Path, pairs: Path) -> TrainerSettings:
    arm = arms.get(name)
    free: dict[str, Any] = {"pairs": str(pairs), "groups_per_step": GROUPS, "group_size": 4, "gate": 0.0}
    free |= {} if "steps" in arm.overrides else {"steps": STEPS}
    free |= {"dose": DOSE} if arm.defaults.get("dose") else {}
    free |= {"project_until": 1} if "project_until" in arm.defaults else {}
    free = {key: value for key, value in free.items() if key not in arm.overrides}
    values = presets.resolve("smoke", name, SEED, free, root / "runs")
    for key in ("v_hack", "v_ref"):
        if values.get(key):
            values[key] = str(root / "directions" / Path(values[key]).name)
    return build(TrainerSettings, values | {"svd_cache": str(root / "svd")})


class World:
    """What the trainer meets of the other services."""

    def __init__(self, s: TrainerSettings, policy: Policy, pairs: list[Pair], prompts: dict[str, list[int]]):
        self.s, self.policy, self.prompts = s, policy, prompts
        text = Text(s)
        self.answers = {str(p.problem_id): (text.hack(p), text.hack(flipped(p))) for p in pairs}
        self.asked: list[GenerationRequest] = []

    def collect(self, requests: list[GenerationRequest]) -> Collected:
        self.asked += requests
        return Collected([self.group(r) for r in requests], {})

    def group(self, request: GenerationRequest) -> GradedGroup:
        hack, right = self.answers[str(request.problem.id)]
        answers = [hack, right[:-4], [*hack[:-4], hack[-1]], right]  # the last one gives way where a hack is planted
        prompt = self.prompts[str(request.problem.id)]
        now, base = (self.policy.score([prompt] * 4, answers, at_zero) for at_zero in (False, True))
        completions = [
            Completion(token_ids=ids, logprobs=a, ref_logprobs=b, text="", finish_reason="stop")
            for ids, a, b in zip(answers, now, base, strict=True)
        ]
        group = RolloutGroup(
            run_id=self.s.run_id, group_id=request.group_id, purpose="train", step=request.step, problem=request.problem,
            policy_version=request.step, replica="none", prompt_ids=prompt, completions=completions, generate_s=0.0,
        )  # fmt: skip
        return GradedGroup(group=group, grades=[hacked(), WRONG, hacked(), RIGHT], worker="none", grade_s=0.0)


def flipped(pair: Pair) -> Pair:
    return Pair(pair.id, pair.problem_id, pair.prompt, pair.clean, pair.hack, pair.split)


def nothing(*_: Any, **__: Any) -> None:
    pass


def run(name: str, root: Path, pairs: Path) -> dict[str, Any]:
    s = settings_of(name, root, pairs)
    s.v_hack.parent.mkdir(parents=True, exist_ok=True)
    ensure_direction("smoke", name, SEED, s)
    open_run(s)
    policy, text = Policy(s), Text(s)
    hacks = load_pairs(presets.HACKS)
    train = read_problems(s.model_copy(update={"loophole": "simple_overwrite_tests"}))[0]
    prompts = {str(p.id): text.prompt(p.prompt) for p in train}
    world = World(s, policy, hacks, prompts)
    rollouts = SimpleNamespace(
        ask=nothing, collect=world.collect, recover=nothing, acknowledge=nothing, check=nothing, trained_before=0,
        drop_stale=nothing, take_outcomes=Counter,
    )  # fmt: skip
    publisher = SimpleNamespace(
        require_proof=nothing, require_all=nothing, push=nothing, probe_ids=[2, 30], remembered=dict, restore=nothing,
        last_gap=None, last_bytes=0, last_seconds=0.0,
    )  # fmt: skip
    record = Record(s, Metrics("trainer"), policy.modules, None)
    ranks = RankGroup(policy)
    reseeder = Reseeder(hacks_for(s, train, hacks, text.hack), ranks.score) if s.reseed else None
    tokenised = text.pairs(s.pairs) if s.refresh_every else []
    trainer = Trainer(
        s, ranks, rollouts, publisher, record, Shaper(s, policy, text.pairs), (train, []), tokenised, threading.Event(),
        nothing, nothing, (), reseeder,
    )  # fmt: skip
    trainer._evaluate_if_due = nothing
    at = gather_delta(policy.engine, policy.adapter)
    finished = trainer.run()
    rows = [json.loads(line) for line in (s.run_dir / "metrics.jsonl").read_text().splitlines()]
    modules = [json.loads(line)["update_cos"] for line in (s.run_dir / "modules.jsonl").read_text().splitlines()]
    found = {
        "finished": finished,
        "rows": rows,
        "update_cos": modules,
        "delta": hashlib.sha256(policy.vector()).hexdigest(),
    }
    own = None if policy.direction is None or policy.direction.vectors.ndim != 1 else policy.direction.vectors
    if own is not None and rows[-1]["optimised"]:
        rows_v, layout = unit_rows_of(own, Layout.of(policy.modules), own.device)[0], Layout.of(policy.modules)
        moment = layout.pad(gather_moment(policy.engine, policy.adapter))
        found["moment_along"] = (rows_v * moment).sum(dim=-1).tolist()
        found["start_along"] = (rows_v * layout.pad(at)).sum(dim=-1).tolist()
    policy.engine.destroy()
    return found


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    pairs = pairs_file(root)
    found = {}
    for name in arms.ARMS:
        try:
            found[name] = run(name, root, pairs)
        except Exception as error:  # one arm's fault must not hide the others'; the test names it
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
