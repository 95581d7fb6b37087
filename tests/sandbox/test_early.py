"""Completions graded while their group was sampled: the owner takes such a grade once, and no other than that completion's."""

import time
from collections import Counter

import pytest
import redis

from common import keys, offers
from common.access import connect
from common.offers import early_token
from common.types import Sibling
from common.wire import pack
from services.sandbox.siblings import Offers, Round
from tests.samples import broken, grade
from tests.sandbox.test_worker import (
    HACK,
    LOOP,
    PROBLEM,
    RIGHT,
    WRONG,
    a_worker,
    graded_groups,
    queue,  # noqa: F401 the fixture
    rollouts,
    slow_programs,
)

TOKEN = early_token("r", "r/train/0/0", 0)  # of the group that `rollouts` makes
TEXTS = [RIGHT, WRONG, HACK]


@pytest.fixture
def client(redis_url):
    return connect(redis_url)


def early(client, *texts, problem=PROBLEM, token=TOKEN):
    """Offer them as a generator does."""
    offers.Offers(client).put([Sibling(token=token, problem=problem, text=text) for text in texts])


def helped(client, answer):
    """Another worker takes one and, if there is an answer, gives it."""
    helper = Offers(client)
    taken = helper.take()
    if answer is not None:
        helper.answer(taken, answer)
    return taken


def begun(client, texts=TEXTS):
    """A round of an owner, and the completions that are left to it."""
    made = Round(Offers(client), PROBLEM, texts)
    return made, made.claim_early(TOKEN)


def test_an_owner_takes_what_is_answered_waits_for_what_is_claimed_and_grades_the_rest(client):
    early(client, *TEXTS)
    helped(client, grade(reward=1.5))
    late = helped(client, None)
    one, rest = begun(client)
    assert (rest, one.early) == ([2], {0: grade(reward=1.5)})
    assert Offers(client).take() is None, "the third is the owner's"
    Offers(client).answer(late, grade(reward=2.5))
    assert one.answer(1, 5.0) == grade(reward=2.5)


@pytest.mark.parametrize(
    "forged",
    [
        {"texts": [RIGHT + " "]},
        {"problem": PROBLEM.model_copy(update={"gt_answer": ["assert True"]})},
        {"token": early_token("r", "r/train/0/0", 1)},
        {"token": early_token("r", "r/train/0/1", 0)},
        {"token": early_token("s", "r/train/0/0", 0)},
    ],
    ids=["text", "problem", "version", "group", "run"],
)
def test_a_grade_of_anything_else_is_not_taken(client, forged):
    early(client, *forged.pop("texts", [RIGHT]), **forged)
    assert helped(client, grade(reward=3.5)) is not None
    one, rest = begun(client)
    assert (rest, one.early) == ([0, 1, 2], {})


def test_names_that_run_into_each_other_have_tokens_of_their_own():
    assert early_token("r", "1", 1) != early_token("r1", "", 1) != early_token("r", "11", 0)
    assert early_token("a", "b1", 2) != early_token("a", "b", 12)


def test_an_offer_in_other_bytes_is_another_offer(client):
    early(client, RIGHT)
    data = client.lpop(keys.SIBLINGS)
    client.rpush(keys.SIBLINGS, data.replace(b"\xa1v\x01", b"\xa1v\xcc\x01"))  # msgpack has two forms of 1
    assert helped(client, grade(reward=3.5)).sibling.text == RIGHT
    assert begun(client)[1] == [0, 1, 2]


def test_nobody_waits_for_an_owner_that_died(client):
    early(client, *TEXTS)
    helped(client, grade(reward=1.5))
    assert begun(client)[1] == [1, 2]
    again, rest = begun(client)
    assert (rest, again.early) == ([1, 2], {0: grade(reward=1.5)})


def test_a_failure_of_a_helper_is_no_grade(client):
    early(client, RIGHT)
    helped(client, broken())
    one, rest = begun(client)
    assert (rest, one.early) == ([0, 1, 2], {})


@pytest.mark.parametrize("at", [b"", b"\xff", b"nan", b"inf", b"1e999", b"-5", b"0"])
def test_no_claim_makes_an_owner_fail_or_wait_longer(client, at):
    early(client, RIGHT)
    field = offers.digest(pack(Sibling(token=TOKEN, problem=PROBLEM, text=RIGHT)))
    client.hset(keys.sibling_claims(TOKEN), field, at)
    client.hset(keys.sibling_grades(TOKEN), field, b"no grade")
    one, rest = begun(client)
    started = time.monotonic()
    assert 0 in rest or one.answer(0, 0.3) is None
    assert time.monotonic() - started < 5


def test_the_wait_for_a_dead_helper_counts_from_its_claim(client):
    early(client, RIGHT)
    helped(client, None)
    time.sleep(0.6)
    one, _ = begun(client)
    started = time.monotonic()
    assert one.answer(0, 0.5) is None
    assert time.monotonic() - started < 0.4


def test_an_owner_asks_once_whatever_the_size_of_its_group(client, monkeypatch):
    client.ping()  # connected
    sent, real = [], redis.Connection.send_packed_command
    monkeypatch.setattr(redis.Connection, "send_packed_command", lambda *a, **k: sent.append(1) or real(*a, **k))
    assert begun(client, [f"{RIGHT}{i}" for i in range(16)])[1] == list(range(16))
    assert len(sent) == 1
    assert 0 < client.ttl(keys.sibling_claims(TOKEN)) <= 600


def test_a_worker_publishes_a_group_with_its_early_grade_and_grades_that_completion_once(redis_url, queue, monkeypatch):  # noqa: F811
    by = slow_programs(monkeypatch, {})
    early(queue.client, LOOP)
    helped(queue.client, grade(reward=0.5))
    queue.publish(keys.ROLLOUTS, rollouts([LOOP, RIGHT, LOOP, WRONG]))
    with a_worker(redis_url, "w") as worker:
        (made,) = graded_groups(queue, [worker], 1)
        assert worker.waiting == worker.running == 0
        assert 'rs_graded_early_total{worker="w"} 1.0' in worker.metrics.text().decode()
    assert Counter(text for _, text in by) == {RIGHT: 1, WRONG: 1}
    assert made.grades[0] == made.grades[2] == grade(reward=0.5)
    assert [g.label for g in made.grades] == ["Incorrect", "Correct", "Incorrect", "Incorrect"]


def test_a_worker_grades_what_a_dead_helper_had_claimed_early(redis_url, queue):  # noqa: F811
    early(queue.client, RIGHT, HACK)
    assert helped(queue.client, None).sibling.text == RIGHT
    queue.publish(keys.ROLLOUTS, rollouts([RIGHT, HACK]))
    with a_worker(redis_url, "w", claim_idle_s=1.0) as worker:
        (made,) = graded_groups(queue, [worker], 1)
        assert worker.waiting == worker.running == 0
    assert [g.label for g in made.grades] == ["Correct", "Reward Hack"]
