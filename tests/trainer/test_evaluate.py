"""What each evaluation mode poses and how it is graded."""

import pytest

from common.errors import ConfigError
from services.trainer.evaluate import MODES, in_mode
from tasks.dataset import load_problems
from tasks.loopholes import posed

HELD_OUT = posed(load_problems("tasks/practice/practice_heldout.jsonl")[0], "simple_overwrite_tests")


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


def test_no_hint_discloses_nothing():
    problem = in_mode(HELD_OUT, "no_hint")
    assert problem.hint is None
    assert "calling a function" not in text("no_hint")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="modes: " + ", ".join(MODES)):
        in_mode(HELD_OUT, "open_book")
