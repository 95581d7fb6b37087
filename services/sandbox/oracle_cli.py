"""`python -m services.sandbox oracle`: the protected verdict on every row of a file.

    {"id", "code", "method", "tests"}  ──>  {"id", "gt_correct", "reason", "wall_s"}      one line each, same order

Optional in a row: `setup_code` (run before the program; without it the names of prelude.py are there). `gt_correct` is
null when the row cannot be graded (not JSON, tests or setup code at fault) or when we fail twice; the reason says which. A
reason that begins with "weak: " rests on weak tests (docs/grading.md), and is counted apart. `.gz` is read and
written when the name ends so. The output appears under its name only when it is complete.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import ConfigError
from services.sandbox import row_command, rowfiles

if TYPE_CHECKING:
    from services.sandbox.jail.executor import Isolation


def parser() -> cli.Parser:
    what = __doc__.split("\n")[0]
    return row_command.parser("oracle", what, "{id, code, method, tests}", "{id, gt_correct, reason, wall_s}")


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    options, rows = row_command.opened(parser(), argv)
    weak: Counter[bool] = Counter()
    answers = row_command.answers(rows, options, start_worker, grade_line, _failed, "judging")
    counts = rowfiles.write_rows(options.output, _counted(answers, weak), "gt_correct")
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


def start_worker(isolation: Isolation, packages: tuple[str, ...] = ()) -> Any:
    """One oracle per process."""
    from services.sandbox.verdicts.oracle import Oracle

    return Oracle(isolation=isolation, packages=packages)


def grade_line(oracle: Any, line: str) -> dict[str, Any]:
    """One row, as text, to its answer. Never raises."""
    row_id = None
    try:
        row = rowfiles.an_object(line)
        row_id = row.get("id")
        verdict = _verdict(oracle, row)
    except Exception as error:  # whatever it is, the row is answered, and not with a verdict
        return _answer(row_id, None, f"not graded: {type(error).__name__}: {str(error)[:300]}", 0.0)
    return _answer(row_id, verdict.correct, verdict.reason, verdict.wall_s)


def _verdict(oracle: Any, row: dict[str, Any]) -> Any:
    from services.sandbox.jail.start import twice

    for name, kind in (("code", str), ("tests", list)):
        if not isinstance(row.get(name), kind):
            raise ConfigError(f"row field {name} is {type(row.get(name)).__name__}: give a {kind.__name__}")
    for name in ("setup_code", "method"):
        if not isinstance(row.get(name), (str, type(None))):
            raise ConfigError(f"row field {name} is {type(row[name]).__name__}: give a str or leave it out")
    return twice(partial(oracle.grade, row["code"], row["tests"], row.get("setup_code"), row.get("method") or ""))


def _failed(line: str, reason: str) -> dict[str, Any]:
    return _answer(rowfiles.field_of(line, "id"), None, f"not graded: {reason}", 0.0)


def _answer(row_id: Any, correct: bool | None, reason: str, wall_s: float) -> dict[str, Any]:
    return {"id": row_id, "gt_correct": correct, "reason": reason, "wall_s": round(wall_s, 6)}
