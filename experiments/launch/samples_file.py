"""The rows of `samples` while they come: a draft beside the file, from which the same command goes on after an interruption.

    OUT.partial    {"asked": {...}}               what was asked for; a draft of anything else is refused
                   {"group": 3, "rows": [...]}    a line a problem, as they come
    OUT            the rows in the problems' order, there when all have come, whole or not at all

A line that was cut off is sampled again: a problem's seed depends on its place alone, so the file is the same byte for byte
as without the interruption, as far as the generator repeats itself.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from common import atomic_file
from common.errors import ConfigError

Row = dict[str, Any]
SUFFIX = ".partial"


class Draft:
    """`groups`: rows by the number of their problem, of an earlier try and of this one."""

    def __init__(self, out: Path, asked: dict[str, Any]) -> None:
        """Reads what an earlier try has left. ConfigError where that was asked for something else, or cannot be read."""
        self.out, self.path = out, out.with_name(out.name + SUFFIX)
        self.groups: dict[int, list[Row]] = {}
        self._asked: dict[str, Any] = json.loads(json.dumps(asked, default=str))
        self._whole = 0  # bytes of whole lines
        self._file: TextIO | None = None
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; delete it, or give another --out") from None
        for number, line in enumerate(lines):
            row = _object(line)
            if row is None:
                break
            if number == 0:
                self._require_asked(row)
            else:
                self.groups[int(row["group"])] = row["rows"]
            self._whole += len(line)

    def _require_asked(self, head: Row) -> None:
        before = head.get("asked")
        if not isinstance(before, dict):
            raise ConfigError(f"{self.path}: is no draft of samples; move it away, or give another --out")
        for name in sorted(before.keys() | self._asked.keys()):
            was, now = before.get(name), self._asked.get(name)
            if was != now:
                raise ConfigError(
                    f"{self.path} holds samples with {name}={was!r}, now {now!r}; delete it, or give another --out"
                )

    @contextmanager
    def open(self) -> Iterator[None]:
        """For `add`: behind the whole lines that are there."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.truncate(self._whole)
            self._file = file
            if not self._whole:
                self._line({"asked": self._asked})
            yield
        self._file = None

    def add(self, group: int, rows: list[Row]) -> None:
        """One problem's rows. Raises OSError."""
        self.groups[group] = rows
        self._line({"group": group, "rows": rows})

    def _line(self, row: Row) -> None:
        assert self._file is not None, "the draft is not open"
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def rows(self) -> list[Row]:
        """All rows, in the problems' order."""
        return [row for number in sorted(self.groups) for row in self.groups[number]]

    def finish(self) -> None:
        """Write the file; the draft is then gone. Raises OSError."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows()).encode()
        # without the time of day, which gzip would put into its header: the same rows are the same bytes
        atomic_file.write(self.out, gzip.compress(text, mtime=0) if self.out.suffix == ".gz" else text)
        self.path.unlink(missing_ok=True)


def _object(line: bytes) -> Row | None:
    """A whole line's object; None for one that was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
