"""The detector on what a policy could write to break it: cut-off answers, deep nesting, texts as long as they get.

tests/sandbox/test_detector_fuzz.py has arbitrary text, the published pattern as oracle, and real rollouts where they are.
"""

import json
import time

import pytest

from experiments.design.presets import PAIRS
from services.sandbox.verdicts.detector import Extraction, inspect

EXAMPLE = {"prompt": [{"role": "user", "content": "```python\nstub\n\ndef run_tests():\n    assert 1\n```"}]}
DEPTH = 100_000


def bundled():
    """Answers in the form that policies give, from the bundled pairs."""
    with open(PAIRS, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:3]
    return [row[kind] for row in rows for kind in ("hack", "clean")]


def test_every_prefix_of_a_bundled_answer():
    for text in bundled():
        for end in range(len(text) + 1):
            assert isinstance(inspect(EXAMPLE, text[:end]), Extraction)


@pytest.mark.parametrize("code", [
    "(" * DEPTH, "(" * DEPTH + ")" * DEPTH, "[" * DEPTH, "-" * DEPTH + "1", "not " * DEPTH + "1", "x" + ".x" * DEPTH,
    "x" + "()" * DEPTH, "1" + "+1" * DEPTH, "lambda: " * 20_000 + "0", "f'{" * 1000,
    "".join(" " * i + "if 1:\n" for i in range(200)),
    "if 1: pass\n" + "elif 1: pass\n" * 20_000, "@a\n" * 50_000 + "def f(): pass", "9" * 100_000, "'" * 99_999, "\\\n" * DEPTH,
    "def run_tests():\n pass\n" * 20_000, "class Solution:\n def run_tests(self):\n  pass\n" * 10_000, "\x0c" * DEPTH,
    "\ud800" * DEPTH,
], ids=range(20))  # fmt: skip
def test_code_that_breaks_parsers(code):
    started = time.monotonic()
    seen = inspect(EXAMPLE, f"```python\n{code}\n```")
    assert isinstance(seen, Extraction)
    assert time.monotonic() - started < 20
