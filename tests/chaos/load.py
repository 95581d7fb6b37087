"""python -m tests.chaos.load --groups 10000 (or --minutes 30): many groups through real graders; is memory flat?

    trainer's Rollouts ── requests ──> a generator of trivial rollouts ── rollouts ──> 8 real workers ──> graded ── Rollouts

Everything is real but the tokens: Redis with its users, seals, jailed grading, acknowledgement. The trainer asks far
ahead, so that the streams fill up to their bound. Sampled every second: resident memory of each service with its
children, Redis's own memory, lengths of the streams; measured: the time from asking to having each group graded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from pathlib import Path

import psutil

from common import digests, keys
from common.heartbeat import alive
from common.ports import free_port
from common.queue import Queue
from common.types import Completion, GenerationRequest, RolloutGroup, SamplingPlan
from experiments.design.presets import PRACTICE_TRAIN
from experiments.launch.stack import Stack
from services.trainer.rollouts import Rollouts
from tasks.dataset import load_problems
from tests import samples

RUN, BATCH, AHEAD, BOUND, WORKERS = "load", 16, 40, 256, 8
WARM = 0.3  # share of the samples before memory is expected to be level
GROWTH, SLACK = 1.03, 4 << 20


class GradersOnly(Stack):
    """Redis and graders; the generator is played by the test."""

    def _start(self, model: str, server: dict, graders: int, isolation: str, say, sandbox: dict, gpus: list) -> None:
        self._start_redis(free_port())
        client = self._wait("Redis", self._connected)
        for i in range(graders):
            values = {"name": f"grader-{i}", **self.access("sandbox"), "isolation": isolation}
            command = [
                sys.executable,
                "-m",
                "services.sandbox",
                "worker",
                "--config",
                self._config(f"sandbox-{i}", values),
            ]
            self._spawn(f"sandbox-{i}", command)
        self._wait("the graders", lambda: len(alive(client, "sandbox")) == graders)


def generate(queue: Queue, stop: threading.Event) -> None:
    """Answer requests with rollouts that differ a little, as ref_server would: sealed, put, acknowledged."""
    while not stop.is_set():
        for delivery in queue.consume(keys.REQUESTS, keys.GENERATORS, (GenerationRequest,), 32, 0.2):
            group = rollouts_of(delivery.message)
            digests.seal(queue.client, group)
            queue.publish(keys.ROLLOUTS, group)
            queue.ack(keys.GENERATORS, delivery)


def rollouts_of(request: GenerationRequest) -> RolloutGroup:
    body = "def run_tests():\n    pass\n" if request.sampling.seed % 3 else ""
    texts = [f"```python\n{body}x = {request.sampling.seed + i}\n```" for i in range(request.sampling.n)]
    completions = [
        Completion(
            token_ids=list(range(32)), logprobs=[-0.5] * 32, ref_logprobs=[-0.6] * 32, text=text, finish_reason="stop"
        )
        for text in texts
    ]
    return RolloutGroup(
        run_id=RUN, group_id=request.group_id, purpose="train", step=request.step, problem=request.problem, policy_version=0,
        replica="gen-0", prompt_ids=[1, 2], completions=completions, generate_s=0.0,
    )  # fmt: skip


class Sampler(threading.Thread):
    """Resident bytes by service, and the longest each stream has been."""

    def __init__(self, stack: Stack, stop: threading.Event):
        super().__init__(daemon=True)
        self.stack, self.stop = stack, stop
        self.memory: dict[str, list[int]] = defaultdict(list)
        self.longest: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        client = self.stack.client()
        trees = {p.name: psutil.Process(p.popen.pid) for p in self.stack.processes} | {"trainer side": psutil.Process()}
        while not self.stop.wait(1.0):
            for name, root in trees.items():
                self.memory[name].append(_resident(root, alone=name == "trainer side"))
            for stream in (keys.REQUESTS, keys.ROLLOUTS, keys.graded(RUN), keys.DEAD):
                self.longest[stream] = max(self.longest[stream], client.xlen(stream))


def _resident(root: psutil.Process, alone: bool) -> int:
    """Bytes a process and, unless alone, its children hold for themselves (shared pages counted once)."""
    total = 0
    for process in [root, *([] if alone else root.children(recursive=True))]:
        try:
            total += process.memory_info().rss - (process.memory_info().shared if process != root else 0)
        except psutil.NoSuchProcess:
            continue
    return total


def drive(stack: Stack, groups: int, seconds: float | None) -> dict:
    """Ask, collect and acknowledge; returns what was measured."""
    problem = load_problems(PRACTICE_TRAIN)[0]
    rollouts = Rollouts(
        Queue(stack.client("trainer"), "trainer-load", maxlen=BOUND, claim_idle_s=3600), RUN, 300, lambda: None
    )
    waiting: deque[tuple[float, list[GenerationRequest]]] = deque()
    latencies, done, step, started = deque(maxlen=100_000), 0, 0, time.monotonic()

    def more() -> bool:
        return time.monotonic() - started < seconds if seconds else step * BATCH < groups

    while waiting or more():
        while more() and len(waiting) < AHEAD:
            requests = [_request(problem, step, i) for i in range(BATCH)]
            rollouts.ask(requests)
            waiting.append((time.monotonic(), requests))
            step += 1
        asked_at, requests = waiting.popleft()
        collected = rollouts.collect(requests)
        rollouts.acknowledge(collected)
        latencies.append(time.monotonic() - asked_at)
        done += len(collected.groups)
        assert not collected.dropped, collected.dropped
        failed = [g.reason for graded in collected.groups for g in graded.grades if g.status != "graded"]
        assert not failed, failed[:3]
    took = time.monotonic() - started
    return {
        "groups": done,
        "asked": step * BATCH,
        "seconds": took,
        "latencies": latencies,
        "outcomes": rollouts.take_outcomes(),
    }


def _request(problem, step: int, i: int) -> GenerationRequest:
    plan = SamplingPlan(n=2, temperature=1.0, max_tokens=32, seed=step * BATCH + i)
    return samples.request(i, RUN, step=step, problem=problem, sampling=plan)


def level(samples: list[int]) -> tuple[int, int]:
    """(least of a quarter after warming up, least of the last quarter), bytes.

    The least, because a slow completion starts a helper's fork server, which stays for half a minute: some 19 MiB that come
    and go, on a loaded machine more often. What is leaked stays in the least too.
    """
    first, quarter = int(len(samples) * WARM), max(1, len(samples) // 4)
    return min(samples[first : first + quarter]), min(samples[-quarter:])


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__.splitlines()[0])
    p.add_argument("--groups", type=int, default=10_000)
    p.add_argument("--minutes", type=float, help="go on for so long instead")
    args = p.parse_args(argv)
    stop = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="load") as root,
        GradersOnly.start(Path(root), "", graders=WORKERS, isolation="best_effort") as stack,
    ):
        sampler = Sampler(stack, stop)
        queue = Queue(stack.client("ref_server"), "gen-0", maxlen=BOUND)
        generator = threading.Thread(target=generate, args=(queue, stop), daemon=True)
        sampler.start()
        generator.start()
        try:
            found = drive(stack, args.groups, args.minutes and args.minutes * 60)
        finally:
            stop.set()
            generator.join()
            sampler.join()
    report(found, sampler)
    check(found, sampler)
    return 0


def report(found: dict, sampler: Sampler) -> None:
    times = sorted(found["latencies"])
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    done, seconds = found["groups"], found["seconds"]
    print(f"{done} groups in {seconds:.0f} s ({done / seconds:.0f} a second), {WORKERS} workers")
    print(
        f"a batch of {BATCH} from asking to having, {AHEAD} batches ahead: median {p50:.2f} s, 99th percentile {p99:.2f} s"
    )
    print("longest: " + ", ".join(f"{stream} {n}" for stream, n in sampler.longest.items()))
    for name, taken in sampler.memory.items():
        before, after = level(taken)
        print(
            f"{name:14} {before / 2**20:8.1f} MiB warmed up, {after / 2**20:8.1f} MiB at the end ({len(taken)} samples)"
        )


def check(found: dict, sampler: Sampler) -> None:
    """AssertionError when something was lost, doubled, unbounded, or grew."""
    assert found["groups"] == found["asked"]
    assert not set(found["outcomes"]) & {"refused", "dropped", "stale"}, found["outcomes"]
    for stream in (keys.REQUESTS, keys.ROLLOUTS):
        assert sampler.longest[stream] <= BOUND + BATCH, (stream, sampler.longest[stream])
    assert sampler.longest[keys.graded(RUN)] <= BATCH * AHEAD
    assert sampler.longest[keys.DEAD] == 0
    for name, taken in sampler.memory.items():
        before, after = level(taken)
        assert after <= before * GROWTH + SLACK, f"{name} grew from {before >> 20} to {after >> 20} MiB"


if __name__ == "__main__":
    sys.exit(main())
