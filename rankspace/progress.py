"""A live bar on a terminal, now and then a line in a log; without rich lines only, as it is no part of what is asked for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line says --help before torch is there
    from .svd_cache import Progress


EVERY_S = 15.0


def lines(
    label: str, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic, file: Path | None = None
) -> Progress:
    """progress(done, total, name) that writes `label: done of total name, about T left` to stderr, at most once in every_s
    seconds, and adds it to `file`."""
    began = said = clock()

    def show(done: int, total: int, name: str) -> None:
        nonlocal said
        now = clock()
        if now - said >= every_s:
            said = now
            left = (now - began) / max(done, 1) * (total - done)
            tell(f"{label}: {done} of {total} {name}".rstrip() + f", about {span(left)} left", file)

    return show


@contextmanager
def stage(label: str, file: Path | None = None, every_s: float = EVERY_S) -> Iterator[None]:
    """Work whose share done is not known (loading a model): every every_s seconds, a line with how long it has taken."""
    began = time.monotonic()
    with ticking(every_s, lambda: tell(f"{label}: {span(time.monotonic() - began)} so far", file)):
        yield


@contextmanager
def ticking(every_s: float, tick: Callable[[], None]) -> Iterator[None]:
    """`tick()` every so many seconds, in a thread, while the block runs."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            tick()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def tell(line: str, file: Path | None) -> None:
    """To stderr, and with the time of day at the end of `file`, where its folder is there."""
    print(line, file=sys.stderr, flush=True)
    if file is not None and file.parent.is_dir():
        with open(file, "a", encoding="utf-8") as out:
            out.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def span(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h', '2.0 d': as many digits as a reader acts on."""
    for limit, unit, size, digits in ((90, "s", 1, 0), (5400, "min", 60, 0), (172800, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


@contextmanager
def bar(label: str, file: Path | None = None) -> Iterator[Progress]:
    """Yields progress(done, total, name). file: gets the lines that a log gets; a terminal's bar leaves none."""
    if find_spec("rich") is None:
        yield lines(label, file=file)
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
        yield lines(label, file=file)
        return
    with Live(*columns, console=console) as live:
        task = live.add_task("", total=None)
        yield lambda done, total, name: live.update(task, completed=done, total=total, description=name)
