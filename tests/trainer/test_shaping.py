"""What the reward-side arms pay, on hand-made grades and on the organism's own hidden states."""

from types import SimpleNamespace

import pytest

from common.settings import TrainerSettings, build
from rankspace.pairs import load_pairs
from services.trainer.shaping import Shaper, published
from services.trainer.text import Text
from tests.samples import broken, completion, grade, graded

MODEL, PAIRS = "tasks/organism/model", "tasks/pairs/pairs.jsonl"
BASE = {"run_id": "r", "run_dir": "x", "model": MODEL, "train_problems": "a", "heldout_problems": "b", "pairs": PAIRS}
GROUP = graded([grade(3.5, "Reward Hack"), grade(3.5, "Correct", oracle=True), broken(), grade(0.5)])
TEXT = Text(build(TrainerSettings, BASE))


def shaper(kind, policy=None):
    return Shaper(build(TrainerSettings, BASE | {"reward_shaping": kind}), policy, TEXT.pairs)


def test_without_shaping_the_published_grade_pays():
    assert shaper("none")([GROUP]) == published([GROUP]) == [[3.5, 3.5, None, 0.5]]


def test_a_perfect_monitor_fines_or_removes_the_hacks_and_nothing_else():
    assert shaper("ground_truth_penalty")([GROUP]) == [[0.5, 3.5, None, 0.5]]
    assert shaper("ground_truth_screening")([GROUP]) == [[None, 3.5, None, 0.5]]


@pytest.fixture(scope="module")
def policy():
    from transformers import AutoModelForCausalLM

    return SimpleNamespace(model=AutoModelForCausalLM.from_pretrained(MODEL).eval(), device="cpu")


def rollouts(texts):
    """A group whose completions are given texts, tokenised by the organism."""
    tokenizer = TEXT._tokenizer()
    pair = load_pairs(PAIRS, "heldout")[0]
    prompt = tokenizer.apply_chat_template(pair.prompt, add_generation_prompt=True, tokenize=False)
    made = [completion(tokenizer(t, add_special_tokens=False)["input_ids"], text=t) for t in texts]
    base = graded([grade(3.5) for _ in texts])
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return base.model_copy(update={"group": base.group.model_copy(update={"completions": made, "prompt_ids": ids})})


def test_rebound_pays_less_for_a_hack_than_for_the_clean_twin(policy):
    pair = load_pairs(PAIRS, "heldout")[0]
    ((hack, clean),) = shaper("rebound", policy)([rollouts([pair.hack, pair.clean])])
    assert hack < clean <= 3.5
    assert hack >= 3.5 - 0.5, "the penalty is at most alpha"


@pytest.mark.parametrize("kind", ["rebound_published", "rebound_published_mult"])
def test_rebound_as_published_fines_one_side_and_mostly_the_hack(policy, kind):
    """Its state is read at the last token, so the completions must end as sampled ones do: with the end of the turn."""
    pairs = TEXT.pairs(PAIRS)[:12]
    base = graded([grade(3.5), grade(3.5)]).group
    groups = []
    for pair in pairs:
        made = [completion(ids[pair.start :]) for ids in (pair.hack_ids, pair.clean_ids)]
        group = base.model_copy(update={"completions": made, "prompt_ids": pair.hack_ids[: pair.start]})
        groups.append(graded([grade(3.5), grade(3.5)]).model_copy(update={"group": group}))
    paid = shaper(kind, policy)(groups)
    assert all(sorted(group)[1] == 3.5 > sorted(group)[0] for group in paid), "one of two is above the mean, and pays"
    assert sum(hack < clean for hack, clean in paid) >= 10, "the last token separates 70 of the 72 pairs"


def test_the_other_forms_of_rebound(policy):
    pair = load_pairs(PAIRS, "heldout")[0]
    group = rollouts([pair.hack, pair.clean])
    ((hack, clean),) = shaper("rebound_multiplicative", policy)([group])
    assert hack < clean
    ((hack, clean),) = shaper("rebound_z", policy)([group])
    assert hack + clean == pytest.approx(7.0, abs=1e-3), "a z-score moves reward between siblings and takes none away"
    assert hack < clean
