"""`python -m services.sandbox oracle`: the protected verdict on every row of a file.

    {"id", "code", "method", "tests"}  ──>  {"id", "gt_correct", "reason", "wall_s"}      one line each, same order

Optional in a row: `setup_code` (run before the program; without it the names of prelude.py are there). `gt_correct` is
null when the row cannot be graded (not JSON, no tests) or when we fail twice; the reason says which. `.gz` is read and
written when the name ends so. The output appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from services.sandbox import grade_cli, pool

ROW_LIMIT_S = 60.0


def main(argv: list[str]) -> int:
    """Entry point; returns the exit code. Raises UserError for anything the user can put right."""
    parser = argparse.ArgumentParser(prog="python -m services.sandbox oracle", description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, type=Path, help="rows {id, code, method, tests}, JSON lines or .gz")
    parser.add_argument("--output", required=True, type=Path, help="where to write {id, gt_correct, reason, wall_s}")
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
    lines = grade_cli.read_lines(arguments.input)
    grade_cli.check_jail(arguments.isolation)
    counts = _write(arguments.output, _graded(lines, arguments))
    print(f"{sum(counts.values())} rows: {counts[True]} correct, {counts[False]} not, {counts[None]} not graded",
          file=sys.stderr)
    return 0


def _graded(lines: list[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    workers = min(arguments.workers, max(1, len(lines)))
    answers = pool.run(lines, partial(start_worker, arguments.isolation), grade_line, _failed, workers, ROW_LIMIT_S)
    with contextlib.closing(answers):
        yield from grade_cli.progress(answers, len(lines), "judging")


def start_worker(isolation: str) -> Any:
    """One oracle per process."""
    from services.sandbox.oracle import Oracle

    return Oracle(isolation=isolation)


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
    from services.sandbox.executor import SandboxError

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


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> dict[bool | None, int]:
    """Write rows to `path`, complete or not at all; returns how many of each verdict."""
    part = path.with_name(f".{path.name}.part" + (".gz" if path.suffix == ".gz" else ""))
    counts: dict[bool | None, int] = {True: 0, False: 0, None: 0}
    try:
        with grade_cli._open(part, "wt") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                counts[row["gt_correct"]] += 1
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error}): give one in an existing directory") from error
    finally:
        part.unlink(missing_ok=True)
    return counts
