"""python -m tasks fetch DATASET --out FILE: problems of a public dataset, in the schema that everything here reads.

    leetcode   newfacade/LeetCodeDataset on the Hugging Face Hub, posed as in rl-rewardhacking
    gsm8k      openai/gsm8k, task maths

With a network the rows come from the Hub (package `datasets`); without one, fetch the dataset's JSON lines elsewhere and
give them with --from. Rows that cannot be converted are left out, and said so. The file appears when it is complete.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from tasks import gsm8k, leetcode
from tasks.dataset import load_problems, objects, save_rows

SPLITS = ("train", "test")
REASONS_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """A dataset: where it is on the Hub, and its pure conversion (row, name) -> Problem row."""

    repository: str
    configuration: str | None
    convert: Callable[[dict[str, Any], str], dict[str, Any]]


SOURCES = {
    "leetcode": Source(leetcode.REPOSITORY, None, lambda row, _: leetcode.convert(row)),
    "gsm8k": Source(gsm8k.REPOSITORY, gsm8k.CONFIGURATION, gsm8k.convert),
}


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m tasks fetch", description=__doc__)
    p.add_argument("dataset", choices=list(SOURCES))
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the problems go, JSON lines")
    p.add_argument("--split", choices=SPLITS, default="train")
    p.add_argument("--from", dest="source", type=Path, metavar="FILE", help="the dataset's own rows, JSON lines or .gz")
    p.add_argument("--difficulty", metavar="A,B", help=f"leetcode only: some of {', '.join(leetcode.DIFFICULTIES)}")
    p.add_argument("--limit", type=int, metavar="N", help="at most so many problems, the first of the file")
    return p


def main(argv: list[str]) -> int:
    """Exit code 0 with the file written, 2 for what the user can put right."""
    args = parser().parse_args(argv)
    wanted = _difficulties(args)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: give a number from 1 on")
    source = SOURCES[args.dataset]
    rows = (row for _, row in objects(args.source)) if args.source else download(source, args.split)
    problems, left_out = take(source, rows, f"{args.dataset}-{args.split}", wanted, args.limit)
    for reason in left_out[:REASONS_SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    if not problems:
        raise ConfigError(f"{args.dataset}: no problem is left ({len(left_out)} rows could not be converted)")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draft = args.out.with_name(f".{args.out.name}.draft")
    save_rows(draft, problems)
    try:
        load_problems(draft)
        os.replace(draft, args.out)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{args.out}: {len(problems)} problems; {len(left_out)} rows left out")
    return 0


def take(
    source: Source, rows: Iterator[dict[str, Any]], name: str, difficulties: frozenset[str], limit: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """(problems, why each other row is none of them), the rows of a difficulty that is not wanted aside. Pure."""
    problems: list[dict[str, Any]] = []
    left_out: list[str] = []
    for number, row in enumerate(rows):
        if difficulties and str(row.get("difficulty", "")).lower() not in difficulties:
            continue
        try:
            problems.append(source.convert(row, f"{name}-{number}"))
        except ConfigError as error:
            left_out.append(str(error))
        if len(problems) == limit:
            break
    return problems, left_out


def download(source: Source, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split from the Hub. ConfigError, one line, when the package or the network is missing."""
    instead = f"or fetch its JSON lines elsewhere and give them with --from FILE (huggingface.co/datasets/{source.repository})"
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(
            f"the package datasets is not installed; run `pip install datasets` (extra: '.[hub]'), {instead}"
        )
    datasets = importlib.import_module("datasets")

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(source.repository, source.configuration, split=split)
    except Exception as error:  # whatever the client raises without a network, a proxy, an account or the repository
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ConfigError(f"cannot fetch {source.repository} ({reason}); try again later, {instead}") from None


def _difficulties(args: argparse.Namespace) -> frozenset[str]:
    if args.difficulty is None:
        return frozenset()
    if args.dataset != "leetcode":
        raise ConfigError(f"--difficulty: {args.dataset} has none; leave it out")
    names = frozenset(args.difficulty.lower().split(","))
    if unknown := names - set(leetcode.DIFFICULTIES):
        raise ConfigError(f"--difficulty {sorted(unknown)[0]!r}: choose from {', '.join(leetcode.DIFFICULTIES)}")
    return names
