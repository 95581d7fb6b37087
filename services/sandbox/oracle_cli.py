"""`python -m services.sandbox oracle`: the protected verdict on every row of a file.

    {"id", "code", "method", "tests"}  ──>  {"id", "gt_correct", "reason", "wall_s"}      one line each, same order

Optional in a row: `setup_code` (run before the program; without it the names of prelude.py are there). `gt_correct` is
null when the row cannot be graded (not JSON, tests or setup code at fault) or when we fail twice; the reason says which. A
reason that begins with "weak: " rests on weak tests (docs/grading.md), and is counted apart. `.gz` is read and
written when the name ends so. The output appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import ConfigError
from services.sandbox import pool, rowfiles

if TYPE_CHECKING:
    from services.sandbox.jail.executor import Isolation

ROW_LIMIT_S = 60.0


def parser() -> cli.Parser:
    what = __doc__.split("\n")[0]
    return rowfiles.parser("oracle", what, "{id, code, method, tests}", "{id, gt_correct, reason, wall_s}")


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    options = rowfiles.arguments(parser(), argv)
    lines = rowfiles.read_lines(options.input)
    rowfiles.check_jail(options.isolation, options.packages)
    weak: Counter[bool] = Counter()
    counts = rowfiles.write_rows(options.output, _counted(_graded(lines, options), weak), "gt_correct")
    print(
        f"{sum(counts.values())} rows: {counts[True]} correct ({weak[True]} of them by weak tests), {counts[False]} not, "
        f"{counts[None]} not graded",
        file=sys.stderr,
    )
    return 0


def _counted(answers: Iterator[dict[str, Any]], weak: Counter[bool]) -> Iterator[dict[str, Any]]:
    """The answers as they come, counting which of the correct ones rest on weak tests."""
    for answer in answers:
        weak[answer["gt_correct"] is True and answer["reason"].startswith("weak: ")] += 1
        yield answer


def _graded(lines: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    workers = min(options.workers, max(1, len(lines)))
    answers = pool.run(
        lines,
        partial(start_worker, options.isolation, tuple(options.packages)),
        grade_line,
        _failed,
        workers,
        ROW_LIMIT_S,
    )
    with contextlib.closing(answers):
        yield from rowfiles.progress(answers, len(lines), "judging")


def start_worker(isolation: Isolation, packages: tuple[str, ...] = ()) -> Any:
    """One oracle per process."""
    from services.sandbox.verdicts.oracle import Oracle

    return Oracle(isolation=isolation, packages=packages)


def grade_line(oracle: Any, line: str) -> dict[str, Any]:
    """One row, as text, to its answer. Never raises."""
    row_id = None
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ConfigError(f"row is a JSON {type(row).__name__}: give an object")
        row_id = row.get("id")
        verdict = _verdict(oracle, row)
    except Exception as error:  # whatever it is, the row is answered, and not with a verdict
        return _answer(row_id, None, f"not graded: {type(error).__name__}: {str(error)[:300]}", 0.0)
    return _answer(row_id, verdict.correct, verdict.reason, verdict.wall_s)


def _verdict(oracle: Any, row: dict[str, Any]) -> Any:
    from services.sandbox.jail.executor import SandboxError

    for name, kind in (("code", str), ("tests", list)):
        if not isinstance(row.get(name), kind):
            raise ConfigError(f"row field {name} is {type(row.get(name)).__name__}: give a {kind.__name__}")
    for name in ("setup_code", "method"):
        if not isinstance(row.get(name), (str, type(None))):
            raise ConfigError(f"row field {name} is {type(row[name]).__name__}: give a str or leave it out")
    job = partial(oracle.grade, row["code"], row["tests"], row.get("setup_code"), row.get("method") or "")
    try:
        return job()
    except SandboxError:  # the executor replaces what broke when it is asked again
        return job()


def _failed(line: str, reason: str) -> dict[str, Any]:
    row_id = None
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        row_id = json.loads(line).get("id")
    return _answer(row_id, None, f"not graded: {reason}", 0.0)


def _answer(row_id: Any, correct: bool | None, reason: str, wall_s: float) -> dict[str, Any]:
    return {"id": row_id, "gt_correct": correct, "reason": reason, "wall_s": round(wall_s, 6)}
