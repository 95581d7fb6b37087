"""What a hijacked grader can write into the graded stream, and what the trainer makes of it. On a real Redis.

The grader can read every rollout group and append anything (tests/hostile/test_access.py shows that it can do no more).
"""

import msgpack
import pytest

from common import digests, keys
from common.errors import ConfigError, QueueError, WireError
from common.lock import TrainerLock
from common.queue import FIELD, Queue, connect
from common.types import DroppedGroup, GenerationRequest, GradedGroup, Problem, RolloutGroup
from common.wire import pack, unpack
from services.trainer.rollouts import Rollouts, unlike
from tests.samples import PROBLEM, completion, grade, graded, group, request


@pytest.fixture
def queue(redis_url):
    return Queue(connect(redis_url), "trainer-r", claim_idle_s=3600)


@pytest.fixture
def rollouts(queue):
    made = Rollouts(queue, "r", 1.5, lambda: None)
    made.ask([request(0), request(1)])
    return made


def sampled(queue, i=0, **changes):
    """What a generator made and sealed."""
    made = altered(group(group_id=f"r/train/0/{i}"), **changes)
    digests.seal(queue.client, made)
    return made


def write(queue, message):
    queue.publish(keys.graded("r"), message)


def answer(made, reward=0.5):
    return GradedGroup(group=made, grades=[grade(reward) for _ in made.completions], worker="evil", grade_s=0.1)


def reasons(queue):
    return [fields[b"reason"].decode() for _, fields in queue.client.xrange(keys.DEAD)]


def altered(made, **changes):
    return RolloutGroup(**(made.model_dump() | changes))


FORGERIES = {
    "completions never sampled": lambda g: altered(g, completions=[completion(ids=(7, 7, 7)), completion()]),
    "other log-probs": lambda g: altered(
        g, completions=[completion(), completion().model_copy(update={"logprobs": [-9.0] * 3})]
    ),
    "other reference": lambda g: altered(g, completions=[completion(), completion(ref=False)]),
    "another text": lambda g: altered(g, completions=[completion(), completion(text="x")]),
    "another problem": lambda g: altered(g, problem=PROBLEM.model_copy(update={"id": "p2"})),
    "another version": lambda g: altered(g, policy_version=99),
    "another replica": lambda g: altered(g, replica="gen-9"),
    "another step": lambda g: altered(g, step=1),
    "rollouts of another group": lambda g: altered(g, group_id="r/train/0/1"),
    "fewer completions": lambda g: altered(g, completions=[completion()]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_group_is_refused_and_the_honest_one_still_trained(queue, rollouts, name):
    made = sampled(queue)
    write(queue, answer(FORGERIES[name](made), reward=3.5))
    write(queue, answer(made))
    (got,) = rollouts.collect([request(0)]).groups
    assert got.group == made
    assert [g.reward for g in got.grades] == [0.5, 0.5]
    assert rollouts.take_outcomes()["refused"] == 1
    assert reasons(queue) == ["no generator has sealed these completions"]


def test_a_sealed_group_that_does_not_answer_the_question_is_refused(queue, rollouts):
    """The generator's own word is not enough either: the trainer compares with what it asked."""
    other = Problem(**(PROBLEM.model_dump() | {"gt_answer": []}))
    write(queue, answer(sampled(queue, problem=other)))
    write(queue, answer(sampled(queue, step=7)))
    write(queue, answer(sampled(queue, completions=[completion()] * 3)))
    write(queue, answer(sampled(queue, completions=[completion(ids=range(9)), completion()])))
    with pytest.raises(QueueError, match="did not come"):
        rollouts.collect([request(0)])
    assert rollouts.take_outcomes()["refused"] == 4
    assert len(set(reasons(queue))) == 4


def test_a_verdict_is_accepted_once(queue, rollouts):
    made = sampled(queue)
    for reward in (0.5, 3.5, 3.5):
        write(queue, answer(made, reward))
    collected = rollouts.collect([request(0)])
    assert [g.reward for g in collected.groups[0].grades] == [0.5, 0.5]
    rollouts.acknowledge(collected)
    write(queue, answer(made, 3.5))
    rollouts.recover()
    assert rollouts.take_outcomes()["duplicate"] == 3
    assert queue.depth(keys.graded("r")) == 0
    assert not queue.client.exists(keys.seals("r", "r/train/0/0")), "no seal outlives its group"


def test_answers_to_questions_nobody_put_are_not_hoarded(queue, rollouts, monkeypatch):
    monkeypatch.setattr("services.trainer.rollouts.PARKED", 5)
    for i in range(50):
        write(queue, DroppedGroup(run_id="r", group_id=f"r/train/9/{i}", stage="grade", reason="x"))
    write(queue, answer(sampled(queue)))
    assert len(rollouts.collect([request(0)]).groups) == 1
    assert rollouts.take_outcomes()["refused"] == 45


def test_a_group_of_another_run_is_refused(queue, rollouts):
    made = group(run_id="other", group_id="r/train/0/0")
    digests.seal(queue.client, made)
    write(queue, answer(made))
    write(queue, answer(sampled(queue)))
    assert rollouts.collect([request(0)]).groups[0].group.run_id == "r"
    assert "it is of run other" in reasons(queue)


def test_garbage_in_the_stream_goes_to_the_dead_letters(queue, rollouts):
    for garbage in (b"", b"\x80", b"\x91" * 5000, pack(request(0)), b"\xff" * 1000):
        queue.client.xadd(keys.graded("r"), {FIELD: garbage})
    queue.client.xadd(keys.graded("r"), {b"other": b"field"})
    write(queue, answer(sampled(queue)))
    assert len(rollouts.collect([request(0)]).groups) == 1
    assert queue.client.xlen(keys.DEAD) == 6


def test_a_group_that_a_grader_threw_away_is_asked_for_again(queue, rollouts):
    generator = Queue(queue.client, "gen")
    for delivery in generator.consume(keys.REQUESTS, keys.GENERATORS, (GenerationRequest,), 10):
        generator.ack(keys.GENERATORS, delivery)  # sampled, put, and then swallowed by a grader
    rollouts.timeout_s = 4.5
    with pytest.raises(QueueError):
        rollouts.collect([request(0)])
    assert rollouts.take_outcomes()["asked_again"] == 1
    (again,) = generator.consume(keys.REQUESTS, keys.GENERATORS, (GenerationRequest,), 10)
    assert again.message == request(0), "the same question with the same seed"


@pytest.mark.parametrize("reward", [float("inf"), float("nan"), -1.0, 1e9])
def test_a_reward_that_no_grading_gives_is_no_message(reward):
    packed, honest = pack(graded([grade(0.5)])), b"\xa6reward" + msgpack.packb(0.5)
    assert packed.count(honest) == 1
    raw = packed.replace(honest, b"\xa6reward" + msgpack.packb(reward))
    with pytest.raises(WireError, match="reward"):
        unpack(raw, GradedGroup)


def test_the_digest_of_a_group_survives_the_way(queue):
    """Sealed on one side of the wire, checked on the other: surrogates, numbers as they are, unknown problem fields."""
    problem = Problem(**(PROBLEM.model_dump() | {"x": {"deep": [1, 2.0, None, "\ud800"]}, "id": 7}))
    both = [completion(text="\udcff \N{SNOWMAN}"), completion(ref=False)]
    made = altered(group(), problem=problem, completions=both, generate_s=1)
    assert digests.digest(unpack(pack(unpack(pack(made), RolloutGroup)), RolloutGroup)) == digests.digest(made)


def test_what_an_honest_answer_is():
    made = group(group_id="r/train/0/0")
    assert unlike(answer(made), request(0)) == ""


def test_a_trainer_that_lost_its_lock_pushes_nothing(redis_url):
    client = connect(redis_url)
    lock = TrainerLock(client, "r")
    lock.require()
    client.set(keys.trainer_lock("r"), "elsewhere 1 2 abcd")
    with pytest.raises(ConfigError, match="another trainer"):
        lock.require()
    lock.release()
    assert client.get(keys.trainer_lock("r")) == b"elsewhere 1 2 abcd"
