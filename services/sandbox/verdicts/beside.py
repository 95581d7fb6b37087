"""The programs of one completion: in turn while they are quick, at the same time once one of them is not.

    lane ────> gt ── hint ── ... ── oracle        one fork server; a completion of quick programs needs no more
                │ PATIENCE_S later, and it still runs
    helper ───────> hint ── ...                   another fork server; a helper that gets stuck too gets a helper
                        │ PATIENCE_S later
    helper ────────────────> oracle

A completion so costs its slowest program, not the sum. A program whose result another may make superfluous (`Task.decided`:
the oracle while the ground truth runs, whatever repeats a load that may not end) starts early only on a core that nobody
else has work for, and is ended as soon as it is superfluous. What a task says never depends on when it ran: `decided` wins
over a result of its own.

Fork servers of helpers are shared by all lanes of a worker, started when needed and ended when idle for IDLE_S.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from services.sandbox.jail.executor import Executor, SandboxError
from services.sandbox.jail.owntime import OwnTime

IDLE = 0.15  # a program that uses less of its own time than this sleeps
SHORT = 0.2  # where a program waits for a core longer than this share of its time, cores are short
PATIENCE_S = 0.15  # how long a program has its completion to itself
IDLE_S = 30.0  # how long a helper's fork server is kept for the next slow completion
_LOOK_S = 0.05

log = logging.getLogger(__name__)

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One program of a completion.

    run(executor): its result. decided(results so far): what it says without being run, None where it has to run; once it
    is not None, later results must not change it. may_be_spared(results, steps): True while another task's result may
    still decide it; `steps` holds how far each running task says it is (Outcome.step).
    """

    name: str
    run: Callable[[Executor], Any]
    decided: Callable[[Results], Any] = lambda results: None
    may_be_spared: Callable[[Results, Mapping[str, int]], bool] = lambda results, steps: False


class Line:
    """The tasks of one completion, in order, and whoever works on them. Thread-safe."""

    def __init__(self, tasks: Sequence[Task], core_is_free: Callable[[], bool] = lambda: False) -> None:
        self._waiting, self._all = list(tasks), list(tasks)
        self._core_is_free = core_is_free
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._running: set[str] = set()
        self._asleep: set[str] = set()
        self.attended = False  # whether a helper waits for something to do
        self._waits = False  # whether the program that was looked at last waits for a core
        self.results: dict[str, Any] = {}
        self.steps: dict[str, int] = {}

    def cores(self) -> int:
        """How many cores it has work for: its programs that do not sleep. Between two programs it has some too."""
        return len(self._running) - len(self._asleep) if self._running else 1

    def work(self, executor: Executor) -> dict[str, Any]:
        """The lane's part: take tasks until all have ended, whoever ran them; the result of each. Raises the first error
        of any."""
        while (task := self._take(stay=True)) is not None:
            self._run(task, executor)
        if self._error is not None:
            raise self._error
        for task in self._all:  # the same whether it was spared, ended or had finished
            decided = task.decided(self.results)
            if decided is not None:
                self.results[task.name] = decided
        return self.results

    def help(self, executors: Executors, on_take: Callable[[], None]) -> None:
        """A helper's part: take tasks until none waits; `on_take()` before each of them runs."""
        executor = None
        try:
            while (task := self._take(stay=False)) is not None:
                on_take()
                try:
                    executor = executor or executors.get()
                except (SandboxError, OSError) as error:
                    log.warning("no helper for %s: %s", task.name, error)
                    return self._put_back(task)
                if not self._run(task, executor):
                    executor.close()  # whatever went wrong with it
                    executor = None
        finally:
            if executor is not None:
                executors.put(executor)

    def all_taken_within(self, seconds: float) -> bool:
        """Wait for at most that long; whether no task waits any more."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def _take(self, stay: bool) -> Task | None:
        """The next task that may run now; None when there is none to wait for. stay: until those of others ended too."""
        with self._changed:
            while self._waiting or (stay and self._running):
                for task in list(self._waiting):
                    decided = task.decided(self.results)
                    if decided is not None:
                        self._waiting.remove(task)
                        self.results[task.name] = decided
                    elif not task.may_be_spared(self.results, self.steps) or self._may_start_early():
                        self._waiting.remove(task)
                        self._running.add(task.name)
                        return task
                if self._waiting or (stay and self._running):
                    self._changed.wait(_LOOK_S)
            self._changed.notify_all()
            return None

    def _may_start_early(self) -> bool:
        """A core is free: nobody of ours has work for it, and what runs already need not wait for one."""
        return not self._waits and self._core_is_free()

    def _run(self, task: Task, executor: Executor) -> bool:
        """False when it raised: that ends the line. The error is raised in the lane's thread, not in a helper's."""

        def superfluous(step: int, clock: OwnTime) -> bool:
            self.steps[task.name] = step
            self._look_at(task.name, clock)
            return self._error is not None or task.decided(self.results) is not None

        executor.superfluous = superfluous
        try:
            self._ended(task, task.run(executor))
        except BaseException as error:
            self._ended(task, error=error)
            return False
        finally:
            executor.superfluous = None
        return True

    def _look_at(self, name: str, clock: OwnTime) -> None:
        own, waited = clock.own_s(), clock.waited_s()
        asleep = own > PATIENCE_S and clock.cpu_s() < IDLE * own
        (self._asleep.add if asleep else self._asleep.discard)(name)
        self._waits = waited > SHORT * (own + waited)

    def _ended(self, task: Task, result: Any = None, error: BaseException | None = None) -> None:
        with self._changed:
            self._running.discard(task.name)
            self._asleep.discard(task.name)
            if error is None:
                self.results[task.name] = result
            else:
                self._error = self._error or error
                self._waiting.clear()
            self._changed.notify_all()

    def _put_back(self, task: Task) -> None:
        with self._changed:
            self._running.discard(task.name)
            self._waiting.insert(0, task)
            self._changed.notify_all()


class Executors:
    """Fork servers of helpers: started when needed; the one used last is taken first, so those that are rarely needed
    stay asleep, until they are ended. Thread-safe."""

    def __init__(self, **executor: Any) -> None:
        self._options, self._lock = executor, threading.Lock()
        self._idle: list[tuple[float, Executor]] = []

    def get(self) -> Executor:
        """Raises SandboxError or OSError when none can be started."""
        with self._lock:
            if self._idle:
                return self._idle.pop()[1]
        return Executor(**self._options)

    def put(self, executor: Executor) -> None:
        with self._lock:
            self._idle.append((time.monotonic(), executor))

    def reap(self, idle_s: float = IDLE_S) -> None:
        """End those that no helper has needed for so long."""
        with self._lock:
            now = time.monotonic()
            old = [executor for since, executor in self._idle if now - since >= idle_s]
            self._idle = [(since, executor) for since, executor in self._idle if now - since < idle_s]
        for executor in old:
            executor.close()


class Beside:
    """What the lanes of a worker share: cores, and helpers, at most `most` at a time. Thread-safe. Other arguments go to
    Executor."""

    def __init__(self, most: int, cores: int | None = None, **executor: Any) -> None:
        self.executors = Executors(**executor)
        self._cores = cores or len(os.sched_getaffinity(0))
        self._changed = threading.Condition()
        self._lines: list[Line] = []
        self._places = self._wanted = 0  # completions that have one, and those that wait for one
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="program")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait until there is a core for one more completion: with as many computing as there are cores, another would
        only make all of them late. Those that sleep take no core."""
        with self._changed:
            self._wanted += 1
            while self._work() >= self._cores and self._places:
                self._changed.wait(_LOOK_S)
            self._wanted -= 1
            self._places += 1
        try:
            yield
        finally:
            with self._changed:
                self._places -= 1
                self._changed.notify()

    def run_all(self, tasks: Sequence[Task], executor: Executor) -> dict[str, Any]:
        """The result of each task. The caller's thread begins with `executor`. Raises SandboxError when a jail fails,
        after all have ended."""
        line = Line(tasks, self._core_is_free)
        with self._changed:
            self._lines.append(line)
        self._attend(line)
        try:
            return line.work(executor)
        finally:
            with self._changed:
                self._lines.remove(line)

    def close(self) -> None:
        """End threads and fork servers."""
        self._threads.shutdown()
        self.executors.reap(idle_s=0.0)

    def _work(self) -> int:
        """How many cores there is work for. A completion that has a place and no program yet counts as one."""
        return sum(line.cores() for line in self._lines) + max(0, self._places - len(self._lines))

    def _core_is_free(self) -> bool:
        """Whether a core would idle otherwise: no completion waits for one, and there are more of them than work, or all
        work is one completion's."""
        with self._changed:
            if self._wanted:
                return False
            return self._work() < self._cores or max(self._places, len(self._lines)) <= 1

    def _attend(self, line: Line) -> None:
        """See to it that one helper, and no more than one, waits for what cannot wait for others."""
        if not line.attended:
            line.attended = True
            self._threads.submit(self._help, line)

    def _help(self, line: Line) -> None:
        def on_take() -> None:
            line.attended = False
            self._attend(line)

        if not line.all_taken_within(PATIENCE_S):
            line.help(self.executors, on_take)
