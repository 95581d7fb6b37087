"""What each wall of the jail costs: ms per job, layer by layer, on one core: `python bench/grading_layers.py --help`.

The job is a trivial one: a four-line program, twenty calls of its method, answers read and checked. Rows are cumulative
and interleaved (one round of every row, then the next), so that a neighbour's load falls on all of them alike.
`cpu` is what the job itself used; `all cpu` adds supervisor and fork server, and 1000 / that is jobs a second and core.
"""

from __future__ import annotations

import argparse
import json
import marshal
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import cli
from services.sandbox.jail.executor import Executor, Outcome
from services.sandbox.verdicts.oracle import Oracle, Verdict

SOURCE = "class Solution:\n    def addTwo(self, x):\n        y = x + 2\n        return y\n"
TESTS = [f"assert Solution().addTwo(x = {x}) == {x + 2}" for x in range(20)]
STEPS = marshal.dumps(tuple(("eval", compile(test[7:].split(" ==")[0], "<test>", "eval")) for test in TESTS))
LAYERS: dict[str, dict[str, Any]] = {
    "fork, pipes, program": {"switch_off": ("limits", "landlock", "seccomp", "uid"), "outer": False},
    "+ limits, session": {"switch_off": ("landlock", "seccomp", "uid"), "outer": False},
    "+ landlock": {"switch_off": ("seccomp", "uid"), "outer": False},
    "+ seccomp": {"switch_off": ("uid",), "outer": False},
    "+ uid": {"outer": False},
    "+ outer wall": {},
}


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its dead children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def server_pids(executor: Executor) -> list[int]:
    children = Path(f"/proc/{executor.pid}/task/{executor.pid}/children")
    return [executor.pid, *map(int, children.read_text().split())] if children.exists() else [executor.pid]


def memory_mb(pids: list[int]) -> float:
    """Proportional set size: shared pages counted once."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Row:
    """One configuration: how to run a job of it, and what its jobs took."""

    def __init__(self, name: str, executor: Executor, run: Callable[[], Outcome | Verdict]) -> None:
        self.name, self.executor, self.run = name, executor, run
        self.wall, self.job, self.ours = list[float](), list[float](), list[float]()
        self.server_at = 0.0

    def once(self) -> None:
        ours, wall = time.process_time(), time.perf_counter()
        outcome = self.run()
        self.wall.append((time.perf_counter() - wall) * 1e3)
        self.ours.append((time.process_time() - ours) * 1e3)
        if isinstance(outcome, Outcome):
            if not outcome.complete:
                raise SystemExit(f"{self.name}: {outcome}")
            self.job.append(outcome.cpu_s * 1e3)
        elif not outcome.correct:
            raise SystemExit(f"{self.name}: {outcome}")


def main() -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="jobs of each row in each of the rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})  # inherited by every fork server: one core
    rows = []
    for name, options in LAYERS.items():
        executor = Executor(isolation="best_effort", **options)
        rows.append(Row(name, executor, partial(executor.run_calls, SOURCE, STEPS)))
    oracle = Oracle(isolation="best_effort")
    rows.append(Row("oracle verdict, all walls", oracle.executor, lambda: oracle.grade(SOURCE, TESTS)))
    for row in rows:
        for _ in range(20):
            row.run()
        row.server_at = sum(map(cpu_of, server_pids(row.executor)))
    for _ in range(arguments.rounds):
        for row in rows:
            for _ in range(arguments.jobs):
                row.once()
    report(rows, arguments)


def report(rows: list[Row], arguments: argparse.Namespace) -> None:
    count, out = arguments.jobs * arguments.rounds, []
    print(f"{count} jobs a row, one core, load {os.getloadavg()[0]:.1f}")
    print(f"{'':28}{'wall ms':>9}{'best':>7}{'job cpu':>9}{'all cpu':>9}{'jobs/s/core':>13}{'memory MB':>11}")
    for row in rows:
        pids = server_pids(row.executor)
        server = (sum(map(cpu_of, pids)) - row.server_at) / count * 1e3  # its own and its dead jobs'
        total = server + statistics.mean(row.ours)
        out.append(
            {
                "layer": row.name,
                "wall_ms": statistics.median(row.wall),
                "best_ms": min(row.wall),
                "job_cpu_ms": statistics.median(row.job) if row.job else None,
                "all_cpu_ms": total,
                "jobs_per_s_core": 1e3 / total,
                "memory_mb": memory_mb(pids),
            }
        )
        one = out[-1]
        print(
            f"{row.name:28}{one['wall_ms']:9.2f}{one['best_ms']:7.2f}{one['job_cpu_ms'] or 0:9.2f}{total:9.2f}"
            f"{one['jobs_per_s_core']:13.0f}{one['memory_mb']:11.1f}"
        )
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"this supervisor, with all {len(rows)} executors: {ours:.0f} MB at most")
    if arguments.out:
        arguments.out.write_text(json.dumps({"supervisor_mb": ours, "rows": out}, indent=1) + "\n")
    for row in rows:
        row.executor.close()


if __name__ == "__main__":
    main()
