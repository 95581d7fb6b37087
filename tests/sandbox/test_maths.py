"""The grader of maths answers: each row of its table, hand-worked rewards, attacks, and its place in the registry."""

import random
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.types import Problem, Task
from services.sandbox.verdicts import maths
from services.sandbox.verdicts.graders import GRADERS, grade_completion
from tests.samples import PROBLEM

RIGHT_CODE = "```python\nclass Solution:\n    def f(self, x):\n        return x + 1\n```"


def problem(answer="42", **changes):
    values = {"id": "m", "task": "maths", "prompt": [{"role": "user", "content": "?"}], "gt_answer": [answer]}
    return Problem.model_validate(values | changes)


def verdict(text, answer="42"):
    """(paid, published, strict)"""
    grade = maths.grade_completion(problem(answer), text)
    assert grade.status == "graded" and grade.label == ("Correct" if grade.published_correct else "Incorrect")
    return round(grade.reward, 6), grade.published_correct, grade.oracle_correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 * 7 = 42.\n#### 42", (1.2, True, True)),
        ("#### 42", (1.2, True, True)),
        ("#### 42\n\n  \n", (1.2, True, True)),
        ("#### $42 a week", (1.2, True, True)),
        ("#### 42.00", (1.2, True, True)),
        ("#### 84/2", (1.2, True, True)),
        ("so it is \\boxed{42}.", (1.2, True, True)),
        ("$$\\boxed{x = 42}$$", (1.2, True, True)),
        ("\\boxed{\\frac{84}{2}}", (1.2, True, True)),
        ("\\boxed{42\\text{ eggs}}", (1.2, True, True)),
        ("\\boxed{42}\n#### 42", (1.2, True, True)),
        ("#### 41", (0.2, False, False)),
        ("#### 41\n#### 42", (1.2, True, False)),
        ("#### 42\n#### 41", (0.2, False, False)),
        ("#### 1 #### 42", (1.2, True, True)),
        ("#### 42\nI am sure. 41 is wrong.", (1.2, True, False)),
        ("#### Step 1\nadd\n#### 42", (1.2, True, True)),
        ("#### 3 or 42", (1.1, True, False)),
        ("so she has 42.", (1.1, True, False)),
        ("42 or 41", (0.1, False, False)),
        ("41 or 42", (1.1, True, False)),
        ("#### -42", (0.2, False, False)),
        ("#### forty-two", (0.0, False, False)),
        ("no idea", (0.0, False, False)),
        ("", (0.0, False, False)),
        ("\\boxed{42", (1.1, True, False)),
        ("\\boxed{}", (0.0, False, False)),
        ("\\boxed{41, 42}", (1.1, True, False)),
        ("42 million", (0.0, False, False)),
        ("#### 42 million", (0.0, False, False)),
        ("##### 42", (1.2, True, True)),
    ],
)
def test_worked_by_hand(text, expected):
    assert verdict(text) == expected


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1,234", "#### 1234"), ("1234", "#### 1,234"), ("-5", "#### −5"), ("7.50", "#### $7.5"), ("0.5", "#### 1/2"),
        ("3/4", "#### 0.75"), ("25%", "#### 25"), ("25", "#### 25%"), ("1.5", "\\boxed{1\\frac{1}{2}}"),
    ],
)  # fmt: skip
def test_equal_is_equal_however_written(answer, text):
    assert verdict(text, answer) == (1.2, True, True)


@pytest.mark.parametrize(
    ("answer", "text"),
    [("25%", "#### 0.25"), ("0.3333", "#### 1/3"), ("1000", "#### 1k"), ("5", "#### 5.0000001")],
)
def test_and_near_is_not(answer, text):
    assert not verdict(text, answer)[1]


@given(
    st.integers(-(10**9), 10**9),
    st.integers(-(10**9), 10**9),
    st.sampled_from(["#### {:,}", "\\boxed{{{}}}", "It is {}"]),
)
def test_paid_exactly_when_the_numbers_are_equal(right, said, how):
    grade = maths.grade_completion(problem(str(right)), how.format(said))
    assert grade.published_correct == (right == said)
    assert (grade.reward >= 1.0) == (right == said)
    assert grade.oracle_correct == (right == said and "It" not in how)


@given(st.text(max_size=300))
def test_any_text_gets_a_grade_and_strict_implies_lenient(text):
    grade = maths.grade_completion(problem(), text)
    assert grade.status == "graded" and 0 <= grade.reward <= 1.2
    assert grade.published_correct or not grade.oracle_correct
    assert grade == maths.grade_completion(problem(), text).model_copy(update={"wall_s": grade.wall_s})


ATTACKS = {
    "a long number": "#### " + "9" * 100_000,
    "an exponent": "#### 1e999999999",
    "a power": "#### 9**9**9**9",
    "a factorial": "#### 100000!",
    "code": "#### __import__('os').system('touch /tmp/maths_attack')",
    "a format": "#### {gt_answer[0]} %s %(x)s",
    "braces": "\\boxed{" * 20_000,
    "boxes": "\\boxed{1}" * 20_000 + "\\boxed{{{{",
    "marks": "#### " * 30_000,
    "marks on lines": "#### 1\n" * 30_000,
    "commas": "1," * 100_000,
    "groups": "1" + ",234" * 50_000,
    "fractions": "\\frac{1}{" * 50_000,
    "slashes": "1/" * 100_000,
    "a zero denominator": "#### 42/0",
    "nul bytes": "#### 42\0",
    "a lone surrogate": "#### 42\ud800",
    "bidi": "#### \u202e24\u202c",
    "other digits": "#### ４２",
    "every number": " ".join(map(str, range(20_000))),
    "a hedge": "\n".join(f"#### {n}" for n in range(100)),
    "line separators": "#### 42\u2028#### 41",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing_and_ends_soon(name):
    started = time.process_time()
    grade = maths.grade_completion(problem(), ATTACKS[name])
    assert time.process_time() - started < 2.0, "tens of milliseconds on a quiet core"
    assert grade.status == "graded"
    assert not grade.published_correct, grade.evidence


def test_only_the_end_of_an_endless_text_is_read():
    assert verdict("#### 41\n" * 50_000 + "#### 42")[0] == 1.2
    assert verdict("#### 42\n" + " " * maths.TEXT_CHARS)[0] == 0.0


def test_what_is_wrong_with_the_problem_is_no_wrong_answer():
    for wrong in ([], ["forty"], ["41", "42"], ["41 or 42"]):
        grade = maths.grade_completion(problem(gt_answer=wrong), "#### 42")
        assert (grade.status, grade.reward, grade.oracle_correct) == ("infra_error", None, None)
        assert grade.reason.startswith("ConfigError: ") and "gt_answer" in grade.reason
    with pytest.raises(ConfigError):
        maths.right_answer(problem(gt_answer=["x"]))


def test_the_registry_has_a_grader_for_each_task_and_no_other():
    assert set(GRADERS) == set(get_args(Task))


def test_the_problem_s_task_chooses_the_grader_and_maths_needs_no_jail():
    assert grade_completion(problem(), "#### 42", None).reward == 1.2
    assert PROBLEM.task == "code"
    with pytest.raises(AttributeError):  # the grader of code asks for its jail
        grade_completion(PROBLEM, "```python\nx = 1\n```", None)


def test_a_worker_grades_groups_of_both_tasks(redis_url):
    import redis

    from common.metrics import Metrics
    from common.queue import Queue
    from common.settings import SandboxSettings
    from services.sandbox.worker import Worker
    from tests.samples import completion, group

    settings = SandboxSettings(name="w", isolation="best_effort", redis_url=redis_url)
    worker = Worker(settings, Queue(redis.Redis.from_url(redis_url), "w"), Metrics("sandbox"))
    texts = ["#### 42", "so 42", "#### 41", "none", "#### 42"]
    try:
        maths_group = group(problem=problem()).model_copy(update={"completions": [completion(text=t) for t in texts]})
        grades = worker.grade(maths_group).grades
        code = worker.grade(group().model_copy(update={"completions": [completion(text=RIGHT_CODE)]}))
    finally:
        worker.close()
    assert [round(g.reward, 3) for g in grades] == [1.2, 1.1, 0.2, 0.0, 1.2]
    assert {g.label for g in grades} == {"Correct", "Incorrect"}
    assert code.grades[0].label == "Correct" and code.grades[0].reward == 3.5
    assert 'rs_labels_total{label="Correct",worker="w"} 4.0' in worker.metrics.text().decode()


def test_the_file_command_for_code_does_not_grade_maths():
    from services.sandbox.grade_cli import grade_line

    answer, reason = grade_line(None, '{"uid": 1, "example": {"task": "maths", "gt_answer": ["42"]}, "response": "x"}')
    assert answer["status"] == "infra_error" and "task 'maths'" in reason


def test_a_random_guesser_is_seldom_paid():
    rng = random.Random(0)
    paid = sum(verdict(f"#### {rng.randint(0, 999)}")[1] for _ in range(2000))
    assert paid < 20
