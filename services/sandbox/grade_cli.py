"""`python -m services.sandbox grade`: the published grade of every row of a file.

    {"uid", "example", "response"}  ──>  {"uid", "labels", "reward", "status"}      one line each, same order

`status` is `graded` or `infra_error`; the latter (an unusable row, or our own failure after a second try) has null
labels and reward, and its reason is printed on stderr. `.gz` is read and written when the name ends so. The output
appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from common.errors import ConfigError

# Five programs, each ended from outside after its wall limit: nothing honest takes longer.
ROW_LIMIT_S = 180.0


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m services.sandbox grade", description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, type=Path, help="rows {uid, example, response}, JSON lines or .gz")
    parser.add_argument("--output", required=True, type=Path, help="where to write {uid, labels, reward, status}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument(
        "--isolation", choices=("required", "best_effort"), default="required",
        help="refuse to start when a layer of the jail is missing (default), or go without it",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}: give 1 or more")
    if arguments.input.resolve() == arguments.output.resolve():
        raise ConfigError("--input and --output are the same file: give another --output")
    rows = read_lines(arguments.input)
    check_jail(arguments.isolation)
    counts = write_rows(arguments.output, _graded(rows, arguments))
    summary = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    print(f"{sum(counts.values())} rows: {summary}", file=sys.stderr)
    return 0


def _graded(rows: list[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from functools import partial

    from services.sandbox import pool

    start = partial(start_worker, arguments.isolation)
    workers = min(arguments.workers, max(1, len(rows)))
    answers = pool.run(rows, start, grade_line, _failed, workers, ROW_LIMIT_S)
    with contextlib.closing(answers):
        for answer, reason in progress(answers, len(rows), "grading"):
            if reason:
                print(f"row {answer['uid']!r}: infra_error: {reason}", file=sys.stderr)
            yield answer


# ---- in a worker process -------------------------------------------------------------------------------------------


def start_worker(isolation: str) -> Any:
    """One executor per process."""
    from services.sandbox.executor import Executor

    return Executor(isolation=isolation)


def grade_line(executor: Any, line: str) -> tuple[dict[str, Any], str]:
    """One row, as text, to (answer, reason it could not be graded or ""). Never raises."""
    uid = None
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ConfigError(f"row is a JSON {type(row).__name__}: give an object")
        uid = row.get("uid")
        if not isinstance(row.get("example"), dict):
            raise ConfigError("row has no example object: give {uid, example, response}")
        verdict = _evaluate(executor, row["example"], row.get("response"))
    except Exception as error:  # whatever it is, the row is answered, and not with a reward of 0
        return _unanswered(uid), f"{type(error).__name__}: {error}"
    return {"uid": uid, "labels": verdict.labels, "reward": verdict.reward, "status": "graded"}, ""


def _evaluate(executor: Any, example: dict[str, Any], response: Any) -> Any:
    from services.sandbox import published
    from services.sandbox.executor import SandboxError

    try:
        return published.evaluate(example, response, published.jailed(executor))
    except SandboxError:  # the executor replaces what broke when it is asked again
        return published.evaluate(example, response, published.jailed(executor))


def _failed(line: str, reason: str) -> tuple[dict[str, Any], str]:
    uid = None
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        uid = json.loads(line).get("uid")
    return _unanswered(uid), reason


def _unanswered(uid: Any) -> dict[str, Any]:
    return {"uid": uid, "labels": None, "reward": None, "status": "infra_error"}


# ---- files, for grade and whoever else reads rows and writes rows ---------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a JSON-lines file (`.gz` too), not parsed. Raises ConfigError when it cannot be read."""
    try:
        with _open(path, "rt") as file:
            return [line for line in file if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {path} cannot be read ({error}): give a JSON-lines file") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Write rows to `path`, complete or not at all; returns how many of each status."""
    partial_path = path.with_name(f".{path.name}.part" + (".gz" if path.suffix == ".gz" else ""))
    counts: dict[str, int] = {}
    try:
        with _open(partial_path, "wt") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                counts[row["status"]] = counts.get(row["status"], 0) + 1
        partial_path.replace(path)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error}): give one in an existing directory") from error
    finally:
        partial_path.unlink(missing_ok=True)
    return counts


def _open(path: Path, mode: str) -> IO[str]:
    # surrogateescape: a row with broken bytes is answered by itself, it does not end the run
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8", errors="surrogateescape")
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="\n")


def check_jail(isolation: str) -> None:
    """Start and stop one executor, so that a missing layer is one clear line instead of a failure of every row."""
    from services.sandbox.executor import Executor, SandboxError

    try:
        Executor(isolation=isolation).close()
    except SandboxError as error:
        raise ConfigError(f"the jail does not start: {error}") from error


def progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Pass `items` through with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            bar.advance(task)
            yield item
