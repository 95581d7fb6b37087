"""Grading overlaps sampling: the first group of a batch is graded while the engine still samples the second."""

import threading
import time
from types import SimpleNamespace

import pytest

from common import keys
from common.metrics import Metrics
from common.queue import Queue, connect
from common.settings import RefServerSettings, SandboxSettings, build
from common.types import GradedGroup
from services.ref_server.engine import Sample
from services.ref_server.generation import Generator
from services.sandbox.worker import Worker
from tests.samples import request


class Engine:
    """Samples a group at a time; the second only once somebody has graded the first, or given up waiting for that."""

    def __init__(self, queue):
        self.queue = queue
        self.graded_meanwhile = []

    def generate(self, prompts, plans, finished):
        groups = [[Sample([5, 2], [-0.5, -0.5], "stop") for _ in range(plan.n)] for plan in plans]
        finished(0, groups[0])
        deadline = time.monotonic() + 60
        while not self.graded_meanwhile and time.monotonic() < deadline:
            taken = self.queue.consume(keys.graded("r"), keys.TRAINERS, (GradedGroup,), wait_s=0.2)
            self.graded_meanwhile += [delivery.message.group.group_id for delivery in taken]
        finished(1, groups[1])
        return groups


class Render:
    def __call__(self, messages):
        return [1, 3, 4]

    def decode(self, ids):
        return "```python\nclass Solution:\n    def f(self, x):\n        return x + 1\n```"


@pytest.mark.timeout(180)
def test_a_group_is_graded_before_its_batch_is_sampled(redis_url):
    def queue(name):
        return Queue(connect(redis_url), name)

    engine = Engine(queue("trainer"))
    policy = SimpleNamespace(lock=threading.Lock(), ensure=lambda run_id, version: None, version=0, engine=engine)
    reference = SimpleNamespace(logprobs=lambda prompts, ids, temperature: [[-0.6] * len(row) for row in ids])
    settings = build(RefServerSettings, {"model": "tasks/organism/model", "redis_url": redis_url})
    generator = Generator(policy, reference, Render(), queue("gen"), settings, Metrics("ref_server"))
    worker = Worker(
        build(SandboxSettings, {"redis_url": redis_url, "name": "w", "isolation": "best_effort", "parallel": 1}),
        queue("w"),
        Metrics("sandbox"),
    )
    stop = threading.Event()
    grader = threading.Thread(target=worker.run, args=(stop,))
    grader.start()
    try:
        engine.queue.publish_many(keys.REQUESTS, [request(0), request(1)])
        assert generator.turn() == 2
        assert engine.graded_meanwhile == ["r/train/0/0"]
    finally:
        stop.set()
        grader.join()
        worker.close()
