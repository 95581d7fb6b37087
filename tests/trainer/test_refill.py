"""Dynamic sampling: a step worked by hand, its bound, and that a step asks for the same groups whenever it is done."""

import pytest

from common.settings import TrainerSettings, build
from services.trainer.collate import collate
from services.trainer.refill import refill, varies
from services.trainer.requests import refill_requests, train_requests
from tests.samples import PROBLEM, broken, grade, graded

PROBLEMS = [PROBLEM.model_copy(update={"id": f"p{i}"}) for i in range(10)]


def settings(**changes):
    values = {
        "run_id": "r", "run_dir": "r", "model": "m", "train_problems": "a", "heldout_problems": "b", "groups_per_step": 4,
        "group_size": 2, "refill": 5,
    }  # fmt: skip
    return build(TrainerSettings, values | changes)


def groups(rewards):
    return [graded([grade(r) if r is not None else broken() for r in group]) for group in rewards]


class Sampler:
    """Answers with the rewards given, in order; None: that group was dropped."""

    def __init__(self, *answers):
        self.answers, self.rounds, self.requests = list(answers), [], []

    def __call__(self, requests):
        self.rounds.append(len(requests))
        self.requests += requests
        came = [self.answers.pop(0) for _ in requests]
        return groups([rewards for rewards in came if rewards is not None])


def paid(came):
    return [[g.reward for g in group.grades] for group in came]


FIRST = [[1.0, 1.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]]


def test_a_step_by_hand():
    """Three of four have no variance. Round 1 asks 3: one is good, one is flat, one is dropped. Round 2 asks 2 (the bound
    of 5 leaves no more): both good, so nothing is missing."""
    sampler = Sampler([1.0, 0.0], [1.0, 1.0], None, [0.0, 3.0], [2.0, 0.5])
    new, rewards = refill(settings(), PROBLEMS, 7, FIRST, sampler, paid)
    assert sampler.rounds == [3, 2]
    assert [r.group_id for r in sampler.requests] == [f"r/train/7/{i}" for i in range(4, 9)]
    assert rewards == [[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [2.0, 0.5]] and len(new) == 4

    batch = collate(groups(FIRST) + new, FIRST + rewards, settings(), 7, refilled=4)
    s = batch.stats
    assert (s["groups"], s["zero_variance_groups"], s["trained_groups"]) == (8, 4, 4)
    assert (s["refill_sampled"], s["refill_kept"]) == (4, 3)
    assert len(batch.rows) == 8 and all(row.advantage for row in batch.rows)
    assert s["reward_mean"] == pytest.approx(7 / 8), "of the first groups alone: 1+1+0+1+2+2+0+0 over 8"
    assert s["tokens"] == 8 * 2 * 3 and sum(s["label_counts"].values()) == 8


def test_with_a_kl_term_the_batch_keeps_its_size():
    """Groups without variance stay in for their KL: of 4 first + 3 new (1 with variance), 2 with and 2 without remain."""
    more = [[1.0, 1.0], [0.0, 1.0], [3.0, 3.0]]
    batch = collate(groups(FIRST + more), FIRST + more, settings(kl_beta=0.1), 0, refilled=3)
    assert batch.stats["zero_variance_groups"] == 5 and batch.stats["trained_groups"] == 4
    assert sum(row.advantage == 0 for row in batch.rows) == 4
    plain = collate(groups(FIRST), FIRST, settings(kl_beta=0.1), 0)
    assert len(plain.rows) == 8 and plain.stats["refill_sampled"] == plain.stats["refill_kept"] == 0


@pytest.mark.parametrize("bound, rounds", [(0, []), (1, [1]), (3, [3]), (5, [3, 2]), (8, [3, 3, 2])])
def test_the_bound_holds_where_no_group_ever_varies(bound, rounds):
    sampler = Sampler(*[[0.5, 0.5]] * 9)
    new, _ = refill(settings(refill=bound), PROBLEMS, 0, FIRST, sampler, paid)
    assert sampler.rounds == rounds and len(new) == bound


def test_nothing_is_asked_for_where_all_groups_vary_and_dropped_groups_do_not_loop():
    sampler = Sampler(*[None] * 9)
    assert refill(settings(), PROBLEMS, 0, [[0.0, 1.0]] * 4, sampler, paid) == ([], [])
    assert refill(settings(), PROBLEMS, 0, FIRST, sampler, paid) == ([], [])
    assert sampler.rounds == [3, 2]


def test_variance_is_that_of_the_advantages():
    s = settings()
    assert varies([0.0, 1.0], s) and not varies([1.0, 1.0 + 1e-9], s)
    assert not varies([None, 1.0], s) and not varies([None, None], s) and varies([None, 1.0, 2.0], s)


def test_a_step_asks_for_the_same_groups_whenever_and_however_often_it_asks():
    s = settings()
    at_once = refill_requests(s, PROBLEMS, 3, 0, 5)
    assert refill_requests(s, PROBLEMS, 3, 0, 2) + refill_requests(s, PROBLEMS, 3, 2, 3) == at_once
    other_arm = refill_requests(settings(run_id="other", arm="projected"), PROBLEMS, 3, 0, 5)
    assert [r.problem for r in other_arm] == [r.problem for r in at_once]
    assert [r.sampling for r in other_arm] == [r.sampling for r in at_once]


def test_no_group_of_a_run_shares_its_id_or_its_seed():
    s = settings()
    asked = [r for k in range(6) for r in train_requests(s, PROBLEMS, k) + refill_requests(s, PROBLEMS, k, 0, s.refill)]
    assert len({r.group_id for r in asked}) == len({r.sampling.seed for r in asked}) == len(asked) == 6 * 9
    drawn = [r.problem.id for k in range(2) for r in refill_requests(s, PROBLEMS, k, 0, 5)]
    assert sorted(drawn) == sorted(p.id for p in PROBLEMS), "two steps of five go once through ten problems"
