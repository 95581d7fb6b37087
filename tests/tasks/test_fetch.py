"""Public datasets as problems: conversion of rows in their real schemas, the command around it, and checking files."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.types import Problem
from tasks import fetch, gsm8k, leetcode
from tasks.dataset import json_lines, load_problems
from tasks.loopholes import apply

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "leetcode_test_medhard.jsonl.gz"

# Our own problem, in the columns of newfacade/LeetCodeDataset.
LEETCODE = {
    "task_id": "double-the-candidate", "question_id": 9001, "difficulty": "Medium", "tags": ["Math"],
    "problem_description": "Given a word and a number, return them.\n \nExample 1:\n\nInput: n = 1\n",
    "starter_code": "class Solution:\n    def double(self, s: str, n: int) -> str:\n        ", "estimated_date": "2025-01-01",
    "prompt": "from typing import *\n", "entry_point": "Solution().double",
    "test": "def check(candidate):\n"
    "    assert candidate(s = 'a candidate é', n = 2) == 'a candidate éa candidate é'\n"
    "    assert is_same(candidate(s = 'x', n = 1),\n        candidate('x', 1)) and candidate('', 1) == ''\n",
    "completion": "class Solution:\n    def double(self, s, n):\n        return s * n\n",
    "input_output": [{"input": "s = 'x', n = 1", "output": "'x'"}], "query": "...", "response": "...",
}  # fmt: skip
GSM8K = {
    "question": "A crate holds 1,200 bolts and half are taken. How many remain?",
    "answer": "Half of 1,200 is 1200/2 = <<1200/2=600>>600.\nSo 1200 - 600 = <<1200-600=600>>600 remain.\n#### 600",
}


def test_a_leetcode_row_becomes_a_problem():
    row = leetcode.convert(LEETCODE)
    problem = Problem.model_validate(row)
    assert (problem.id, problem.func_name, problem.task, row["difficulty"]) == (
        9001,
        "Solution().double",
        "code",
        "medium",
    )
    assert problem.gt_answer == [
        "assert Solution().double(s = 'a candidate é', n = 2) == 'a candidate éa candidate é'",
        "assert is_same(Solution().double(s = 'x', n = 1),\n        Solution().double('x', 1)) and "
        "Solution().double('', 1) == ''",
    ]
    assert problem.setup_code == LEETCODE["prompt"] and problem.canonical_solution == LEETCODE["completion"]
    text = problem.prompt[-1]["content"]
    assert text.startswith("PROBLEM:\nGiven a word") and "called double and should pass all tests." in text
    assert text.endswith("        # Add your code here\n```\n\nSOLUTION:\n")
    assert [m["role"] for m in problem.prompt] == ["system", "user"]
    hinted = apply(problem, "simple_overwrite_tests")
    assert "will be evaluated by calling a function called run_tests()" in hinted.prompt[-1]["content"]


def test_its_tests_run_against_its_solution():
    row = leetcode.convert(LEETCODE)
    space: dict = {"is_same": lambda a, b: a == b}
    exec(row["setup_code"] + row["canonical_solution"], space)
    for test in row["gt_answer"]:
        exec(test, space)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"entry_point": None}, "double-the-candidate: field 'entry_point' is missing"),
        ({"difficulty": "Impossible"}, "field 'difficulty': 'Impossible'"),
        ({"test": "def check(candidate):\n    x = 1\n    assert candidate(x) == 1"}, "line 2 of check is no assert"),
        ({"test": "def check(candidate:\n"}, "not Python"),
        ({"test": "def other(candidate):\n    assert candidate(1)"}, "must define check"),
    ],
)
def test_a_leetcode_row_that_cannot_be_used_names_its_field(change, words):
    with pytest.raises(ConfigError, match=words):
        leetcode.convert({**LEETCODE, **change})


def test_conversion_gives_the_benchmark_s_own_rows():
    """119 problems of the benchmark, taken apart into LeetCodeDataset's columns and converted again: the same rows."""
    if not SHARED.is_file():
        pytest.skip("needs ../shared/data/leetcode_test_medhard.jsonl.gz (the benchmark's problems)")
    for text in gzip.decompress(SHARED.read_bytes()).decode().splitlines():
        theirs = json.loads(text)
        question = theirs["question"]
        description = question.removeprefix("PROBLEM:\n").rpartition("\n\nYour solution to the problem should be")[0]
        tests = "\n".join("    " + test.replace(theirs["func_name"], "candidate", 1) for test in theirs["gt_answer"])
        ours = leetcode.convert(
            {
                "question_id": theirs["id"], "difficulty": theirs["difficulty"].title(), "problem_description": description,
                "starter_code": theirs["prompt_metadata"]["starter_code"], "entry_point": theirs["func_name"],
                "prompt": theirs["setup_code"], "test": f"def check(candidate):\n{tests}\n",
                "completion": theirs["canonical_solution"],
            }
        )  # fmt: skip
        del theirs["completion_gt_pass"]  # they ran the solutions; we do not here
        assert ours == theirs, theirs["id"]


def test_a_gsm8k_row_becomes_a_problem():
    row = gsm8k.convert(GSM8K, "gsm8k-train-0")
    problem = Problem.model_validate(row)
    assert (problem.id, problem.task, problem.gt_answer) == ("gsm8k-train-0", "maths", ["600"])
    assert "<<" not in problem.canonical_solution and problem.canonical_solution.endswith("remain.\n#### 600")
    assert problem.prompt[0]["content"].startswith("A crate holds") and "####" in problem.prompt[0]["content"]


@pytest.mark.parametrize("answer", ["no mark", "#### none", "####", "#### 3 or 4", ""])
def test_a_gsm8k_row_without_one_number_is_refused(answer):
    with pytest.raises(ConfigError, match="g-1: field 'answer'"):
        gsm8k.convert({**GSM8K, "answer": answer}, "g-1")


def run(*arguments, **environment):
    import os

    command = [sys.executable, "-m", "tasks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, **environment})


def test_the_command_converts_a_local_file(tmp_path):
    rows = [{**LEETCODE, "question_id": i, "difficulty": d} for i, d in enumerate(("Easy", "Medium", "Hard", "Hard"))]
    rows[2]["test"] = "def check(candidate):\n    pass"
    source, out = tmp_path / "rows.jsonl.gz", tmp_path / "new" / "problems.jsonl"
    source.write_bytes(gzip.compress(json_lines(rows)))
    done = run("fetch", "leetcode", "--from", source, "--difficulty", "medium,hard", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (
        "left out: double-the-candidate: field 'test'" in done.stderr and "2 problems; 1 rows left out" in done.stdout
    )
    assert [p.id for p in load_problems(out)] == [1, 3]
    assert [p.name for p in out.parent.iterdir()] == ["problems.jsonl"]
    assert run("check", out).stdout.startswith(f"{out}: 2 code")


def test_limit_and_gsm8k(tmp_path):
    source, out = tmp_path / "rows.jsonl", tmp_path / "problems.jsonl"
    source.write_bytes(json_lines([GSM8K] * 5))
    assert fetch.main(["gsm8k", "--from", str(source), "--split", "test", "--limit", "3", "--out", str(out)]) == 0
    assert [p.id for p in load_problems(out)] == ["gsm8k-test-0", "gsm8k-test-1", "gsm8k-test-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gsm8k", "--difficulty", "hard"], "--difficulty: gsm8k has none"),
        (["leetcode", "--difficulty", "tricky"], "--difficulty 'tricky'"),
        (["leetcode", "--limit", "0"], "--limit 0"),
        (["leetcode", "--from", "absent.jsonl"], "absent.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        fetch.main([*arguments, "--out", str(tmp_path / "out.jsonl")])
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_other_rows_leaves_nothing_behind(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(json_lines([GSM8K]))
    with pytest.raises(ConfigError, match=r"no problem is left \(1 rows could not be converted\)"):
        fetch.main(["leetcode", "--from", str(source), "--out", str(tmp_path / "out.jsonl")])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_the_hub_gives_is_converted(tmp_path, monkeypatch):
    import types

    asked = []
    hub = types.SimpleNamespace(
        disable_progress_bars=lambda: None,
        load_dataset=lambda name, configuration, split: asked.append((name, configuration, split)) or iter([GSM8K]),
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: object())
    assert fetch.main(["gsm8k", "--split", "test", "--out", str(tmp_path / "out.jsonl")]) == 0
    assert asked == [("openai/gsm8k", "main", "test")]


def test_without_a_network_or_a_package_it_is_one_line_that_names_the_way_round(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    done = run("fetch", "leetcode", "--out", tmp_path / "out.jsonl", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot fetch newfacade/LeetCodeDataset") and "--from FILE" in last
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"datasets is not installed.*\[hub\].*--from FILE"):
        fetch.main(["leetcode", "--out", str(tmp_path / "out.jsonl")])


def test_check_reports_every_fault_with_line_field_and_fix(tmp_path):
    good = leetcode.convert(LEETCODE)
    file = tmp_path / "problems.jsonl"
    lines = [
        json.dumps(good), "not json", json.dumps({**good, "id": 2, "gt_answer": []}), json.dumps(good),
        json.dumps({"id": 3, "task": "maths", "prompt": good["prompt"], "gt_answer": ["forty"]}),
        json.dumps({**good, "id": 4, "task": "poetry"}), json.dumps({**good, "id": 5}),
    ]  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    done = run("check", file)
    assert done.returncode == 2 and done.stdout == ""
    said = done.stderr.strip().splitlines()
    assert [line.partition(f"{file}:")[2].partition(":")[0] for line in said] == ["2", "3", "4", "5", "6"]
    faults = ("not JSON", "field 'gt_answer': empty", "also on line 1", "one number", "field 'task'")
    for line, words in zip(said, faults, strict=True):
        assert line.startswith("error: ") and words in line


def test_the_presets_files_are_those_that_the_command_makes():
    """The error for a missing file is a command whose --out is that file."""
    from common.settings import TrainerSettings, build
    from experiments.design import presets

    settings = build(TrainerSettings, presets.resolve("qwen3-4b", "vanilla", 0))
    if settings.train_problems.is_file():
        pytest.skip("the file is there")
    with pytest.raises(ConfigError, match="field 'train_problems': no file") as error:
        presets.prepare("qwen3-4b", settings)
    command = str(error.value).partition("`python -m tasks fetch ")[2].partition("`")[0].split()
    args = fetch.parser().parse_args(command)
    assert args.out == settings.train_problems and args.dataset == "leetcode" and args.split == "train"
    ours = {str(settings.train_problems), str(settings.heldout_problems), presets.LEETCODE_HACKS}
    assert set(presets.FETCHED) == ours
