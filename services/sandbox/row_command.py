"""What `grade` and `oracle` share: their options, their start, and the answers of their worker processes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from services.sandbox import pool, rowfiles

# Only a grading process that is stuck takes so long. A program is ended by limits of its own time, and one that gets no
# core for STARVED times as long is an infra error with that reason: this limit comes after both, or a verdict would
# depend on what else the machine does.
ROW_LIMIT_S = 900.0


def parser(command: str, what: str, takes: str, gives: str) -> cli.Parser:
    """The options of `python -m services.sandbox COMMAND`: input, output, workers, isolation."""
    parser = cli.Parser(prog=f"python -m services.sandbox {command}", description=what)
    parser.add_argument("--input", required=True, type=Path, help=f"rows {takes}, JSON lines or .gz")
    parser.add_argument("--output", required=True, type=Path, help=f"where to write {gives}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument(
        "--isolation",
        choices=("required", "best_effort"),
        default="required",
        help="refuse to start when a layer of the jail is missing (default), or go without it",
    )
    parser.add_argument(
        "--packages",
        nargs="*",
        default=[],
        metavar="NAME",
        help="third-party packages that programs may import (default: none, as published): sortedcontainers, numpy",
    )
    return parser


def opened(parser: cli.Parser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the lines of --input, after all that can be refused was looked at: the jail too."""
    options = _checked(parser.parse_args(argv))
    rows = rowfiles.read_lines(options.input)
    from services.sandbox.jail.start import check_jail

    check_jail(options.isolation, options.packages)
    return options, rows


def _checked(found: argparse.Namespace) -> argparse.Namespace:
    """The options as they are. Raises ConfigError."""
    if found.workers < 1:
        raise ConfigError(f"--workers is {found.workers}: give 1 or more")
    if found.input.resolve() == found.output.resolve():
        raise ConfigError("--input and --output are the same file: give another --output")
    _check_output(found.output)
    return found


def _check_output(path: Path) -> None:
    """Raises ConfigError, before any row is read, where `rowfiles.write_rows` could not put the file."""
    if not path.parent.is_dir():
        raise ConfigError(
            f"--output {path} cannot be written (no directory {path.parent}): give one in an existing one"
        )
    if path.is_dir():
        raise ConfigError(f"--output {path} cannot be written (it is a directory): give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {path} cannot be written (no permission in {path.parent}): give another directory")


def answers(
    rows: list[str],
    options: argparse.Namespace,
    start: Callable[..., Any],
    handle: Callable[[Any, str], Any],
    failed: Callable[[str, str], Any],
    what: str,
) -> Iterator[Any]:
    """Answers in the order of `rows`, from worker processes, with a progress bar; arguments as of `pool.run`."""
    begun = partial(start, options.isolation, tuple(options.packages))
    found = pool.run(rows, begun, handle, failed, min(options.workers, max(1, len(rows))), ROW_LIMIT_S)
    with contextlib.closing(found):
        yield from _progress(found, len(rows), what)


def _progress(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Pass `items` through with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            bar.advance(task)
            yield item
