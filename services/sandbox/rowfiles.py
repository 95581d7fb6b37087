"""What `grade` and `oracle` share: their options, rows in, answers out, complete or not at all."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from common import cli
from common.errors import ConfigError
from services.sandbox import pool

if TYPE_CHECKING:
    from services.sandbox.jail.executor import Isolation


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


def arguments(parser: cli.Parser, argv: list[str]) -> argparse.Namespace:
    """The parsed options, checked. Raises ConfigError."""
    found = parser.parse_args(argv)
    if found.workers < 1:
        raise ConfigError(f"--workers is {found.workers}: give 1 or more")
    if found.input.resolve() == found.output.resolve():
        raise ConfigError("--input and --output are the same file: give another --output")
    _check_output(found.output)
    return found


def _check_output(path: Path) -> None:
    """Raises ConfigError, before any row is read, where `write_rows` could not put the file."""
    if not path.parent.is_dir():
        raise ConfigError(
            f"--output {path} cannot be written (no directory {path.parent}): give one in an existing one"
        )
    if path.is_dir():
        raise ConfigError(f"--output {path} cannot be written (it is a directory): give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {path} cannot be written (no permission in {path.parent}): give another directory")


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a JSON-lines file (`.gz` too), not parsed.

    ConfigError when it cannot be read, is empty, or no line of it is a JSON object; a bad line among good ones is a row.
    """
    try:
        with _open(path, "rt") as file:
            numbered = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {path} cannot be read ({error}): give a JSON-lines file") from error
    if not numbered:
        raise ConfigError(f"--input {path} is empty: give a JSON-lines file")
    if not any(_is_row(line) for _, line in numbered):
        raise ConfigError(
            f"--input {path}:{numbered[0][0]} is no JSON object, nor any line after it: give a JSON-lines file"
        )
    return [line for _, line in numbered]


def _is_row(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def write_rows(path: Path, rows: Iterable[dict[str, Any]], count_by: str) -> Counter[Any]:
    """Write rows to `path`, complete or not at all; returns how many have each value of the field `count_by`."""
    partial_path = path.with_name(f".{path.name}.part" + (".gz" if path.suffix == ".gz" else ""))
    counts: Counter[Any] = Counter()
    try:
        with _open(partial_path, "wt") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                counts[row[count_by]] += 1
        partial_path.replace(path)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error}): give one in an existing directory") from error
    finally:
        partial_path.unlink(missing_ok=True)
    return counts


def _open(path: Path, mode: str) -> IO[str]:
    # surrogateescape: a row with broken bytes is answered by itself, it does not end the run
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, mode, encoding="utf-8", errors="surrogateescape"))
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="\n")


def check_jail(isolation: Isolation, packages: Sequence[str] = ()) -> None:
    """Start and stop one executor, so that a missing layer is one clear line instead of a failure of every row."""
    from services.sandbox.jail.executor import Executor

    with jail_starts():
        Executor(isolation=isolation, packages=packages).close()


@contextmanager
def jail_starts() -> Iterator[None]:
    """Around the start of executors: a jail that does not come up is a ConfigError."""
    from services.sandbox.jail.executor import SandboxError

    try:
        yield
    except SandboxError as error:
        raise ConfigError(f"the jail does not start: {error}") from error


def answers(
    rows: list[str],
    options: argparse.Namespace,
    start: Callable[..., Any],
    handle: Callable[[Any, str], Any],
    failed: Callable[[str, str], Any],
    limit_s: float,
    what: str,
) -> Iterator[Any]:
    """Answers in the order of `rows`, from worker processes, with a progress bar; arguments as of `pool.run`."""
    begun = partial(start, options.isolation, tuple(options.packages))
    found = pool.run(rows, begun, handle, failed, min(options.workers, max(1, len(rows))), limit_s)
    with contextlib.closing(found):
        yield from progress(found, len(rows), what)


def an_object(line: str) -> dict[str, Any]:
    """The row. Raises ValueError (no JSON) or ConfigError (no object)."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ConfigError(f"row is a JSON {type(row).__name__}: give an object")
    return row


def field_of(line: str, name: str) -> Any:
    """A field of a row that may be no JSON at all; None where there is none."""
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        return json.loads(line).get(name)
    return None


def twice(job: Callable[[], Any]) -> Any:
    """`job()`, once more when our own jail fails: the executor replaces what broke when it is asked again."""
    from services.sandbox.jail.executor import SandboxError

    try:
        return job()
    except SandboxError:
        return job()


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
