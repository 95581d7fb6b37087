"""Programs of one completion at the same time, each in a jail of its own.

    completion ──> gt ─────────┐
               ├─> hint ───────┤  a completion costs its slowest program, not their sum
               ├─> ... ────────┤
               └─> oracle ─────┘  gives way to the others where cores are short

No published program's verdict depends on another's (published.py), and the oracle's depends on none of them. The fork
servers are shared by all lanes of a worker and started when first needed; the one used last is taken first, so those that
are rarely needed stay asleep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, LifoQueue
from typing import Any

from services.sandbox.jail.executor import Executor
from services.sandbox.verdicts import published
from services.sandbox.verdicts.published import Program, ProgramResult

OnResult = Callable[[str, ProgramResult], None]


class Beside:
    """At most `most` programs at a time, beside those that lanes run themselves. Thread-safe. Arguments go to Executor."""

    def __init__(self, most: int, **executor: Any) -> None:
        self._options = executor
        self._idle: LifoQueue[Executor] = LifoQueue()
        self.threads = ThreadPoolExecutor(most, thread_name_prefix="program")
        # apart from the above: a thread that waits for programs must not take the place of one that runs them
        self.threads_of_lanes = ThreadPoolExecutor(most, thread_name_prefix="lane")

    def run_all(
        self, programs: Mapping[str, Program | None], setup_code: str, on_result: OnResult | None = None
    ) -> dict[str, ProgramResult]:
        """The result of each program, in the order given; `on_result(name, result)` as each one ends.

        Raises SandboxError when a jail fails, after all have ended.
        """
        waiting: dict[str, Future[ProgramResult]] = {
            name: self.threads.submit(self._one, name, program, setup_code, on_result)
            for name, program in programs.items()
            if program is not None
        }
        wait(waiting.values())
        return {name: waiting[name].result() if name in waiting else published.NOT_RUN for name in programs}

    def _one(self, name: str, program: Program, setup_code: str, on_result: OnResult | None) -> ProgramResult:
        try:
            executor = self._idle.get_nowait()
        except Empty:
            executor = Executor(**self._options)
        try:
            result = published.run_program(published.jailed(executor), program, setup_code)
        except BaseException:
            executor.close()  # whatever went wrong with it: the next program gets a new one
            raise
        self._idle.put(executor)
        if on_result is not None:
            on_result(name, result)
        return result

    def close(self) -> None:
        """End threads and fork servers."""
        self.threads_of_lanes.shutdown()
        self.threads.shutdown()
        while not self._idle.empty():
            self._idle.get().close()
