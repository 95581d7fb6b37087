"""How the generator of bundled files is run: `python -m tasks.X.generate [--check]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import cli
from tasks.dataset import json_lines, save_rows

Rows = list[dict[str, Any]]


def write_or_check(
    command: str, what: str, build: Callable[[], dict[str, Rows]], files: Mapping[str, Path], argv: list[str] | None
) -> int:
    """Write the files that `build` makes, or with --check compare those that are there: exit code 1 when they differ.

    `build` and `files` have the same keys; `what` is what the files hold, in words.
    """
    parser = cli.Parser(prog=f"python -m {command}", description=f"make the bundled {what}")
    parser.add_argument("--check", action="store_true", help="compare the committed files instead of writing them")
    check = parser.parse_args(argv).check
    made = {files[name]: rows for name, rows in build().items()}
    if check:
        stale = [
            path.name for path, rows in made.items() if not path.is_file() or path.read_bytes() != json_lines(rows)
        ]
        print(f"differs from the generator: {', '.join(stale)}" if stale else f"as generated: {what}")
        return 1 if stale else 0
    for path, rows in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_rows(path, rows)
        print(f"{path.name}: {len(rows)} rows")
    return 0
