"""Grading overlaps sampling: a group is graded while others are sampled, a completion while its siblings are."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

from common import keys
from common.metrics import Metrics
from common.offers import early_token
from common.queue import Queue, connect
from common.settings import RefServerSettings, SandboxSettings, build
from common.types import GradedGroup
from services.ref_server.engine import Sample
from services.ref_server.generation import Generator
from services.sandbox import worker as worker_module
from services.sandbox.worker import Worker
from tests.samples import request


class Engine:
    """Samples a group at a time; the second only once somebody has graded the first, or given up waiting for that."""

    def __init__(self, queue):
        self.queue = queue
        self.graded_meanwhile = []

    def generate(self, prompts, plans, ended):
        sample = Sample([5, 2], [-0.5, -0.5], "stop")
        groups = [[(i, j, sample) for j in range(plan.n)] for i, plan in enumerate(plans)]
        ended(groups[0])
        deadline = time.monotonic() + 60
        while not self.graded_meanwhile and time.monotonic() < deadline:
            taken = self.queue.consume(keys.graded("r"), keys.TRAINERS, (GradedGroup,), wait_s=0.2)
            self.graded_meanwhile += [delivery.message.group.group_id for delivery in taken]
        ended(groups[1])
        return [[sample for *_, sample in group] for group in groups]


class OneByOne:
    """Ends the second of a group's two completions only once somebody has graded the first, or given up waiting for that."""

    def __init__(self, client):
        self.client = client
        self.graded_meanwhile = 0

    def generate(self, prompts, plans, ended):
        ended([(0, 0, Sample([5, 2], [-0.5, -0.5], "stop"))])
        answers, deadline = keys.sibling_grades(early_token("r", "r/train/0/0", 0)), time.monotonic() + 60
        while not self.graded_meanwhile and time.monotonic() < deadline:
            time.sleep(0.05)
            self.graded_meanwhile = self.client.hlen(answers)
        ended([(0, 1, Sample([6, 2], [-0.5, -0.5], "stop"))])


class Render:
    def __call__(self, messages):
        return [1, 3, 4]

    def decode(self, ids):
        body = "return x + 1" if ids[0] == 5 else "return x"
        return f"```python\nclass Solution:\n    def f(self, x):\n        {body}\n```"


@contextlib.contextmanager
def generating(redis_url, engine):
    """A generator with this engine, and a worker that grades what it makes."""

    def queue(name):
        return Queue(connect(redis_url), name)

    policy = SimpleNamespace(lock=threading.Lock(), ensure=lambda run_id, version: None, version=0, engine=engine)
    reference = SimpleNamespace(logprobs=lambda prompts, ids, temperature: [[-0.6] * len(row) for row in ids])
    settings = build(RefServerSettings, {"model": "tasks/organism/model", "redis_url": redis_url})
    worker = Worker(
        build(SandboxSettings, {"redis_url": redis_url, "name": "w", "isolation": "best_effort", "parallel": 1}),
        queue("w"),
        Metrics("sandbox"),
    )
    stop = threading.Event()
    grader = threading.Thread(target=worker.run, args=(stop,))
    grader.start()
    try:
        yield Generator(policy, reference, Render(), queue("gen"), settings, Metrics("ref_server"))
    finally:
        stop.set()
        grader.join()
        worker.close()


@pytest.mark.timeout(180)
def test_a_group_is_graded_before_its_batch_is_sampled(redis_url):
    engine = Engine(Queue(connect(redis_url), "trainer"))
    with generating(redis_url, engine) as generator:
        engine.queue.publish_many(keys.REQUESTS, [request(0), request(1)])
        assert generator.turn() == 2
        assert engine.graded_meanwhile == ["r/train/0/0"]


@pytest.mark.timeout(180)
def test_a_completion_is_graded_once_and_before_its_group_is_sampled(redis_url, monkeypatch):
    graded, real = [], worker_module.grade_completion
    monkeypatch.setattr(
        worker_module,
        "grade_completion",
        lambda problem, text, *rest: graded.append(text) or real(problem, text, *rest),
    )
    queue = Queue(connect(redis_url), "trainer")
    engine = OneByOne(queue.client)
    with generating(redis_url, engine) as generator:
        queue.publish(keys.REQUESTS, request(0))
        assert generator.turn() == 1
        assert engine.graded_meanwhile == 1
        (delivery,) = queue.consume(keys.graded("r"), keys.TRAINERS, (GradedGroup,), wait_s=60)
    made = delivery.message
    assert [grade.label for grade in made.grades] == ["Correct", "Incorrect"]
    assert graded == [completion.text for completion in made.group.completions]
