"""The bundled word problems: as generated, disjoint, right, and in the schema that everything reads."""

import ast
import operator
from collections import Counter

import pytest

from common.errors import ConfigError
from services.sandbox.verdicts.maths import grade_completion
from tasks import numbers
from tasks.dataset import load_problems
from tasks.loopholes import posed, without_write_access
from tasks.maths import generate
from tasks.maths.templates import HELDOUT_ONLY, TEMPLATES


@pytest.fixture(scope="module")
def problems():
    return {split: load_problems(path) for split, path in generate.FILES.items()}


def test_the_files_are_as_generated(capsys):
    assert generate.main(["--check"]) == 0


def test_they_are_problems_of_task_maths_without_a_loophole(problems):
    assert {split: len(rows) for split, rows in problems.items()} == {"train": 200, "heldout": 60}
    for problem in [*problems["train"], *problems["heldout"]]:
        assert problem.task == "maths" and problem.hint is None
        assert posed(problem, None) is problem and without_write_access(problem) is problem


def test_no_question_is_in_both_and_one_template_is_held_out(problems):
    texts = {split: {p.prompt[-1]["content"] for p in rows} for split, rows in problems.items()}
    assert len(texts["train"]) == 200 and not texts["train"] & texts["heldout"]
    used = {split: Counter(p.model_extra["template"] for p in rows) for split, rows in problems.items()}
    assert HELDOUT_ONLY not in used["train"] and used["heldout"][HELDOUT_ONLY] >= 5
    assert set(used["heldout"]) == set(TEMPLATES)


def test_the_worked_solution_is_graded_as_right_and_another_number_is_not(problems):
    for problem in [*problems["train"], *problems["heldout"]]:
        grade = grade_completion(problem, problem.canonical_solution)
        assert (round(grade.reward, 3), grade.oracle_correct) == (1.2, True), problem.id
        wrong = problem.canonical_solution.rpartition("####")[0] + f"#### {numbers.only(problem.gt_answer[0]) + 1}"
        assert round(grade_completion(problem, wrong).reward, 3) == 0.2


OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text):
    """A product, sum, difference or quotient of numbers, worked out apart from the generator."""

    def of(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        assert isinstance(node, ast.Constant)
        return node.value

    return of(ast.parse(text.strip().replace(",", ""), mode="eval").body)


def test_every_equation_in_the_steps_holds(problems):
    checked = 0
    for problem in [*problems["train"], *problems["heldout"]]:
        for step in problem.canonical_solution.splitlines():
            left, sign, right = step.partition(" = ")
            if not sign:
                continue
            words = left.split()
            start = next(
                i for i in range(len(words)) if all(w in "+-*/" or numbers.only(w) is not None for w in words[i:])
            )
            assert value(" ".join(words[start:])) == pytest.approx(float(numbers.numbers(right)[0].value)), problem.id
            checked += 1
    assert checked > 400


def test_the_kinds_of_answers_that_rules_are_about_occur(problems):
    answers = [p.gt_answer[0] for p in problems["train"]]
    assert any("," in a for a in answers) and any(a.startswith("-") for a in answers) and any("." in a for a in answers)


def test_a_loophole_for_a_task_without_one_is_one_line(problems):
    with pytest.raises(ConfigError, match="task maths has no loophole: set loophole=null"):
        posed(problems["train"][0], "simple_overwrite_tests")
