"""A request that cannot be posed or sampled costs its own group, with its own reason, and no other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from samples import PROBLEM, grade, graded, request

from common import delta_store, digests, keys
from common.access import connect
from common.errors import ConfigError
from common.metrics import Metrics
from common.queue import Queue
from common.settings import RefServerSettings
from common.types import DeltaS, DroppedGroup, RolloutGroup, checksum
from rankspace import RankspaceError
from services.ref_server.engine import Loaded, Sample
from services.ref_server.generation import Generator
from services.ref_server.served_policy import ServedPolicy
from services.trainer.rollouts import Rollouts


class Stub:
    """An engine without weights. It refuses (ValueError) or dies of (RuntimeError) a prompt that begins with a given id."""

    def __init__(self, refuses=(), dies_of=()):
        self.refuses, self.dies_of = set(refuses), set(dies_of)

    def load(self, delta):
        return Loaded(checksum(delta.vector), 0.0, len(delta.modules))

    def probe(self, ids):
        return [-1.0] * (len(ids) - 1)

    def generate(self, prompts, plans, ended=None):
        for i, (prompt, plan) in enumerate(zip(prompts, plans, strict=True)):
            if prompt[0] in self.refuses:
                raise ValueError(f"token id {prompt[0]} is out of vocabulary\nand more")
            if prompt[0] in self.dies_of:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            ended([(i, j, Sample([7, 2], [-0.5, -0.5], "stop")) for j in range(plan.n)])


def render(messages):
    """One id a word; the first is what the word says."""
    if messages[0]["role"] == "system":
        raise RankspaceError("the chat template refuses the prompt: System role not supported")
    return [int(word) for word in messages[0]["content"].split()]


render.decode = lambda ids: "x"


def generator(redis_url, engine):
    queue = Queue(connect(redis_url), "gen-0")
    settings, metrics = RefServerSettings(model="none", replica="gen-0", max_model_len=16), Metrics("ref_server")
    zeros = bytes(8)
    delta = DeltaS(
        run_id="r", version=0, modules=[("m", 2)], vector=zeros, checksum=checksum(zeros), probe_ids=[1, 2, 3]
    )
    delta_store.publish(queue.client, delta)
    policy = ServedPolicy(engine, queue, settings, metrics)
    reference = SimpleNamespace(logprobs=lambda prompts, completions, t: [[-0.6] * len(c) for c in completions])
    return Generator(policy, reference, render, queue, settings, metrics)


def ask(queue, *prompts, tokens=8):
    for i, prompt in enumerate(prompts):
        queue.publish(keys.REQUESTS, request(i, tokens=tokens, problem=PROBLEM.model_copy(update={"prompt": prompt})))


def outcome(queue):
    """({group number: reason} of what was dropped, numbers of what was sampled)."""
    dropped = queue.consume(keys.graded("r"), "t", (DroppedGroup,), 99, 0.01)
    made = queue.consume(keys.ROLLOUTS, "t", (RolloutGroup,), 99, 0.01)
    number = lambda message: int(message.group_id.rpartition("/")[2])  # noqa: E731
    return {number(d.message): d.message.reason for d in dropped}, sorted(number(d.message) for d in made)


USER = [{"role": "user", "content": "5 6"}]
SYSTEM = [{"role": "system", "content": "s"}, *USER]


def test_a_template_that_refuses_some_prompts(redis_url):
    made = generator(redis_url, Stub())
    ask(made.queue, SYSTEM, USER, SYSTEM, USER)
    made.turn(0.1)
    dropped, sampled = outcome(made.queue)
    assert sampled == [1, 3] and dropped.keys() == {0, 2}
    assert all("System role not supported" in why for why in dropped.values())
    assert made.queue.depth(keys.REQUESTS) == 0


def test_a_prompt_that_leaves_no_room_for_its_completion(redis_url):
    made = generator(redis_url, Stub())
    long = [{"role": "user", "content": "5 " * 9}]
    ask(made.queue, long, USER)
    made.turn(0.1)
    dropped, sampled = outcome(made.queue)
    assert sampled == [1]
    assert dropped[0].startswith("too long: a prompt of 9 tokens and max_tokens 8 do not fit") and "16" in dropped[0]


def test_what_the_engine_refuses_costs_no_neighbour(redis_url):
    made = generator(redis_url, Stub(refuses={9}))
    ask(made.queue, USER, [{"role": "user", "content": "9"}], USER)
    made.turn(0.1)
    dropped, sampled = outcome(made.queue)
    assert sampled == [0, 2] and dropped == {1: "the engine refuses it: token id 9 is out of vocabulary"}


def test_what_may_have_harmed_the_engine_ends_it(redis_url):
    made = generator(redis_url, Stub(dies_of={9}))
    ask(made.queue, [{"role": "user", "content": "9"}], USER)
    with pytest.raises(RuntimeError, match="illegal memory"):
        made.turn(0.1)
    assert outcome(made.queue) == ({}, [])


def test_a_generator_that_renders_otherwise_is_refused_with_its_name(redis_url):
    queue = Queue(connect(redis_url), "t")
    (asked,) = requests = [request(0)]
    for rendered in ([1, 3, 4], [1, 3, 5]):
        rollouts = Rollouts(queue, "r", 5.0, lambda: None, render=lambda messages, ids=rendered: ids)
        rollouts.ask(requests)
        answer = graded([grade(), grade()])
        digests.seal(queue.client, answer.group)
        queue.publish(keys.graded("r"), answer)
        if rendered == answer.group.prompt_ids:
            collected = rollouts.collect(requests)
            assert [g.group.group_id for g in collected.groups] == [asked.group_id]
            rollouts.acknowledge(collected)
        else:
            with pytest.raises(ConfigError, match="generator gen-0 renders problem p1 otherwise"):
                rollouts.collect(requests)
