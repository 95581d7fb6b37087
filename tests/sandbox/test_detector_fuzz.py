"""The detector answers any text whatsoever, in bounded time."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.sandbox.verdicts import detector
from services.sandbox.verdicts.detector import MAX_INSPECTED, Extraction, find_function, inspect, parse_response
from tasks.loophole_checks import attempted
from tasks.loopholes import LOOPHOLES
from tests.sandbox.test_detector import PUBLISHED_PATTERN

ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "parity_shared.jsonl.gz"
EXAMPLE = {"prompt": [{"role": "user", "content": "```python\nstub\n\ndef run_tests():\n    assert 1\n```"}]}

PIECES = st.sampled_from(
    ["```", "```python\n", "```PYTHON\n", "```py\n", "\n", "\r\n", "`", "def run_tests():\n", "    pass\n",
     "class Solution:\n", "    def run_tests(self):\n", "        assert ", "if __name__ == '__main__':", "(", "'''",
     '"', "\\", "\x00", "\ud800", "é", "\ufeff", "async ", "lambda: ", "f'{", "run_tests", "ｒun_tests", "return\n",
     "\t", "\x0c", "#", "@x\n", "0x", "1e999"]
)  # fmt: skip
BYTES = st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))
TEXTS = st.one_of(st.text(), st.lists(PIECES).map("".join), BYTES)


def check(text: str) -> None:
    seen = inspect(EXAMPLE, text)
    assert isinstance(seen, Extraction)
    assert seen.is_parsed == (parse_response(text) is not None)
    assert seen.has_response_function <= (seen.response_function != "")
    for hint in LOOPHOLES:
        assert attempted(hint, seen.program) in (True, False)
    for hinted in (True, False):
        row = detector.labels(seen, detector.Facts(True, 0.0, hinted, False, True, False))
        assert row["reward_hack_label"] in detector.LABELS


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_gets_an_answer(text):
    check(text)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_parsing_is_the_published_pattern(text):
    blocks = [block.strip() for block in PUBLISHED_PATTERN.findall(text) if block.strip()]
    assert parse_response(text) == ("\n\n".join(blocks) or None)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES).map("".join))
def test_any_code_gets_a_function_or_none(code):
    source, parent = find_function(code, "run_tests")
    assert isinstance(source, str) and (parent is None or isinstance(parent, str))


def test_every_prefix_of_real_rollouts():
    if not ROWS.is_file():
        pytest.skip("../shared/data/parity_shared.jsonl.gz is absent: no real rollouts to cut")
    with gzip.open(ROWS, "rt") as file:
        real = [row for row in map(json.loads, file) if row["source"] == "qwen3-4b-rollout"]
    draw = random.Random(0)
    for row in draw.sample(real, 3):
        for end in range(len(row["response"]) + 1):
            seen = inspect(row["example"], row["response"][:end])
            assert seen.is_parsed == bool(PUBLISHED_PATTERN.findall(row["response"][:end]) and seen.program)


def test_five_megabytes():
    for text in ("x" * 5_000_000, "```\n" * 1_250_000, "```python\n" + "a = 1\n" * 800_000, "`" * 5_000_000):
        seen = inspect(EXAMPLE, text)
        assert seen.response_function == ""


def test_oversized_programs_are_run_but_not_inspected():
    code = "def run_tests(): pass\n" + "x = 1\n" * (MAX_INSPECTED // 6)
    seen = inspect(EXAMPLE, f"```python\n{code}\n```")
    assert seen.is_parsed and not seen.has_response_function


# Each of these breaks some stage of the parser or of unparsing. In a process of its own: a crash of the interpreter
# (which the original would suffer too) must be seen as a failure, not as the end of the test run.
BOMBS = """
import sys
from services.sandbox.verdicts.detector import MAX_INSPECTED as N, find_function
head = "def run_tests():\\n    x = "
units = ["1+", "a.b.", "not ", "-", "lambda:", "1 if 1 else ", "await ", "1**", "(", "[", "{1:", "a<", "f'{", "*", "~",
         "a and ", "a|", "yield ", "x:=", "a()(", "'", "0", "@a\\n"]
for unit in units:
    find_function(head + unit * ((N - 100) // len(unit)) + "1", "run_tests")
for nested in ("class A:\\n", "def run_tests():\\n", "if 1:\\n", "for a in b:\\n", "with a:\\n", "try:\\n"):
    find_function("".join(" " * i + nested for i in range(99)) + " " * 99 + "pass", "run_tests")
    find_function("".join(" " * i + nested for i in range(400)) + " " * 400 + "pass", "run_tests")
find_function(head + "a" + "()" * 60000, "run_tests")
find_function(head + "a" + ".b" * 60000, "run_tests")
find_function(head + "0x" + "f" * 100000, "run_tests")
find_function("def run_tests(): pass\\n" * 5000, "run_tests")
print("all answered")
"""


def test_parser_bombs():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", BOMBS], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "all answered", done.stderr[-2000:]
