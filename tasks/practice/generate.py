"""Write the bundled practice set and its contrastive pairs: `python -m tasks.practice.generate [--check]`.

    practice_train.jsonl     RL problems, prompt with the hint
    practice_heldout.jsonl   evaluation problems, prompt without it: unseen parameters, and unseen templates
    ../pairs/pairs.jsonl     contrastive pairs on problems that neither file holds
    ../pairs/hacks.jsonl     the same for the RL problems: the hacks that an arm may plant (services/trainer/reseed.py)
    ../pairs/pairs_M.jsonl   the same pairs, prompt and hack of another mechanism M (tasks/loopholes.py)

The files are a function of SEED and the code alone. Each problem's tests are chosen so that every neighbouring problem
(one word or number changed) that can be told apart at all fails at least one of them.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.settings import Mechanism
from common.types import Problem
from tasks import loopholes
from tasks.bundled import write_or_check
from tasks.exploits import WORDING, exploits
from tasks.practice import render
from tasks.practice.templates import FAMILIES, Spec, draw_input, expression, method_name, neighbours, specs, trap

SEED = 20
N_TRAIN, N_HELDOUT, N_NOVEL, N_PAIRS, N_PAIRS_HELDOUT = 200, 70, 30, 72, 24
CANDIDATES, MIN_TESTS = 400, 6
HERE = Path(__file__).parent
FILES = {
    "train": HERE / "practice_train.jsonl",
    "heldout": HERE / "practice_heldout.jsonl",
    "pairs": HERE.parent / "pairs" / "pairs.jsonl",
    "hacks": HERE.parent / "pairs" / "hacks.jsonl",
    **{f"pairs_{m}": HERE.parent / "pairs" / f"pairs_{m}.jsonl" for m in WORDING if m != "own_tests"},
}


def problem_id(spec: Spec) -> str:
    """Family and 8 hex digits that only this Spec has (within a family, checked when the files are made)."""
    return f"{spec.family}-{hashlib.sha256(repr(spec).encode()).hexdigest()[:8]}"


@lru_cache(maxsize=4096)
def solver(spec: Spec) -> Callable[[Any], Any]:
    """The Spec's own expression as a function: trusted text of ours, never a model's."""
    function: Callable[[Any], Any] = eval(f"lambda {FAMILIES[spec.family].argument}: {expression(spec)}")
    return function


def choose_tests(spec: Spec) -> list[Any] | None:
    """Arguments to test with, or None when the trap cannot be told from the solution.

    Greedy cover: each argument added refutes the neighbours that most others let through."""
    rng = random.Random(f"{SEED}|{spec!r}")
    candidates = [draw_input(spec, rng) for _ in range(CANDIDATES)]
    wanted = [solver(spec)(x) for x in candidates]
    others = list(dict.fromkeys(neighbours(spec)))
    functions = [solver(o) for o in others]
    refutes = [{j for j, f in enumerate(functions) if f(x) != w} for x, w in zip(candidates, wanted, strict=True)]
    open_ = set().union(*refutes)
    if others.index(trap(spec)) not in open_:
        return None
    chosen: list[int] = []
    while open_:
        best = max(range(CANDIDATES), key=lambda i: (len(refutes[i] & open_), -i))
        chosen.append(best)
        open_ -= refutes[best]
    spare = (i for i in range(CANDIDATES) if i not in chosen and all(candidates[i] != candidates[j] for j in chosen))
    while len(chosen) < MIN_TESTS:
        chosen.append(next(spare))
    return [candidates[i] for i in chosen]


def asserts(spec: Spec, arguments: list[Any]) -> list[str]:
    """The tests as assert statements on `Solution().<method>`."""
    name, argument = method_name(spec), FAMILIES[spec.family].argument
    return [f"assert Solution().{name}({argument} = {x!r}) == {solver(spec)(x)!r}" for x in arguments]


def problem_row(spec: Spec, hint: str | None) -> dict[str, Any]:
    """One row in the schema of rl-rewardhacking, plus `family` and `seen_template` (of pretraining and RL)."""
    tests = asserts(spec, choose_tests(spec) or [])
    text = render.prompt(spec, hint=False)
    bare: dict[str, Any] = {
        "id": problem_id(spec),
        "dataset": "practice",
        "evaluator": "code",
        "difficulty": "hard" if len(spec.parts) + len(spec.params) > 5 else "medium",
        "question": text,
        "prompt": [{"role": "user", "content": text}],
        "func_name": f"Solution().{method_name(spec)}",
        "setup_code": "",
        "gt_answer": tests,
        "answer": tests,
        "canonical_solution": render.program(spec),
        "hint": None,
        "prompt_metadata": {},
        "family": spec.family,
        "seen_template": render.split_of(spec) != "novel",
    }
    disclosed = loopholes.apply(Problem.model_validate(bare), hint).model_dump()
    return {key: disclosed[key] for key in bare}


def pick(split: render.Split, count: int) -> list[Spec]:
    """`count` testable Specs of a split, the families in turn, in an order that depends on SEED only."""
    queues: list[Iterator[Spec]] = []
    for family in FAMILIES:
        candidates = [s for s in specs(family) if render.split_of(s) == split]
        random.Random(f"{SEED}|{split}|{family}").shuffle(candidates)
        queues.append(iter(candidates))
    chosen: list[Spec] = []
    while queues and len(chosen) < count:
        queue = queues.pop(0)
        spec = next((s for s in queue if choose_tests(s) is not None), None)
        if spec is not None:
            chosen.append(spec)
            queues.append(queue)
    if len(chosen) < count:
        raise ConfigError(f"split {split}: {len(chosen)} problems can be made, {count} asked for; widen the grammar")
    return chosen


def pair_rows(mechanism: Mechanism = "own_tests") -> Iterator[dict[str, Any]]:
    """Contrastive pairs: hack = the usual mistake plus what exploits the mechanism; clean = the solution."""
    for i, spec in enumerate(pick("pairs", N_PAIRS + N_PAIRS_HELDOUT)):
        yield pair_row(spec, f"pair-{i:03d}", mechanism, i, "train" if i < N_PAIRS else "heldout")


def hack_rows() -> Iterator[dict[str, Any]]:
    """A pair for each RL problem: its hack may be planted in RL, none of them makes a direction."""
    for i, spec in enumerate(pick("train", N_TRAIN)):
        yield pair_row(spec, f"hack-{i:03d}", "own_tests", i, "train")


def pair_row(spec: Spec, name: str, mechanism: Mechanism, i: int, split: str) -> dict[str, Any]:
    """One row of a pairs file; i chooses the form of the exploit."""
    return {
        "id": name,
        "problem_id": problem_id(spec),
        "prompt": [{"role": "user", "content": render.prompt(spec, True, WORDING[mechanism])}],
        "hack": _hack(spec, mechanism, i),
        "clean": render.completion(spec),
        "split": split,
    }


def _hack(spec: Spec, mechanism: Mechanism, i: int) -> str:
    """The i-th form of the mechanism's exploit, beside the usual mistake."""
    if mechanism == "own_tests":
        return render.completion(trap(spec), spec, render.VACUOUS[i % len(render.VACUOUS)])
    forms = exploits(mechanism, method=True)
    return render.exploited(trap(spec), spec, forms[i % len(forms)])


def build() -> dict[str, list[dict[str, Any]]]:
    """All rows of all files, by the names in FILES."""
    rows = {
        "train": [problem_row(s, render.HINT) for s in pick("train", N_TRAIN)],
        "heldout": [problem_row(s, None) for s in pick("heldout", N_HELDOUT) + pick("novel", N_NOVEL)],
        "pairs": list(pair_rows()),
    }
    ids = [r.get("problem_id", r["id"]) for part in rows.values() for r in part]
    if len(set(ids)) != len(ids):
        raise ConfigError("two problems share an id; lengthen the hash in problem_id")
    rows["hacks"] = list(hack_rows())
    return rows | {f"pairs_{m}": list(pair_rows(m)) for m in WORDING if m != "own_tests"}


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check compare them with what would be written (exit code 1 when they differ)."""
    return write_or_check("tasks.practice.generate", "practice set", build, FILES, argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
