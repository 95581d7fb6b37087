"""python -m tasks check FILE...: whether files of problems load; every fault as file:line, field and what to do."""

from __future__ import annotations

import sys
from collections import Counter

from common import cli
from tasks.dataset import load_problems, problem_faults

SHOWN = 50


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m tasks check", description=__doc__)
    p.add_argument("files", nargs="+", metavar="FILE", help="problems, JSON lines or .gz")
    return p


def main(argv: list[str]) -> int:
    """Exit code 0 when all files load, 2 when one does not."""
    wrong = 0
    for path in parser().parse_args(argv).files:
        faults = list(problem_faults(path))
        for fault in faults[:SHOWN]:
            cli.fail(fault)
        if len(faults) > SHOWN:
            print(f"... and {len(faults) - SHOWN} more in {path}", file=sys.stderr)
        if not faults:
            problems = load_problems(path)
            tasks, hints = Counter(p.task for p in problems), Counter(p.hint or "none" for p in problems)
            counted = ", ".join(f"{count} {name}" for name, count in sorted(tasks.items()))
            print(
                f"{path}: {counted}; loophole: {', '.join(f'{name} {count}' for name, count in sorted(hints.items()))}"
            )
        wrong += bool(faults)
    return cli.EXIT_USER_ERROR if wrong else 0
