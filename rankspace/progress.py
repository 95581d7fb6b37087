"""A live bar on a terminal, now and then a line in a log; without rich lines only, as it is no part of what is asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line says --help before torch is there
    from .svd_cache import Progress


EVERY_S = 15.0


def lines(label: str, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> Progress:
    """progress(done, total, name) that writes `label: done of total` to stderr, at most once in every_s seconds."""
    said = clock()

    def show(done: int, total: int, name: str) -> None:
        nonlocal said
        if clock() - said >= every_s:
            said = clock()
            print(f"{label}: {done} of {total} {name}".rstrip(), file=sys.stderr, flush=True)

    return show


@contextmanager
def bar(label: str) -> Iterator[Progress]:
    """Yields progress(done, total, name)."""
    if find_spec("rich") is None:
        yield lines(label)
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
    if not console.is_terminal:
        yield lines(label)
        return
    with Live(*columns, console=console) as live:
        task = live.add_task("", total=None)
        yield lambda done, total, name: live.update(task, completed=done, total=total, description=name)
