"""Rows in and answers out, one JSON object a line: plain or `.gz`, complete or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

from common.errors import ConfigError


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
