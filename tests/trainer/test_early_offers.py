"""What the generator offers to idle graders while it samples, and in how many round trips."""

import redis

from common import keys, offers
from common.offers import early_token
from common.queue import Queue
from common.types import RolloutGroup, SamplingPlan, Sibling
from common.wire import unpack
from services.ref_server.engine import Sample
from tests.samples import PROBLEM, request
from tests.trainer.test_bad_requests import Stub, generator, render


class Script(Stub):
    """An engine that ends, step by step, what it is told: (prompt, continuation, its text's token id)."""

    def __init__(self, *steps, after=lambda: None):
        super().__init__()
        self.steps, self.after = steps, after

    def generate(self, prompts, plans, ended=None):
        for step in self.steps:
            ended([(i, j, Sample([token, 2], [-0.5, -0.5], "stop")) for i, j, token in step])
            self.after()


def turn(redis_url, monkeypatch, sizes, *steps):
    """One batch of groups of these sizes; after each step of the engine what was offered in it, [(token, text)]."""
    monkeypatch.setattr(render, "decode", lambda ids: f"text {ids[0]}")
    seen = []

    def after():
        offered = [unpack(data, Sibling) for data in made.queue.client.lrange(keys.SIBLINGS, 0, -1)]
        made.queue.client.delete(keys.SIBLINGS)
        assert all(one.problem == problem for one in offered)
        seen.append([(one.token, one.text) for one in offered])

    made = generator(redis_url, Script(*steps, after=after))
    problem = PROBLEM.model_copy(update={"prompt": [{"role": "user", "content": "5 6"}]})
    plans = [SamplingPlan(n=n, temperature=1.0, max_tokens=8, seed=i) for i, n in enumerate(sizes)]
    asked = [request(i, problem=problem, sampling=plan) for i, plan in enumerate(plans)]
    made.queue.publish_many(keys.REQUESTS, asked)
    assert made.turn(0.1) == len(sizes)
    return made, seen


A, B = (early_token("r", f"r/train/0/{i}", 0) for i in range(2))


def test_a_completion_is_offered_when_it_ends_before_its_group(redis_url, monkeypatch):
    made, seen = turn(redis_url, monkeypatch, [3, 2], [(0, 1, 7), (1, 0, 8)], [(0, 2, 9)], [(1, 1, 5), (0, 0, 6)])
    assert seen == [[(A, "text 7"), (B, "text 8")], [(A, "text 9")], []], "the last of a group is not offered"
    groups = [d.message for d in Queue(made.queue.client, "t").consume(keys.ROLLOUTS, "t", (RolloutGroup,), 9, 0.1)]
    texts = {g.group_id[-1]: [c.text for c in g.completions] for g in groups}
    assert texts == {"0": ["text 6", "text 7", "text 9"], "1": ["text 8", "text 5"]}, "each in its place"


def test_what_gains_nobody_anything_is_not_offered(redis_url, monkeypatch):
    """A group of one, a text offered before, twice in a step, and two that complete their group together."""
    _, seen = turn(
        redis_url, monkeypatch, [1, 5], [(0, 0, 7), (1, 3, 7)], [(1, 0, 7)], [(1, 1, 8), (1, 2, 8)], [(1, 4, 9)]
    )
    assert seen == [[(B, "text 7")], [], [(B, "text 8")], []]
    _, seen = turn(redis_url, monkeypatch, [2], [(0, 0, 7), (0, 1, 8)])
    assert seen == [[]]


def test_a_step_of_the_engine_costs_one_round_trip_and_a_full_list_is_left_alone(redis_url, monkeypatch):
    made = generator(redis_url, Stub())
    siblings = [Sibling(token=A, problem=PROBLEM, text=f"text {i}") for i in range(5)]
    sent, real = [], redis.Connection.send_packed_command
    monkeypatch.setattr(redis.Connection, "send_packed_command", lambda *a, **k: sent.append(1) or real(*a, **k))
    monkeypatch.setattr(offers, "MOST_OFFERS", 8)

    def after(put):
        """(round trips, length of the list) of one step's offers."""
        sent.clear()
        made.offers.put(put)
        trips = len(sent)
        return trips, made.queue.client.llen(keys.SIBLINGS)

    assert [after(siblings) for _ in range(4)] == [(1, 5), (1, 10), (1, 10), (1, 10)]
    made.queue.client.delete(keys.SIBLINGS)
    assert after([]) == (0, 0), "a step in which nothing is to be offered asks nothing"
    assert after(siblings) == (2, 5), "once there is room, it offers again"
