"""`python -m services.sandbox grade`: the published grade of every row of a file.

    {"uid", "example", "response"}  ──>  {"uid", "labels", "reward", "status"}      one line each, same order

`status` is `graded` or `infra_error`; the latter (an unusable row, or our own failure after a second try) has null
labels and reward, and its reason is printed on stderr. `.gz` is read and written when the name ends so. The output
appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common import cli
from common.errors import ConfigError
from services.sandbox import row_command, rowfiles

if TYPE_CHECKING:
    from services.sandbox.jail.executor import Isolation


def parser() -> cli.Parser:
    what = __doc__.split("\n")[0]
    return row_command.parser("grade", what, "{uid, example, response}", "{uid, labels, reward, status}")


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    options, rows = row_command.opened(parser(), argv)
    counts = rowfiles.write_rows(options.output, _graded(rows, options), "status")
    summary = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    print(f"{sum(counts.values())} rows: {summary}", file=sys.stderr)
    return 0 if counts["graded"] else cli.EXIT_FAILED


def _graded(rows: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for answer, reason in row_command.answers(rows, options, start_worker, grade_line, _failed, "grading"):
        if reason:
            print(f"row {answer['uid']!r}: infra_error: {reason}", file=sys.stderr)
        yield answer


# ---- in a worker process -------------------------------------------------------------------------------------------


def start_worker(isolation: Isolation, packages: tuple[str, ...] = ()) -> Any:
    """One executor per process."""
    from services.sandbox.jail.executor import Executor

    return Executor(isolation=isolation, packages=packages)


def grade_line(executor: Any, line: str) -> tuple[dict[str, Any], str]:
    """One row, as text, to (answer, reason it could not be graded or ""). Never raises."""
    uid = None
    try:
        row = rowfiles.an_object(line)
        uid = row.get("uid")
        if not isinstance(row.get("example"), dict):
            raise ConfigError("row has no example object: give {uid, example, response}")
        if row["example"].get("task", "code") != "code":
            raise ConfigError(
                f"example is of task {row['example']['task']!r}: this command gives the published grade of code"
            )
        verdict = _evaluate(executor, row["example"], row.get("response"))
    except Exception as error:  # whatever it is, the row is answered, and not with a reward of 0
        return _unanswered(uid), f"{type(error).__name__}: {error}"
    return {"uid": uid, "labels": verdict.labels, "reward": verdict.reward, "status": "graded"}, ""


def _evaluate(executor: Any, example: dict[str, Any], response: Any) -> Any:
    from services.sandbox.jail.start import twice
    from services.sandbox.verdicts import published

    return twice(lambda: published.evaluate(example, response, published.jailed(executor)))


def _failed(line: str, reason: str) -> tuple[dict[str, Any], str]:
    return _unanswered(rowfiles.field_of(line, "uid")), reason


def _unanswered(uid: Any) -> dict[str, Any]:
    return {"uid": uid, "labels": None, "reward": None, "status": "infra_error"}
