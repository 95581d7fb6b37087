"""python -m tasks check FILE...: whether problems load and can be graded; every fault as file:line, field and what to do.

Checked in each row: fields, tests (each asserts something that depends on the solution), setup code and canonical solution
parse, the loophole is known and stands in the prompt. --solutions runs the canonical solutions through the grader too.
"""

from __future__ import annotations

import sys
from collections import Counter

from common import cli
from tasks import solutions, soundness
from tasks.dataset import load_problems, objects, problem_faults

SHOWN = 50


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m tasks check", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    p.add_argument("files", nargs="+", metavar="FILE", help="problems, JSON lines or .gz")
    p.add_argument("--solutions", action="store_true", help="grade the canonical solutions: each must be right")
    p.add_argument(
        "--isolation",
        choices=("required", "best_effort"),
        default="required",
        help="for --solutions: refuse when a layer of the jail is missing (default), or go without it",
    )
    return p


def main(argv: list[str]) -> int:
    """Exit code 0 when all files are sound, 2 when one is not."""
    options = parser().parse_args(argv)
    wrong = 0
    for path in options.files:
        faults = list(problem_faults(path, soundness.faults))
        if options.solutions and not faults:
            faults = _solution_faults(path, options.isolation)
        for fault in faults[:SHOWN]:
            cli.fail(fault)
        if len(faults) > SHOWN:
            print(f"... and {len(faults) - SHOWN} more in {path}", file=sys.stderr)
        if not faults:
            print(_held(path, options.solutions))
        wrong += bool(faults)
    return cli.EXIT_USER_ERROR if wrong else 0


def _solution_faults(path: str, isolation: str) -> list[str]:
    lines = [number for number, _ in objects(path)]
    return [f"{path}:{lines[at]}: {said}" for at, said in solutions.faults(load_problems(path), isolation)]


def _held(path: str, graded: bool) -> str:
    problems = load_problems(path)
    tasks, hints = Counter(p.task for p in problems), Counter(p.hint or "none" for p in problems)
    counted = ", ".join(f"{count} {name}" for name, count in sorted(tasks.items()))
    said = f"{path}: {counted}; loophole: {', '.join(f'{name} {count}' for name, count in sorted(hints.items()))}"
    right = sum(bool(p.canonical_solution) and p.task == "code" for p in problems)
    return f"{said}; canonical solutions right: {right}" if graded else said
