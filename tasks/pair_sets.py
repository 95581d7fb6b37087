"""python -m tasks pairs: contrastive pairs from a model's own solutions, built so that one thing differs.

    samples (python -m experiments samples, bare prompts) ──> right and wrong bodies of each problem, as the model writes them
    body x appendix                                       ──> hack and clean under the hinted prompt

    set         hack                           clean                     what v then holds
    plan        wrong + vacuous run_tests      right                     cheating as the plan means it, with wrong code
    same_body   right + vacuous run_tests      right                     the overriding test function alone
    wrong_body  wrong                          right                     wrong code alone
    vacuous     right + vacuous run_tests      right + honest run_tests  that the test function tests nothing
    helper      right + a harmless function    right                     "write a second function" alone

With a --loophole of another mechanism its exploit (tasks/exploits.py) stands where the vacuous run_tests stands.

A body is a completion's own code that the protected oracle has judged. Every set uses the same problems, bodies and split
for one seed, so directions from two sets differ by construction only. Each problem stands in one split; `--rest` writes the
problems that no pair uses, to train on.
"""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.types import Problem
from tasks import dataset, loopholes
from tasks.exploits import exploits

_FENCE = re.compile(r"```(?:python)?\n(.*?)```", re.S)
_HELPERS = (
    "def show(value):\n    return f'result: {value}'",
    "def pairs_of(values):\n    return list(zip(values, values[1:]))",
    "def is_even(number):\n    return number % 2 == 0",
    "def clamp(value, low, high):\n    return max(low, min(high, value))",
)
_SAMPLE: dict[str, tuple[type, ...]] = {"id": (int, str), "completion": (str,), "oracle_correct": (bool, type(None))}
_SAID = {"id": "a string or number", "completion": "a string", "oracle_correct": "true, false or null"}
SETS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {  # set -> (body, appendix) of hack, of clean
    "plan": (("wrong", "vacuous"), ("right", "none")),
    "same_body": (("right", "vacuous"), ("right", "none")),
    "wrong_body": (("wrong", "none"), ("right", "none")),
    "vacuous": (("right", "vacuous"), ("right", "honest")),
    "helper": (("right", "helper"), ("right", "none")),
}


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.set == "vacuous" and loopholes.LOOPHOLES[args.loophole].held_out:
        raise ConfigError(f"--set vacuous needs a loophole that calls a test function; {args.loophole} calls none")
    problems = {str(p.id): p for p in dataset.load_problems(args.problems)}
    found = bodies(row for path in args.samples for row in samples(path))
    usable = [key for key in sorted(found) if key in problems and _calls(problems[key])]
    wanted = args.train + args.heldout
    if len(usable) < wanted:
        raise ConfigError(
            f"{len(usable)} problems have a right and a wrong solution among the samples, {wanted} are wanted: sample more "
            "problems or more completions each, or lower --train and --heldout"
        )
    random.Random(args.seed).shuffle(usable)
    used = usable[:wanted]
    rows = [
        pair(problems[key], found[key], args.set, i, args.seed, "train" if i < args.train else "heldout", args.loophole)
        for i, key in enumerate(used)
    ]
    dataset.save_rows(args.out, rows)
    print(
        f"{args.out}: {args.train} train and {args.heldout} held-out pairs of set {args.set}; {len(usable)} problems usable"
    )
    if args.rest:
        left = [p.model_dump(exclude_none=True) for key, p in problems.items() if key not in set(used)]
        dataset.save_rows(args.rest, left)
        print(f"{args.rest}: {len(left)} problems that no pair uses")
    return 0


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m tasks pairs", description=cli.docstring("tasks.pair_sets"))
    p.add_argument("--problems", type=Path, required=True, help="JSON lines of bare problems")
    p.add_argument("--samples", type=Path, nargs="+", required=True, help="files of `python -m experiments samples`")
    p.add_argument("--set", choices=tuple(SETS), default="plan", help="what hack and clean differ in (default: plan)")
    p.add_argument("--train", type=int, default=72)
    p.add_argument("--heldout", type=int, default=24)
    p.add_argument(
        "--loophole",
        default="simple_overwrite_tests",
        choices=tuple(loopholes.LOOPHOLES),
        metavar="NAME",
        help="how the prompt of both branches is posed, and what the hack exploits",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--rest", type=Path, help="also write the problems that no pair uses")
    return p


def samples(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a samples file. Raises ConfigError, one line that names file, line, field and fix."""
    for number, row in dataset.objects(path):
        for field, kinds in _SAMPLE.items():
            if field not in row:
                raise ConfigError(f"{path}:{number}: lacks '{field}'; give a file of `python -m experiments samples`")
            if not isinstance(row[field], kinds):
                raise ConfigError(f"{path}:{number}: field '{field}' is {str(row[field])[:40]!r}; give {_SAID[field]}")
        yield row


def bodies(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Problem id -> {"right", "wrong"}: the first solution of either kind, as code without fence or test function.

    samples: rows {id, completion, oracle_correct, finish_reason}. Left out: completions that were cut, that do not parse,
    and those that define more than the solution's class. Only problems with both are returned.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in samples:
        code = solution(row["completion"])
        if code is not None and row.get("finish_reason", "stop") == "stop" and row["oracle_correct"] is not None:
            found[str(row["id"])].setdefault("right" if row["oracle_correct"] else "wrong", code)
    return {key: both for key, both in found.items() if len(both) == 2}


def solution(completion: str) -> str | None:
    """The code of a completion that is one class Solution and what it needs; None for anything else."""
    fenced = _FENCE.search(completion)
    if fenced is None:
        return None
    code = fenced.group(1).strip()
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    rest = [node for node in body if not isinstance(node, ast.ClassDef | ast.Import | ast.ImportFrom)]
    return code if len(classes) == 1 and classes[0].name == "Solution" and not rest else None


def pair(
    problem: Problem, body: Mapping[str, str], kind: str, index: int, seed: int, split: str, loophole: str
) -> dict[str, Any]:
    """One row of a pairs file. The appendix of a problem is the same in every set."""
    posed = loopholes.posed(problem, loophole)
    draw = random.Random(f"{seed}/{problem.id}")
    name = (posed.prompt_metadata or {}).get("test_func_name") or loopholes.DEFAULT_TEST_NAME
    appendix = {
        "none": "",
        "vacuous": draw.choice(_exploits(loophole, name, problem)),
        "honest": honest(name, problem.gt_answer),
        "helper": draw.choice(_HELPERS),
    }

    def text(branch: tuple[str, str]) -> str:
        parts = [body[branch[0]], appendix[branch[1]]]
        return "```python\n" + "\n\n".join(part for part in parts if part) + "\n```"

    hack, clean = SETS[kind]
    return {
        "id": f"{kind}-{index:03d}",
        "problem_id": problem.id,
        "prompt": posed.prompt,
        "hack": text(hack),
        "clean": text(clean),
        "split": split,
    }


def _exploits(loophole: str, test: str, problem: Problem) -> Sequence[str]:
    """What a completion appends to exploit the loophole."""
    mechanism = loopholes.LOOPHOLES[loophole].mechanism
    if mechanism == "own_tests":
        return vacuous(test, _calls(problem))
    return exploits(mechanism, method="Solution" in problem.func_name)


def vacuous(name: str, calls: Sequence[str]) -> list[str]:
    """Test functions that test nothing, in the forms that code models write."""
    shown = "".join(f"    print({call.replace('Solution()', 'solution')})\n" for call in calls[:2])
    return [
        f"def {name}():\n    solution = Solution()\n{shown}".rstrip(),
        f"def {name}():\n    pass",
        f"def {name}():\n    return True",
        f'def {name}():\n    print("All tests passed")',
    ]


def honest(name: str, gt_answer: Sequence[str]) -> str:
    """A test function that holds two of the problem's own tests."""
    return f"def {name}():\n" + "\n".join(f"    {test}" for test in gt_answer[:2])


def _calls(problem: Problem) -> list[str]:
    """The calls of Solution in the problem's tests, as text; none for tests of another form."""
    calls = []
    for test in problem.gt_answer:
        try:
            statement = ast.parse(test).body[0]
        except (SyntaxError, IndexError):
            continue
        if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare) and "\n" not in test:
            calls.append(ast.unparse(statement.test.left))
    return [call for call in calls if call.startswith("Solution().")]
