"""The time a job can be blamed for: wall time less the time it was ready and no core was free.

    own = wall − run delay          run delay: field 2 of /proc/PID/schedstat, nanoseconds on a run queue (main thread)
    asleep: CPU time of all its threads < idle · own

A limit on wall time fails programs because the machine is busy; a limit on CPU time never ends one that sleeps. On a free
core own time is wall time, so a limit on it is both. Where the kernel keeps no schedstat the run delay counts as zero: own
time is then wall time, as without this file.
"""

from __future__ import annotations

import contextlib
import os
import time

_TICKS = os.sysconf("SC_CLK_TCK")


class OwnTime:
    """The clock of one job, from its pidfd (the kernel says which process that is, in our own namespace)."""

    def __init__(self, pidfd: int) -> None:
        self.started = time.monotonic()
        self._pid = _pid_of(pidfd)
        self._delay = 0.0  # seconds on a run queue, as the kernel counts them: when each wait has ended
        self._waiting = 0.0  # seconds of a wait that has not
        self._seen = (self.started, 0, 0.0)  # when we looked last, CPU nanoseconds and run delay until then

    def own_s(self) -> float:
        """Seconds since the start, less the run delay. A process that is gone keeps its last delay."""
        now = time.monotonic()
        text = self._read("schedstat").split()
        if len(text) == 3:
            cpu, delay = int(text[0]), int(text[1]) / 1e9
            before, cpu_before, delay_before = self._seen
            gap = now - before - (cpu - cpu_before) / 1e9 - (delay - delay_before)  # neither counted nor computed
            if not self._runnable():
                self._waiting = 0.0
            elif cpu == cpu_before:  # not a nanosecond of a core: the wait goes on
                self._waiting += max(0.0, gap)
            else:
                self._waiting = max(0.0, gap)
            self._delay, self._seen = max(self._delay, delay), (now, cpu, delay)
        return now - self.started - self.waited_s()

    def waited_s(self) -> float:
        """Seconds that it was ready and no core was free, when `own_s` was asked last."""
        return self._delay + self._waiting

    def _runnable(self) -> bool:
        return self._read("stat").rpartition(")")[2].split()[:1] == ["R"]

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far; 0 when it is gone."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0

    def give_way(self, nice: int) -> None:
        """Let other jobs go first while cores are short. Under autogroup a nice value counts within its session only, so
        the session's own weight is set too. Only lowers, so it needs no privilege; a job that is gone is left alone."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._pid, nice)
        with contextlib.suppress(OSError), open(f"/proc/{self._pid}/autogroup", "w", encoding="ascii") as file:
            file.write(str(nice))

    def _read(self, name: str) -> str:
        try:
            with open(f"/proc/{self._pid}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:  # gone, or a kernel or mount that does not show it
            return ""


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
