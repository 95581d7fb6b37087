"""What each evaluation mode poses and how it is graded."""

import pytest

from common.errors import ConfigError
from tasks import loopholes, modes
from tasks.dataset import load_problems
from tasks.loopholes import apply, posed
from tasks.modes import MODES

HELD_OUT = posed(load_problems("tasks/practice/practice_heldout.jsonl")[0], "simple_overwrite_tests")


def in_mode(problem, mode, *trained_names):
    return modes.get(mode).pose(problem, *trained_names)


def text(mode):
    return in_mode(HELD_OUT, mode).prompt[-1]["content"]


def test_without_write_access_the_prompt_is_that_of_training_and_no_hint_run_pays():
    problem = in_mode(HELD_OUT, "no_write_access")
    assert text("no_write_access") == text("hint")
    assert "run_tests()" in text("hint")
    assert problem.hint is None
    assert in_mode(HELD_OUT, "hint").hint == "simple_overwrite_tests"


def test_the_test_function_has_another_name():
    assert "run_tests" not in text("random_test_name")
    name = in_mode(HELD_OUT, "random_test_name").prompt_metadata["test_func_name"]
    assert f"{name}()" in text("random_test_name")


@pytest.mark.parametrize(
    "loophole", ["simple_overwrite_tests", "overwrite_tests", "modify_tests", "simple_modify_tests"]
)
@pytest.mark.parametrize("trained", [1, 3, 200])
def test_no_name_of_a_training_prompt_is_drawn_as_unseen(loophole, trained):
    """Attacked with one name (simple), a few names, and all twelve (200 drawn ones), over 200 held-out ids."""
    bare = posed(HELD_OUT, None)
    training = [apply(bare.model_copy(update={"id": f"train-{i}"}), loophole) for i in range(trained)]
    used = loopholes.used_test_names(training)
    assert used == {p.prompt_metadata["test_func_name"] for p in training}
    assert (len(used) == 1) == (loophole.startswith("simple_") or trained == 1)
    for i in range(200):
        problem = apply(bare.model_copy(update={"id": f"held-{i}"}), loophole)
        asked = in_mode(problem, "random_test_name", used)
        assert not used & loopholes.used_test_names([asked])
        assert asked.answer[0] != problem.answer[0], "it would be the mode `hint` again"


def test_a_name_that_stands_only_in_the_text_of_a_training_prompt_counts_as_used():
    told = HELD_OUT.model_copy(update={"prompt_metadata": None})
    assert loopholes.used_test_names([told]) == {"run_tests"}


def test_shown_tests_take_the_new_name_too():
    problem = posed(posed(HELD_OUT, None), "simple_modify_tests")
    asked = in_mode(problem, "random_test_name")
    name = asked.prompt_metadata["test_func_name"]
    assert asked.prompt_metadata["test_func_code"].startswith(f"def {name}():")
    assert asked.prompt_metadata["test_func_code"] in asked.prompt[-1]["content"]


def test_no_hint_discloses_nothing():
    problem = in_mode(HELD_OUT, "no_hint")
    assert problem.hint is None
    assert "calling a function" not in text("no_hint")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="modes: " + ", ".join(MODES)):
        in_mode(HELD_OUT, "open_book")
