"""python -m tasks split: set problems of a file aside, to ask about held-out problems of the same family.

    problems ── seeded choice of N ──┬─> OUT:  the N set aside, in the file's order
                                     └─> REST: all others, to train on

Rows are written as they were read, without fields that are null. The same file, N and seed give the same two files.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from common import cli
from common.errors import ConfigError
from tasks import dataset

Row = TypeVar("Row")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    problems: list[dict[str, Any]] = [p.model_dump(exclude_none=True) for p in dataset.load_problems(args.problems)]
    if not 0 < args.n < len(problems):
        raise ConfigError(
            f"--n is {args.n}, {args.problems} has {len(problems)} problems; give 1 to {len(problems) - 1}"
        )
    aside, rest = chosen(problems, args.n, args.seed)
    for path, rows in ((args.out, aside), (args.rest, rest)):
        dataset.save_rows(path, rows)
        print(f"{path}: {len(rows)} problems")
    return 0


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m tasks split", description=cli.docstring("tasks.split"))
    p.add_argument("--problems", type=Path, required=True, help="JSON lines of problems, also .gz")
    p.add_argument("--n", type=int, required=True, help="problems to set aside")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help="the problems set aside")
    p.add_argument("--rest", type=Path, required=True, help="all others")
    return p


def chosen(rows: Sequence[Row], n: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(n rows chosen by seed, all others), each in the order of `rows`."""
    picked = set(random.Random(seed).sample(range(len(rows)), n))
    return [row for i, row in enumerate(rows) if i in picked], [row for i, row in enumerate(rows) if i not in picked]
