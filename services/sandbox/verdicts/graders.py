"""The registry of graders: which one judges a completion is the `task` of its problem, nothing else.

    task     file       runs code    published verdict               stricter verdict beside it
    code     grade.py   in the jail  rl-rewardhacking's evaluation   the protected oracle
    maths    maths.py   no           last number, or a marked one    one marked answer, on the last line

A grader is a function (problem, completion text, jail) -> Grade. It answers whatever the text is, in bounded time; what
*we* cannot grade has status infra_error and no reward. To add one see docs/tasks.md.
"""

from __future__ import annotations

from collections.abc import Callable

from common.types import Grade, Problem, Task
from services.sandbox.verdicts import grade, maths
from services.sandbox.verdicts.beside import Beside
from services.sandbox.verdicts.oracle import Oracle

Grader = Callable[[Problem, str, Oracle, Beside | None], Grade]


def _code(problem: Problem, text: str, jail: Oracle, beside: Beside | None) -> Grade:
    return grade.grade_completion(problem, text, jail, beside=beside)


def _maths(problem: Problem, text: str, jail: Oracle, _: Beside | None) -> Grade:
    return maths.grade_completion(problem, text, jail)


GRADERS: dict[Task, Grader] = {"code": _code, "maths": _maths}


def grade_completion(problem: Problem, text: str, jail: Oracle, beside: Beside | None = None) -> Grade:
    """The grade of one completion by its problem's grader; `beside` runs its programs at the same time (grade.py).

    Raises SandboxError when the jail fails (graders that use it).
    """
    return GRADERS[problem.task](problem, text, jail, beside)
