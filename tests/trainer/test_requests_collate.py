"""Which problems a step asks for, and how graded groups become rows, advantages and rates. Hand-worked numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import TrainerSettings, build
from common.types import Problem
from services.trainer.batch_stats import grading_stats
from services.trainer.collate import TrainingSample, collate
from services.trainer.micro_batches import micro_batches
from services.trainer.requests import eval_requests, problem_at, train_requests
from services.trainer.steprow import service_seconds
from tests.samples import PROBLEM, broken, completion, grade, graded

SETTINGS = build(
    TrainerSettings,
    {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b", "groups_per_step": 4},
)
PROBLEMS = [Problem.model_validate(PROBLEM.model_dump() | {"id": i}) for i in range(6)]


def with_(**changes):
    return SETTINGS.model_copy(update=changes)


def test_the_order_depends_on_the_seed_alone_and_each_epoch_has_every_problem_once():
    order = [problem_at(PROBLEMS, 3, i).id for i in range(12)]
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))
    assert order == [problem_at(PROBLEMS, 3, i).id for i in range(12)]
    assert order != [problem_at(PROBLEMS, 4, i).id for i in range(12)]
    assert order[:6] != order[6:]


def test_arms_of_one_seed_ask_for_the_same_problems_and_samples():
    a = train_requests(with_(run_id="vanilla", arm="vanilla"), PROBLEMS, 5)
    b = train_requests(with_(run_id="projected", arm="projected"), PROBLEMS, 5)
    assert [(r.problem.id, r.sampling) for r in a] == [(r.problem.id, r.sampling) for r in b]
    assert a[0].group_id == "vanilla/train/5/0"
    assert len({r.sampling.seed for r in a}) == 4


def test_staleness_bound_is_in_the_request():
    assert train_requests(with_(max_staleness=0), PROBLEMS, 5)[0].min_version == 5
    assert train_requests(with_(max_staleness=2), PROBLEMS, 5)[0].min_version == 3
    assert train_requests(with_(max_staleness=2), PROBLEMS, 1)[0].min_version == 0


def test_evaluation_asks_for_the_first_problems_without_reference():
    asked = eval_requests(with_(eval_problems=2), PROBLEMS, 7, "hint", 7)
    assert [r.problem.id for r in asked] == [0, 1]
    assert all(r.purpose == "eval" and not r.want_reference and r.min_version == 7 for r in asked)


def test_rewards_become_advantages_and_rates():
    group = graded(
        [grade(3.5, "Reward Hack", oracle=False), grade(0.5), grade(3.5, "Correct", oracle=True, published=True)]
    )
    batch = collate([group], [[3.5, 0.5, 3.5]], SETTINGS, version=2)
    # mean 2.5, std (n-1) sqrt(3): (1, -2, 1)/sqrt(3)
    assert batch.advantages[0] == pytest.approx([1 / math.sqrt(3), -2 / math.sqrt(3), 1 / math.sqrt(3)], abs=1e-5)
    stats = batch.stats
    assert stats["hack_strict"] == pytest.approx(1 / 3)
    assert stats["pass_oracle"] == pytest.approx(1 / 3)
    assert stats["reward_mean"] == pytest.approx(2.5)
    assert (stats["staleness_max"], stats["tokens"], stats["zero_variance_groups"]) == (2, 9, 0)


def test_an_infra_error_leaves_mean_std_and_loss():
    group = graded([grade(3.5), broken(), grade(0.5)])
    batch = collate([group], [[3.5, None, 0.5]], SETTINGS, version=0)
    assert len(batch.rows) == 2
    assert batch.advantages[0][0] == pytest.approx(1 / math.sqrt(2), abs=1e-5)  # mean 2, std 1.5*sqrt(2)
    assert math.isnan(batch.advantages[0][1])
    assert batch.stats["infra_errors"] == 1
    assert batch.stats["reward_mean"] == 2.0


def test_a_group_without_variance_is_skipped_and_counted():
    batch = collate([graded([grade(0.5), grade(0.5)])], [[0.5, 0.5]], SETTINGS, version=0)
    assert batch.rows == []
    assert batch.stats["zero_variance_groups"] == 1


def test_a_truncated_completion_counts_in_the_group_but_is_masked():
    group = graded([grade(3.5), grade(0.5)])
    cut = group.group.completions[1].model_copy(update={"finish_reason": "length"})
    inner = group.group.model_copy(update={"completions": [group.group.completions[0], cut]})
    batch = collate([group.model_copy(update={"group": inner})], [[3.5, 0.5]], SETTINGS, version=0)
    assert [row.masked for row in batch.rows] == [False, True]
    assert batch.rows[0].advantage == pytest.approx(1 / math.sqrt(2), abs=1e-5)
    unmasked = collate([group.model_copy(update={"group": inner})], [[3.5, 0.5]], with_(mask_truncated=False), 0)
    assert [row.masked for row in unmasked.rows] == [False, False]


def test_a_forged_verdict_is_published_yes_oracle_no():
    stats = grading_stats([graded([grade(3.5, published=True, oracle=False), grade(3.5, published=True, oracle=True)])])
    assert stats["forged_rate"] == 0.5


def test_nothing_graded_is_none_not_zero():
    stats = grading_stats([graded([broken(), broken()])])
    assert stats["hack_strict"] is None
    assert stats["infra_errors"] == 2


def row(tokens):
    return TrainingSample([1] * 5, [2] * tokens, [0.0] * tokens, None, 1.0, False)


def test_micro_batches_deal_every_row_once_to_every_rank():
    rows = [row(n) for n in (1, 9, 3, 7, 5, 2, 8)]
    parts = [part for rank in range(2) for part in micro_batches(rows, rank, 2, 3)]
    assert len(parts) == 6
    assert sorted(len(r.token_ids) for part in parts for r in part) == [1, 2, 3, 5, 7, 8, 9]
    # lengths with a prompt of 5: 14 13 12 | 10 8 7 6; six parts, and no cut needs less than the longest row's 14
    areas = [len(part) * max((5 + len(r.token_ids) for r in part), default=0) for part in parts]
    assert max(areas) == 14  # 7 and 6 share a rectangle of 14; the other rows are alone


def test_micro_batches_pad_little_when_lengths_differ():
    rows = [row(n) for n in [95] * 8 + [5] * 56]
    parts = micro_batches(rows, 0, 1, 8)
    areas = [len(part) * max(5 + len(r.token_ids) for r in part) for part in parts if part]
    tokens = sum(5 + len(r.token_ids) for r in rows)
    assert len(parts) == 8 and sum(areas) <= 1.15 * tokens  # dealt by token count each part would pad to 8 x 100
    assert max(areas) <= 200
    assert micro_batches([], 0, 1, 2) == [[], []]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 3), st.integers(1, 5))
def test_micro_batches_are_never_more_than_the_accumulation_counts(lengths, ranks, accumulation):
    """One more and the optimizer would step in the middle of the batch: the rest would meet moved weights, unprojected."""
    parts = [micro_batches([row(n) for n in lengths], rank, ranks, accumulation) for rank in range(ranks)]
    assert [len(own) for own in parts] == [accumulation] * ranks
    assert sorted(len(r.token_ids) for own in parts for part in own for r in part) == sorted(lengths)


def prompted(prompt, tokens):
    return TrainingSample([prompt] * 50, [2] * tokens, [0.0] * tokens, None, 1.0, False)


def test_rows_of_one_prompt_are_dealt_as_one():
    rows = [prompted(p, n) for p, n in ((1, 10), (1, 20), (1, 30), (2, 5), (2, 5), (3, 40))]
    parts = micro_batches(rows, 0, 1, 2, together=2)
    # rows with their prompt once: 1: 50 + 30 and 50 + 30; 3: 90; 2: 60. Largest first, the smallest rectangle for two parts
    # is 2 x 90
    assert [[(r.prompt_ids[0], len(r.token_ids)) for r in part] for part in parts] == [
        [(3, 40), (1, 10), (1, 20)], [(1, 30), (2, 5), (2, 5)],
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 60)), max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_no_row_is_lost_whatever_shares_a_prompt(drawn, accumulation, most):
    parts = micro_batches([prompted(p, n) for p, n in drawn], 0, 1, accumulation, together=most)
    assert len(parts) == accumulation
    assert sorted((r.prompt_ids[0], len(r.token_ids)) for part in parts for r in part) == sorted(drawn)


def test_service_seconds_count_a_batch_once():
    from services.trainer.rollouts import Collected

    groups = [graded([grade()], group_id=f"g{i}") for i in range(4)]
    seconds = service_seconds(Collected(groups, {}))
    assert seconds == {"generate": 0.25, "grade": pytest.approx(0.4)}
    assert completion().finish_reason == "stop"
