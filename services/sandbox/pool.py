"""N worker processes, each with its own state (an executor), rows in, answers out in order. No answer is ever lost.

    parent: read rows ──one row at a time──> process k: start() once, then handle(state, row) ──> answer
            write answers in input order  <──

A process that dies or does not answer within `row_limit_s` is replaced and the row is tried once more; after that it is
answered by `failed(row, reason)`. Processes are spawned (not forked), so each starts clean.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

TRIES = 2
START_S = 60.0  # what a process may take to start, before its first row's time counts
STOP_S = 10.0
READY = "ready"


class _Worker:
    def __init__(self, start: Callable[[], Any], handle: Callable[[Any, Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, start, handle), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[int, Any, int] | None = None  # row number, row, tries so far
        self.since = 0.0
        self.started = False

    def give(self, number: int, row: Any, tries: int) -> None:
        self.job, self.since = (number, row, tries), monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: seen at the next wait
            self.pipe.send(row)

    def stop(self) -> None:
        """End the process: an idle one by itself, so that its state closes; a busy one at once."""
        self.pipe.close()
        if self.job is None:
            self.process.join(STOP_S)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, start: Callable[[], Any], handle: Callable[[Any, Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    with contextlib.closing(start()) as state, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(READY)
        while True:  # until the parent has finished, or is gone
            pipe.send(handle(state, pipe.recv()))


def run(
    rows: Iterable[Any],
    start: Callable[[], Any],
    handle: Callable[[Any, Any], Any],
    failed: Callable[[Any, str], Any],
    workers: int,
    row_limit_s: float,
) -> Generator[Any, None, None]:
    """Answers in the order of `rows`. `start` gives a worker's state, which has a close(); it and `handle` are
    pickled, so they must be importable by name.

    At most `4 * workers + 16` rows are in memory at once, so one slow row does not make the rest pile up.
    """
    source = enumerate(rows)
    done: dict[int, Any] = {}
    retry: list[tuple[int, Any, int]] = []
    pool = [_Worker(start, handle) for _ in range(workers)]
    given = emitted = 0
    exhausted = False
    try:
        while True:
            for worker in pool:
                if worker.job is not None or (given - emitted >= 4 * workers + 16 and not retry):
                    continue
                if retry:
                    worker.give(*retry.pop())
                elif not exhausted:
                    following = next(source, None)
                    if following is None:
                        exhausted = True
                    else:
                        worker.give(*following, 0)
                        given += 1
            while emitted in done:
                yield done.pop(emitted)
                emitted += 1
            if exhausted and emitted == given:
                return
            _collect(pool, done, retry, start, handle, failed, row_limit_s)
    finally:
        for worker in pool:
            worker.stop()


def _collect(
    pool: list[_Worker],
    done: dict[int, Any],
    retry: list[tuple[int, Any, int]],
    start: Any,
    handle: Any,
    failed: Any,
    row_limit_s: float,
) -> None:
    """Wait for one event and take every answer that is there; replace processes that died or overstayed."""
    busy = {worker.pipe: worker for worker in pool if worker.job is not None}
    ready = wait(list(busy), timeout=1.0)
    for place, worker in enumerate(pool):
        if worker.job is None:
            continue
        number, row, tries = worker.job
        if worker.pipe in ready:
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError):
                reason = "the grading process died"
            else:
                if worker.started:
                    done[number], worker.job = answer, None
                else:  # its first word: ready
                    worker.started, worker.since = True, monotonic()
                continue
        elif monotonic() - worker.since > (row_limit_s if worker.started else START_S):
            reason = f"no answer within {row_limit_s:.0f} s"
        else:
            continue
        worker.stop()
        pool[place] = _Worker(start, handle)
        if tries + 1 < TRIES:
            retry.append((number, row, tries + 1))
        else:
            done[number] = failed(row, reason)
