"""Recorded training steps through the real graders: how long the slowest completion and the whole step take.

    python -m bench.grading_step --rollouts F [--workers N] [--limit STEPS] --out X.json

    recorded rollouts ──> Redis ──> one worker process with N lanes ──> Redis ──> compared with what was recorded

Baseline, in the same run: the order in use before, N lanes of one group each, every completion's programs one after the
other and its oracle after them. `steps` in X.json has, per step, {"completions", "slow", "wall_s", "slowest_s", "cpu_s"} of
the worker, `baseline` the same of the former order; `slow` counts completions over 3 s, which is to say those that do not
end or fill their memory. `differ` counts labels and oracle verdicts that are not the recorded ones: where it is not 0 the
exit code is 1.

F: JSON lines (or .gz) with step, group, problem, response and, to compare, label and oracle_correct. A bare problem is
posed with --loophole.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from common import cli, keys
from common.errors import ConfigError
from common.ports import free_port
from common.queue import Queue, connect
from common.types import Completion, Grade, GradedGroup, Problem, RolloutGroup
from experiments.launch.stack import redis_server
from services.sandbox.verdicts import published
from services.sandbox.verdicts.grade import example_of
from services.sandbox.verdicts.oracle import Oracle
from tasks import dataset, loopholes

Rows = list[dict[str, Any]]
SLOW_S = 3.0  # a program that sleeps is ended then; one that takes longer computes without an end in sight


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: give at least 1")
    steps = list(read_steps(args.rollouts, args.loophole).items())[: args.limit]
    print(f"{sum(len(rows) for _, rows in steps)} completions of {len(steps)} steps, {args.workers} lanes", flush=True)
    found: dict[str, Any] = {"cpus": os.cpu_count(), "workers": args.workers, "steps": [], "baseline": [], "differ": 0}
    with tempfile.TemporaryDirectory() as folder, Graders(Path(folder), args.workers) as graders:
        for step, rows in steps:
            figures, grades = graders.run(step, rows)
            found["steps"].append({"step": step, **figures})
            found["differ"] += _differ(rows, grades)
            print(f"step {step}: {_line(figures)}", flush=True)
    if not args.no_baseline:
        for step, rows in steps:
            figures = one_after_the_other(rows, args.workers)
            found["baseline"].append({"step": step, **figures})
            print(f"step {step}, one after the other: {_line(figures)}", flush=True)
        found["ratio_wall"] = _median(found["baseline"], "wall_s") / _median(found["steps"], "wall_s")
        found["ratio_slowest"] = _median(found["baseline"], "slowest_s") / _median(found["steps"], "slowest_s")
        print(f"ratio: wall {found['ratio_wall']:.2f}, slowest completion {found['ratio_slowest']:.2f}")
    print(f"verdicts unlike the recorded ones: {found['differ']}", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if found["differ"]:
        print(f"error: {found['differ']} labels or oracle verdicts are not the recorded ones", file=sys.stderr)
        return 1
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m bench.grading_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rollouts", type=Path, required=True, help="recorded rollouts, JSON lines or .gz")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="completions at a time")
    parser.add_argument("--limit", type=int, help="only the first N steps")
    parser.add_argument("--loophole", default="simple_overwrite_tests", help="how a bare problem is posed")
    parser.add_argument("--no-baseline", action="store_true", help="leave the former order out")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    return parser


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['completions']} completions, {figures['slow']} of them over {SLOW_S:.0f} s, in "
        f"{figures['wall_s']:.1f} s, slowest {figures['slowest_s']:.1f} s, {figures['cpu_s']:.0f} CPU s"
    )


def _median(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def read_steps(path: Path, loophole: str) -> dict[int, Rows]:
    """Step -> its rows, in the order of the file. ConfigError for a row that lacks a field."""
    steps: dict[int, Rows] = defaultdict(list)
    for number, row in dataset.objects(path):
        missing = {"step", "group", "problem", "response"} - set(row)
        if missing:
            raise ConfigError(f"{path}:{number}: no field {', '.join(sorted(missing))}")
        problem = Problem(**row["problem"])
        steps[row["step"]].append({**row, "problem": problem if problem.hint else loopholes.posed(problem, loophole)})
    return dict(steps)


def as_groups(step: int, rows: Rows) -> list[RolloutGroup]:
    """The rows of one step as the generator would have sent them."""
    siblings: dict[str, Rows] = defaultdict(list)
    for row in rows:
        siblings[str(row["group"])].append(row)
    return [
        RolloutGroup(
            run_id="bench",
            group_id=f"bench/{step}/{name}",
            purpose="train",
            step=step,
            problem=members[0]["problem"],
            policy_version=0,
            replica="recorded",
            prompt_ids=[1],
            completions=[
                Completion(token_ids=[1], logprobs=[0.0], ref_logprobs=None, text=m["response"], finish_reason="stop")
                for m in members
            ],
            generate_s=0.0,
        )
        for name, members in siblings.items()
    ]


class Graders:
    """A private Redis and one worker process with N lanes."""

    def __init__(self, folder: Path, lanes: int):
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.redis = subprocess.Popen([redis_server(), *options], stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "services.sandbox", "worker", "--redis-url", self.url]
        command += ["--set", f"parallel={lanes}", "--set", "groups_in_flight=16", "--no-require-isolation"]
        time.sleep(0.5)
        self.worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.worker.stdout is not None
        for line in self.worker.stdout:
            if "ready" in line:
                break
        self.queue = Queue(connect(self.url), "bench")

    def run(self, step: int, rows: Rows) -> tuple[dict[str, Any], dict[str, list[Grade]]]:
        """Figures of one step, and the grades of each group."""
        groups = as_groups(step, rows)
        before, started = cpu_s(self.worker.pid), time.perf_counter()
        self.queue.publish_many(keys.ROLLOUTS, list(groups))
        grades: dict[str, list[Grade]] = {}
        while len(grades) < len(groups):
            for delivery in self.queue.consume(keys.graded("bench"), keys.TRAINERS, (GradedGroup,), 16, 1.0):
                grades[delivery.message.group.group_id] = delivery.message.grades
                self.queue.ack(keys.TRAINERS, delivery)
        wall = time.perf_counter() - started
        walls = [grade.wall_s for members in grades.values() for grade in members]
        return _figures(walls, wall, cpu_s(self.worker.pid) - before), grades

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.terminate()
        self.worker.wait()
        self.redis.terminate()
        self.redis.wait()


def _figures(walls: Sequence[float], wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Of one step, from the wall seconds of its completions."""
    slow = sum(wall > SLOW_S for wall in walls)
    return {"completions": len(walls), "slow": slow, "wall_s": wall_s, "slowest_s": max(walls), "cpu_s": cpu_s}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, its fork servers and all their finished jobs."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def _differ(rows: Rows, grades: dict[str, list[Grade]]) -> int:
    """How many labels and oracle verdicts are not the recorded ones; each is printed."""
    count = 0
    step, place = rows[0]["step"], defaultdict[str, int](int)
    for row in rows:
        name = str(row["group"])
        grade = grades[f"bench/{step}/{name}"][place[name]]
        place[name] += 1
        for field, ours in (("label", grade.label), ("oracle_correct", grade.oracle_correct)):
            if field in row and row[field] != ours:
                count += 1
                print(f"  {row.get('uid', name)}: {field} {row[field]!r} recorded, {ours!r} now: {grade.evidence}")
    return count


def one_after_the_other(rows: Rows, lanes: int) -> dict[str, Any]:
    """The former order: a lane has one group, a completion's programs run in turn, and its oracle after them."""
    groups = as_groups(rows[0]["step"], rows)
    jails = [Oracle(isolation="best_effort") for _ in range(lanes)]
    free = list(jails)
    walls: list[float] = []

    def grade(group: RolloutGroup) -> None:
        jail = free.pop()
        for text in dict.fromkeys(c.text for c in group.completions):
            started = time.perf_counter()
            verdict = published.evaluate(example_of(group.problem), text, published.jailed(jail.executor))
            if verdict.seen.program:
                problem = group.problem
                jail.grade(verdict.seen.program, problem.gt_answer, problem.setup_code, problem.func_name)
            walls.append(time.perf_counter() - started)
        free.append(jail)

    before, started = cpu_s(os.getpid()), time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(grade, groups))
    wall = time.perf_counter() - started
    cpu = cpu_s(os.getpid()) - before
    for jail in jails:
        jail.close()
    return {**_figures(walls, wall, cpu), "completions": len(rows)}


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
