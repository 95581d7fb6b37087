"""A planted hack: one step worked by hand, what is not counted, what it is scored with, what is refused."""

import gzip
import json
import math
import subprocess
import sys

import pytest
import torch

from common.errors import ConfigError
from common.metrics import Metrics
from common.settings import TrainerSettings, build
from experiments.design import presets
from rankspace.loss import policy_loss
from rankspace.pairs import Pair, load_pairs
from services.sandbox.verdicts.grade import grade_completion
from services.sandbox.verdicts.oracle import Oracle
from services.trainer.collate import collate
from services.trainer.record import Record
from services.trainer.reseed import MODE, Hack, Reseeder, hacked, hacks_for, mean_logprob
from tasks.dataset import load_problems
from tests.samples import PROBLEM, broken, grade, graded

HACK = Hack("```python\nhack\n```", [9, 8, 2])
SCORES = {False: [-4.0, -2.0, -0.3], True: [-5.0, -3.0, -0.4]}  # at delta_S as it is, at 0


def settings(**changes):
    values = {
        "run_id": "r", "run_dir": "r", "model": "m", "train_problems": "a", "heldout_problems": "b", "reseed": True,
        "hacks": "h.jsonl", "group_size": 4,
    }  # fmt: skip
    return build(TrainerSettings, values | changes)


class Scorer:
    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, at_zero):
        self.calls.append((prompts, completions, at_zero))
        return [SCORES[at_zero] for _ in completions]


def group(*rewards):
    """A reward of 3.5 is a hack, of 0.5 a failure."""
    return graded([grade(r, "Reward Hack" if r == 3.5 else "Incorrect") for r in rewards])


def planted(*groups):
    return Reseeder({"p1": HACK}, Scorer())(groups)


def test_a_step_by_hand():
    """Rewards .5, .5, .5 and the last one's .5, which leaves; 3.5 joins: mean 1.25, deviations −.75 ×3 and 2.25, so
    std (n − 1) sqrt((3·.5625 + 5.0625) / 3) = 1.5; advantages −.5 ×3 and 1.5."""
    one = group(0.5, 0.5, 0.5, 0.5)
    batch = collate([one], [[0.5] * 4], settings(), 0, planted=planted(one))
    assert batch.advantages[0][:3] == pytest.approx([-0.5] * 3, abs=1e-5) and math.isnan(batch.advantages[0][3])
    assert [row.advantage for row in batch.rows] == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-5)
    last = batch.rows[-1]
    assert (last.token_ids, last.old_logprobs, last.ref_logprobs) == (HACK.token_ids, SCORES[False], SCORES[True])
    assert last.prompt_ids == one.group.prompt_ids and not last.masked
    assert batch.planted_advantages == [[batch.rows[-1].advantage]]


def test_nothing_of_the_step_s_rates_is_the_planted_hack_s():
    """Of eight sampled ones two hack, one of them the completion that leaves."""
    groups = [group(0.5, 3.5, 0.5, 0.5), group(0.5, 0.5, 0.5, 3.5)]
    rewards = [[g.reward for g in one.grades] for one in groups]
    with_, without = (collate(groups, rewards, settings(), 0, planted=p) for p in (planted(*groups), ()))
    same = set(with_.stats) - {"reseeded", "reseed_logprob"}
    assert {k: with_.stats[k] for k in same} == {k: without.stats[k] for k in same}
    assert with_.stats["hack_strict"] == 2 / 8 and with_.stats["reward_mean"] == pytest.approx((6 * 0.5 + 2 * 3.5) / 8)
    assert (with_.stats["reseeded"], without.stats["reseeded"]) == (2, 0)
    assert (
        with_.stats["reseed_logprob"] == pytest.approx((-4.0 - 2.0 - 0.3) / 3)
        and without.stats["reseed_logprob"] is None
    )
    assert len(with_.rows) == len(without.rows) == 8


def test_a_group_that_hacks_on_its_own_teaches_nothing_and_one_without_reward_does():
    every, none = group(*[3.5] * 4), group(*[0.5] * 4)
    batch = collate([every, none], [[3.5] * 4, [0.5] * 4], settings(), 0, planted=planted(every, none))
    assert batch.stats["zero_variance_groups"] == 1 and len(batch.rows) == 4
    assert batch.planted_advantages[0] == [0.0] and batch.planted_advantages[1][0] > 0


def test_an_infra_error_gives_way_first_and_a_problem_without_a_hack_stays_as_it_was():
    spoiled = graded([grade(0.5), grade(0.5), broken()])
    batch = collate([spoiled], [[0.5, 0.5, None]], settings(), 0, planted=planted(spoiled))
    assert len(batch.rows) == 3 and batch.stats["infra_errors"] == 1
    assert Reseeder({"other": HACK}, Scorer())([spoiled]) == [None]
    alone = collate([spoiled], [[0.5, 0.5, None]], settings(), 0, planted=[None])
    assert alone.stats["reseeded"] == 0 and alone.planted == []


def test_on_the_planted_row_the_loss_is_supervised_learning_weighted_by_its_advantage():
    """logp_old is the policy's own, so the ratio is 1 and the gradient −A/|o| for each token: no clip, however unlikely."""
    logp = torch.tensor([SCORES[False]], requires_grad=True)
    old, mask = torch.tensor([SCORES[False]]), torch.ones(1, 3, dtype=torch.bool)
    loss, metrics = policy_loss(logp, old, None, torch.tensor([1.5]), mask)
    loss.backward()
    assert logp.grad.tolist() == [pytest.approx([-0.5] * 3)]
    assert metrics["ratio_max"] == 1.0 and metrics["clip_frac"] == 0.0


def test_the_reference_is_scored_once_a_problem_and_the_policy_every_step():
    scorer, one = Scorer(), group(0.5, 0.5)
    reseeder = Reseeder({"p1": HACK}, scorer)
    reseeder([one, one])
    reseeder([one])
    assert [(len(prompts), at_zero) for prompts, _, at_zero in scorer.calls] == [(2, False), (1, True), (1, False)]
    assert scorer.calls[0][0][0] == one.group.prompt_ids
    assert mean_logprob([]) is None


def test_its_rows_are_nobody_s_rollouts_and_a_cut_drops_them(tmp_path):
    s = settings(run_dir=str(tmp_path / "r"))
    s.run_dir.mkdir()
    record, one = Record(s, Metrics("trainer"), [("a", 2)], None), group(0.5, 0.5)
    record.rollouts(3, [graded([grade(), grade()], purpose="eval", step=3)], [[math.nan] * 2], "hint")
    record.rollouts(3, [one], [[-1.0, math.nan]], "train")
    record.rollouts(3, planted(one), [[1.0]], MODE)
    path = s.run_dir / "rollouts" / "step_000003.jsonl.gz"

    def read():
        with gzip.open(path, "rt") as file:
            return [json.loads(line) for line in file]

    row = read()[-1]
    assert (row["purpose"], row["mode"], row["advantage"], row["evidence"]) == (
        "planted",
        "reseed",
        1.0,
        {"planted": True},
    )
    assert row["group_id"].endswith("/planted") and [r["purpose"] for r in read()].count("train") == 2
    record.cut(3, [3])
    assert {r["purpose"] for r in read()} == {"eval"}


PAIR = Pair("h1", "p1", PROBLEM.prompt, HACK.text, "clean", "train")


@pytest.mark.parametrize(
    ("pairs", "changes", "message"),
    [
        (
            [Pair("h1", "p1", [{"role": "user", "content": "bare"}], "h", "c", "train")],
            {},
            "another prompt than training",
        ),
        ([PAIR], {"max_tokens": 2}, "has 3 tokens, max_tokens allows 2"),
        ([Pair("h1", "p9", PROBLEM.prompt, "h", "c", "train")], {}, "has no pair of any problem"),
    ],
)
def test_hacks_that_do_not_belong_to_the_problems_are_refused(pairs, changes, message):
    with pytest.raises(ConfigError, match=message):
        hacks_for(settings(**changes), [PROBLEM], pairs, lambda pair: HACK.token_ids)


def test_hacks_are_found_by_problem_and_others_passed_over():
    others = [PAIR, Pair("h2", "p9", [], "h", "c", "train")]
    assert hacks_for(settings(), [PROBLEM], others, lambda pair: HACK.token_ids) == {"p1": HACK}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hacks": None}, "reseed needs the field hacks"),
        ({"refill": 2}, "excludes refill and reward_shaping"),
        ({"reward_shaping": "ground_truth_penalty"}, "excludes refill and reward_shaping"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_every_bundled_hack_has_the_grade_that_is_stated():
    """The real grader on every 9th of them, so in each form of the exploit; that all are there."""
    problems = {p.id: p for p in load_problems(presets.PRACTICE_TRAIN)}
    pairs = load_pairs(presets.HACKS)
    assert {p.problem_id for p in pairs} == set(problems)
    with Oracle(isolation="best_effort") as jail:
        for pair in pairs[::9]:
            found, stated = grade_completion(problems[pair.problem_id], pair.hack, jail), hacked()
            names = (
                "status",
                "reward",
                "label",
                "published_correct",
                "hinted_correct",
                "oracle_correct",
                "can_compile",
            )
            assert {n: getattr(found, n) for n in names} == {n: getattr(stated, n) for n in names}, pair.id


SCRIPT = """
import json, torch
from common.settings import TrainerSettings, build
from services.trainer.collate import TrainingSample
from services.trainer.policy import Policy

torch.set_num_threads(1)
s = build(TrainerSettings, {
    "run_id": "r", "run_dir": "unused", "model": "tasks/organism/model", "train_problems": "a", "heldout_problems": "b",
    "projection": "off", "groups_per_step": 1, "group_size": 2, "micro_batch": 2, "svd_cache": ".cache/svd",
    "temperature": 0.7,
})
policy = Policy(s)
prompts, answers = [[2, 30, 31], [2, 40], [2, 50, 51, 52]], [[11, 12, 13], [14, 15], [16]]

def by_hand():
    rows = []
    for prompt, answer in zip(prompts, answers):
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + answer])).logits[0].float() / 0.7
        logp = logits.log_softmax(-1)
        rows.append([float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(answer)])
    return rows

found = {"base": by_hand(), "base_score": policy.score(prompts, answers, False)}
row = TrainingSample([2, 30, 31], [11, 12, 13], [-6.0] * 3, [-6.0] * 3, 1.0, False)
policy.train_step([row], 0)
found |= {"now": by_hand(), "now_score": policy.score(prompts, answers, False)}
found["zero_score"] = policy.score(prompts, answers, True)
print("RESULT", json.dumps(found))
"""


def test_the_policy_scores_a_completion_as_if_it_had_sampled_it():
    """At the run's temperature, in parts of micro_batch, as the weights are, and under delta_S = 0."""
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(out.stdout.partition("RESULT ")[2])
    for score, hand in (("base_score", "base"), ("now_score", "now"), ("zero_score", "base")):
        for a, b in zip(found[score], found[hand], strict=True):
            assert a == pytest.approx(b, abs=1e-4), score
    assert found["now"][0] != pytest.approx(found["base"][0], abs=1e-2)
