"""KL over every completion of a step, by hand: whatever was masked, left out or not gradable counts."""

import math

import pytest

from common.settings import TrainerSettings, build
from services.trainer.collate import collate
from services.trainer.divergence import log_prob_sums, mean_kl
from tests.samples import broken, completion, grade, graded

SETTINGS = build(
    TrainerSettings,
    {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b"},
)


def with_logprobs(sampled, reference):
    return completion(ids=range(1, len(sampled) + 1)).model_copy(
        update={"logprobs": sampled, "ref_logprobs": reference}
    )


def of(*completions):
    made = graded([grade()] * len(completions))
    return made.model_copy(update={"group": made.group.model_copy(update={"completions": list(completions)})})


def test_k3_is_weighted_by_tokens_over_all_completions():
    ln2 = math.log(2)  # reference twice as likely: 2 − ln 2 − 1; half as likely: 1/2 + ln 2 − 1
    one, two = with_logprobs([-1.0], [-1.0 + ln2]), with_logprobs([-1.0, -3.0], [-1.0 - ln2, -3.0])
    assert mean_kl([of(one), of(two)]) == pytest.approx(((1 - ln2) + (ln2 - 0.5) + 0.0) / 3)
    assert log_prob_sums(two) == pytest.approx(
        {"logprob_sum": -4.0, "ref_logprob_sum": -4.0 - ln2, "k3_sum": ln2 - 0.5}
    )


def test_without_reference_there_is_no_kl():
    assert mean_kl([]) is None
    assert mean_kl([of(completion(ref=False))]) is None
    assert log_prob_sums(completion(ref=False))["k3_sum"] is None


def test_one_damaged_token_leaves_the_mean_finite():
    assert math.isfinite(mean_kl([of(with_logprobs([-2000.0], [0.0]))]))


def test_left_out_masked_and_ungraded_rows_are_in_kl_all_and_not_in_trained_groups():
    groups = [graded([grade(0.5), grade(0.5)]), graded([grade(3.5), grade(0.5)]), graded([broken(), broken()])]
    batch = collate(groups, [[0.5, 0.5], [3.5, 0.5], [None, None]], SETTINGS, version=0)
    assert (batch.stats["groups"], batch.stats["trained_groups"]) == (3, 1)
    assert batch.stats["kl_all"] == pytest.approx(math.expm1(-0.1) + 0.1)
    assert len(batch.rows) == 2


def test_with_a_kl_term_groups_without_variance_stay_in_the_loss():
    groups = [graded([grade(0.5), grade(0.5)]), graded([grade(3.5), grade(0.5)])]
    rewards = [[0.5, 0.5], [3.5, 0.5]]
    batch = collate(groups, rewards, SETTINGS.model_copy(update={"kl_beta": 0.01}), version=0)
    assert [row.advantage for row in batch.rows[:2]] == [0.0, 0.0] and len(batch.rows) == 4
    assert (batch.stats["trained_groups"], batch.stats["zero_variance_groups"]) == (2, 1)
