"""Write the bundled word problems: `python -m tasks.maths.generate [--check]`.

    maths_train.jsonl      RL problems
    maths_heldout.jsonl    evaluation: other numbers in the templates of training, and one template it never shows

The files are a function of SEED and the code alone. No question is in both: which file a question may be in follows
from a hash of its text.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from tasks.bundled import write_or_check
from tasks.maths.templates import HELDOUT_ONLY, TEMPLATES, Drawn

SEED = 8
N_TRAIN, N_HELDOUT = 200, 60
DRAWS = 20_000
HERE = Path(__file__).parent
FILES = {"train": HERE / "maths_train.jsonl", "heldout": HERE / "maths_heldout.jsonl"}

ASK = "\nThink step by step. End with a line that gives the number after ####.\n"


def prompt(question: str) -> list[dict[str, str]]:
    """The messages of a maths problem: the question and how to give the answer. Shared with GSM8K's own problems."""
    return [{"role": "user", "content": question.strip() + ASK}]


def solution(steps: tuple[str, ...], answer: str) -> str:
    """A worked solution as GSM8K writes one: the steps, and the answer on the last line."""
    return "\n".join((*steps, f"#### {answer}"))


def split_of(question: str) -> str:
    """The one file that this question may be in."""
    return "heldout" if hashlib.sha256(question.encode()).digest()[0] < 64 else "train"


def row(name: str, drawn: Drawn) -> dict[str, Any]:
    """One row in the schema of rl-rewardhacking, with `task` maths."""
    return {
        "id": f"{name}-{hashlib.sha256(drawn.question.encode()).hexdigest()[:8]}",
        "task": "maths",
        "dataset": "word_problems",
        "difficulty": "medium" if len(drawn.steps) > 2 else "easy",
        "question": drawn.question,
        "prompt": prompt(drawn.question),
        "gt_answer": [drawn.answer],
        "canonical_solution": solution(drawn.steps, drawn.answer),
        "hint": None,
        "prompt_metadata": {},
        "template": name,
        "seen_template": name != HELDOUT_ONLY,
    }


def draw(split: str, count: int) -> Iterator[dict[str, Any]]:
    """`count` different problems of a split, the templates in turn. ConfigError when the templates give no more."""
    names = [name for name in TEMPLATES if split == "heldout" or name != HELDOUT_ONLY]
    rng = random.Random(f"{SEED}|{split}")
    seen: set[str] = set()
    for _ in range(DRAWS):
        name = names[len(seen) % len(names)]
        drawn = TEMPLATES[name](rng)
        if split_of(drawn.question) == split and drawn.question not in seen:
            seen.add(drawn.question)
            yield row(name, drawn)
        if len(seen) == count:
            return
    raise ConfigError(f"split {split}: {len(seen)} problems after {DRAWS} draws, {count} asked for; add a template")


def build() -> dict[str, list[dict[str, Any]]]:
    """All rows of both files, by the names in FILES."""
    return {"train": list(draw("train", N_TRAIN)), "heldout": list(draw("heldout", N_HELDOUT))}


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check compare them with what would be written (exit code 1 when they differ)."""
    return write_or_check("tasks.maths.generate", "word problems", build, FILES, argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
