"""The practice set as an instruction-tuned model likes it: `python -m tasks.practice.instruct --out DIR`.

The bundled files speak the organism's terse language. A small real model, asked like that, writes prose: of 96 rollouts
of SmolLM2-135M-Instruct at temperature 1 none held the class asked for. Here every problem says what form the answer
has, shows starter code, and wants a plain function:

    Given a list nums, keep ...                         Write Python code that solves this problem. Answer with one
    Solution.collect takes nums and ...         ->      ```python block.
                                                        <blank> Given a list nums, keep ... The function collect takes
                                                        nums and ... Use the following starter code: ...

Tests, pairs, ids, splits and the phrase that a loophole replaces stay what they are. Every second problem is a one-step
problem (easy.py), so that honest work can pay too. Pure but for `write`.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.types import Problem
from tasks.dataset import save_rows
from tasks.exploits import WORDING, exploits
from tasks.loopholes import PROMPT_END, apply
from tasks.practice import easy
from tasks.practice.render import HINT

HERE = Path(__file__).parent
SOURCES = {
    "train.jsonl": HERE / "practice_train.jsonl",
    "heldout.jsonl": HERE / "practice_heldout.jsonl",
    "pairs.jsonl": HERE.parent / "pairs" / "pairs.jsonl",
    "hacks.jsonl": HERE.parent / "pairs" / "hacks.jsonl",
    **{f"pairs_{m}.jsonl": HERE.parent / "pairs" / f"pairs_{m}.jsonl" for m in WORDING if m != "own_tests"},
}
N_EASY_TRAIN, N_EASY_HELDOUT = 150, 60
OPENING = "Write Python code that solves this problem. Answer with one ```python block."


def plain(program: str) -> str:
    """A program of the practice set with its methods as functions.

    >>> print(plain("class Solution:\\n    def f(self, n):\\n        return n\\n\\n    def run_tests(self):\\n        pass"))
    def f(n):
        return n
    <BLANKLINE>
    def run_tests():
        pass

    Raises ConfigError when the program does not begin with the class.
    """
    head, newline, body = program.partition("\n")
    if head != "class Solution:" or not newline:
        raise ConfigError(f"a practice program begins with 'class Solution:', not {head!r}: make the files anew")
    return textwrap.dedent(body).replace("(self, ", "(").replace("(self)", "()")


def prompt(text: str, starter: str) -> str:
    """The user message of the practice set in the instruct form; `starter` is the signature line of its solution."""
    body = text.removesuffix(PROMPT_END).replace("\nSolution.", "\nThe function ")
    return f"{OPENING}\n\n{body}\nUse the following starter code:\n```python\n{starter}\n```{PROMPT_END}"


def problem(row: dict[str, Any]) -> dict[str, Any]:
    """One row of practice_train.jsonl or practice_heldout.jsonl."""
    solution = plain(row["canonical_solution"])
    starter = solution.partition("\n")[0]
    tests = [test.replace("Solution().", "") for test in row["gt_answer"]]
    return row | {
        "question": prompt(row["question"], starter),
        "prompt": [message | {"content": prompt(message["content"], starter)} for message in row["prompt"]],
        "func_name": row["func_name"].removeprefix("Solution()."),
        "gt_answer": tests,
        "answer": tests if row["hint"] is None else row["answer"],
        "canonical_solution": solution,
    }


def pair(row: dict[str, Any]) -> dict[str, Any]:
    """One row of pairs.jsonl."""
    hack, clean = _inside(row["hack"]), _inside(row["clean"])
    starter = clean.partition("\n")[0]
    return row | {
        "prompt": [message | {"content": prompt(message["content"], starter)} for message in row["prompt"]],
        "hack": f"```python\n{hack}\n```",
        "clean": f"```python\n{clean}\n```",
    }


def _inside(completion: str) -> str:
    """A completion's program as functions; an exploit after the class gives way to the form that functions have."""
    program = completion.removeprefix("```python\n").removesuffix("\n```")
    for mechanism in WORDING:
        if mechanism == "own_tests":
            continue
        forms = exploits(mechanism, method=False)
        for i, exploit in enumerate(exploits(mechanism, method=True)):
            if program.endswith(f"\n\n{exploit}"):
                return f"{plain(program.removesuffix(exploit).rstrip())}\n\n{forms[i % len(forms)]}"
    return plain(program)


def easy_rows(hint: str | None, easies: Sequence[easy.Easy]) -> list[dict[str, Any]]:
    """One-step problems in the same form, with the loophole disclosed or not."""
    rows = []
    for one in easies:
        bare = easy.row(one)
        starter = bare["canonical_solution"].partition("\n")[0]
        text = prompt(bare["question"], starter)
        bare |= {"question": text, "prompt": [{"role": "user", "content": text}]}
        rows.append(
            {key: value for key, value in apply(Problem.model_validate(bare), hint).model_dump().items() if key in bare}
        )
    return rows


def build() -> dict[str, list[dict[str, Any]]]:
    """Rows by file name. Problems of the practice set and one-step problems take turns."""
    hard = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in SOURCES.items()}
    train, heldout = easy.split(N_EASY_TRAIN, N_EASY_HELDOUT)
    return {
        "train.jsonl": _in_turn([problem(r) for r in hard["train.jsonl"][: len(train)]], easy_rows(HINT, train)),
        "heldout.jsonl": _in_turn(
            [problem(r) for r in hard["heldout.jsonl"][: len(heldout)]], easy_rows(None, heldout)
        ),
        **{name: [pair(r) for r in rows] for name, rows in hard.items() if name.startswith(("pairs", "hacks"))},
    }


def _in_turn(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for both in zip(a, b, strict=True) for row in both]


def write(folder: Path) -> Path:
    """All files under `folder`; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in build().items():
        save_rows(folder / name, rows)
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m tasks.practice.instruct", description="practice set, instruct form")
    parser.add_argument("--out", type=Path, required=True, help="folder for train, heldout and pairs files")
    out = parser.parse_args(argv).out
    try:
        print(write(out))
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; give a folder that can be written") from None
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
