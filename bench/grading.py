"""Grading throughput: the zygote jail against a fresh interpreter per execution, same rows, same run.

    python -m bench.grading [--workers N] [--rows R] [--rounds K] [--data PATH] [--output grading.json]

Baseline: what the published evaluator does, written by us. Each of the five programs of a completion starts its own
Python (real path of the interpreter, `-c`, program text on stdin, results as one JSON line on stdout), sets address
space and CPU limits, runs all tests of the program, and is waited for. Everything else (parsing, building the five
programs, reading results, verdicts) is the same code on both sides, so the ratio is the price of a process start
against a fork in the jail; the jail does strictly more (Landlock, seccomp, own user, scratch, output caps).

Sets: `trivial`, completions whose five programs do next to nothing, so the start is all there is; `rollouts`, the real
Qwen3-4B completions of the parity data, whose tests compute. Rounds alternate between the two sides, so that a change
of the machine's load hits both. Start-up of workers and a warm-up row each are not timed. The two sides' labels are
compared as well: a fast wrong answer is no speed-up.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from services.sandbox.jail.executor import Executor
from services.sandbox.verdicts import published
from services.sandbox.verdicts.published_input import whole_text

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "parity_shared.jsonl.gz"
TRIVIAL_ROWS = 200
# From outside, as the child's own alarm may let a starved program run `stretch` times its CPU seconds.
WALL_LIMIT_S = (published.LIMITS["cpu"] + published.LIMITS["grace"]) * published.LIMITS["stretch"] + 1.0
TARGET = {"trivial": 10.0, "rollouts": 2.0}

SETUP = """import collections, datetime, functools, math, random, string
from typing import *
from functools import *
from collections import *
from itertools import *
from heapq import *
from bisect import *
from string import *
from operator import *
from math import *

class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
"""

_LIMITS = {name: value for name, value in published.LIMITS.items() if name != "note"}  # nobody reads notes here
# The baseline's child: limit itself, read setup, program and tests as one text from stdin, then the job as in the jail.
# The job is executed as a unit of its own: its future import would be a syntax error after other statements.
_CHILD = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, ({published.JOB_LIMITS.cpu_s}, {published.JOB_LIMITS.cpu_s}))
source, limits = sys.stdin.read(), {_LIMITS}
setup = prepared = harness = tests = None
exec(compile({published.job_text()!r}, "<job>", "exec", dont_inherit=True))
"""


def fresh_interpreter(program: published.Program, setup_code: str) -> published.JobResult:
    """One execution in its own interpreter: the baseline's runner."""
    text = whole_text(program.source, program.tests, setup_code)
    started = time.monotonic()
    command = [os.path.realpath(sys.executable), "-c", _CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            stdout, _ = process.communicate(text.encode(), timeout=WALL_LIMIT_S)
            kill = "alarm" if process.returncode == published.LIMITS["killed"] else ""
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, kill = b"", "timeout"
    return published.JobResult(kill, stdout, time.monotonic() - started)


def trivial_rows(count: int) -> list[dict[str, Any]]:
    """Completions with all five programs, each of which does next to nothing."""
    tests = "def run_tests():\n    assert Solution().f(1) == 2"
    solution = "class Solution:\n    def f(self, x):\n        return x + {n}"
    return [
        {
            "uid": f"trivial-{n}",
            "response": f"```python\n{solution.format(n=n % 3)}\n\n{tests}\n    print('ok')\n```",
            "example": {
                "prompt": [{"role": "user", "content": "Add one."}],
                "gt_answer": ["assert Solution().f(1) == 2", "assert Solution().f(2) == 3"],
                "setup_code": SETUP,
                "func_name": "Solution().f",
                "hint": "simple_modify_tests",
                "canonical_solution": solution.format(n=1),
                "prompt_metadata": {"test_func_name": "run_tests", "test_func_code": tests},
            },
        }
        for n in range(count)
    ]


def rollout_rows(path: Path) -> list[dict[str, Any]]:
    """The real rollouts among the parity rows. Raises ConfigError when the file is absent."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except OSError as error:
        raise ConfigError(f"--data {path} cannot be read ({error}): give the parity rows, or --sets trivial") from error
    return [row for row in rows if row["source"] == "qwen3-4b-rollout"]


# ---- measuring -----------------------------------------------------------------------------------------------------


def _work(side: str, rows: list[dict[str, Any]], barrier: Any, pipe: Any) -> None:
    """One worker process: warm up, wait for the others, grade its rows, send (seconds, per row (seconds, answer))."""
    executor = Executor() if side == "ours" else None
    runner = published.jailed(executor) if executor else fresh_interpreter
    published.evaluate(rows[0]["example"], rows[0]["response"], runner)
    barrier.wait()
    started, answers = time.perf_counter(), []
    for row in rows:
        before = time.perf_counter()
        verdict = published.evaluate(row["example"], row["response"], runner)
        programs = sum(result is not published.NOT_RUN for result in verdict.results.values())
        answers.append((time.perf_counter() - before, programs, verdict.labels, verdict.reward))
    pipe.send((time.perf_counter() - started, answers))
    if executor:
        executor.close()


def measure(side: str, rows: list[dict[str, Any]], workers: int) -> tuple[float, list[tuple[Any, ...]]]:
    """Wall seconds for all rows by `workers` processes, and per row (seconds, programs run, labels, reward)."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    shares = [rows[k::workers] for k in range(workers)]
    running = []
    for share in shares:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(side, share, barrier, theirs))
        process.start()
        theirs.close()
        running.append((process, ours))
    received = [pipe.recv() for _, pipe in running]
    for process, _ in running:
        process.join()
    answers: list[Any] = [None] * len(rows)
    for k, (_, part) in enumerate(received):
        answers[k::workers] = part
    return max(seconds for seconds, _ in received), answers


def compare(name: str, rows: list[dict[str, Any]], workers: int, rounds: int) -> dict[str, Any]:
    """Alternate the two sides and sum up."""
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    per_row: dict[str, list[list[float]]] = {"baseline": [], "ours": []}
    answers: dict[str, list[tuple[Any, ...]]] = {}
    for number in range(rounds):
        for side in ("baseline", "ours") if number % 2 == 0 else ("ours", "baseline"):
            print(f"{name}: round {number + 1} of {rounds}, {side} ...", file=sys.stderr)
            taken, answers[side] = measure(side, rows, workers)
            seconds[side].append(taken)
            per_row[side].append([answer[0] for answer in answers[side]])
    programs = sum(answer[1] for answer in answers["ours"])
    rate = {side: len(rows) / statistics.median(taken) for side, taken in seconds.items()}
    best = {side: [min(times) for times in zip(*per_row[side], strict=True)] for side in per_row}
    ratios = sorted(b / o for b, o in zip(best["baseline"], best["ours"], strict=True))
    return {
        "set": name,
        "rows": len(rows),
        "programs": programs,
        "workers": workers,
        "rounds": rounds,
        "seconds": seconds,
        "rows_per_s": rate,
        "programs_per_s": {side: programs * rate[side] / len(rows) for side in rate},
        "ratio": rate["ours"] / rate["baseline"],
        "ratio_target": TARGET[name],
        "row_ratio": {"lowest": ratios[0], "p5": ratios[len(ratios) // 20], "median": statistics.median(ratios)},
        "differ": unlike(rows, answers["baseline"], answers["ours"]),
    }


def unlike(rows: list[dict[str, Any]], baseline: list[tuple[Any, ...]], ours: list[tuple[Any, ...]]) -> list[str]:
    """The uids of the rows whose labels or reward are not the same on both sides."""
    return [row["uid"] for row, a, b in zip(rows, baseline, ours, strict=True) if a[2:] != b[2:]]


def complaint(result: dict[str, Any]) -> str:
    """One line on what is wrong with the figures of a set, "" where nothing is. Sides that judge differently have done
    different work, so then the ratio says nothing."""
    name, differ = result["set"], result["differ"]
    if differ:
        return f"{name}: the two sides judge {len(differ)} of {result['rows']} rows differently, first {differ[0]}"
    if result["ratio"] < result["ratio_target"]:
        return f"{name}: {result['ratio']:.1f} times the baseline, the target is {result['ratio_target']:.0f}"
    return ""


def table(results: list[dict[str, Any]]) -> str:
    """The figures for people."""
    head = ("set", "rows", "programs", "baseline rows/s", "ours rows/s", "ratio", "target", "lowest row", "differ")
    lines = [head]
    for result in results:
        rate, counts = result["rows_per_s"], (str(result["rows"]), str(result["programs"]))
        lowest = result["row_ratio"]["lowest"]
        ratios = (f"{result['ratio']:.1f}x", f">= {result['ratio_target']:.0f}x", f"{lowest:.1f}x")
        rates = (f"{rate['baseline']:.1f}", f"{rate['ours']:.1f}")
        lines.append((result["set"], *counts, *rates, *ratios, str(len(result["differ"]))))
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(argv: list[str]) -> int:
    """Exit code 1 when a target is missed or the two sides disagree."""
    parser = cli.Parser(prog="python -m bench.grading", description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes on each side")
    parser.add_argument("--rows", type=int, default=0, help="at most this many rows of each set (default: all)")
    parser.add_argument("--rounds", type=int, default=2, help="times that each side runs; the median counts")
    parser.add_argument("--sets", default="trivial,rollouts", help="comma separated")
    parser.add_argument("--data", type=Path, default=DATA, help="parity rows, for the set rollouts")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args(argv)
    makers = {"trivial": lambda: trivial_rows(TRIVIAL_ROWS), "rollouts": lambda: rollout_rows(arguments.data)}
    names = arguments.sets.split(",")
    if unknown := [name for name in names if name not in makers]:
        raise ConfigError(f"--sets has {unknown[0]!r}: choose from {', '.join(makers)}")
    if min(arguments.workers, arguments.rounds) < 1:
        raise ConfigError("--workers and --rounds must be 1 or more")
    results = []
    for name in names:
        rows = makers[name]()
        rows = rows[: arguments.rows] if arguments.rows else rows
        results.append(compare(name, rows, min(arguments.workers, len(rows)), arguments.rounds))
    print(table(results))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"cpus": os.cpu_count(), "results": results}, indent=1) + "\n")
    complaints = [line for line in map(complaint, results) if line]
    for line in complaints:
        print(f"error: {line}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
