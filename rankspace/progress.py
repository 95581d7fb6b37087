"""A live bar on a terminal, nothing in a log; without rich nothing at all, as it is no part of what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line says --help before torch is there
    from .svd_cache import Progress


@contextmanager
def bar(label: str) -> Iterator[Progress]:
    """Yields progress(done, total, name)."""
    if find_spec("rich") is None:
        yield lambda done, total, name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Live

    columns = (
        TextColumn(f"{label:9s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Live(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task("", total=None)
        yield lambda done, total, name: live.update(task, completed=done, total=total, description=name)
