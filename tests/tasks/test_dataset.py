"""Loading problems: the good files load as they are, each kind of bad row is one line naming the field."""

import gzip
import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from tasks.dataset import load_problems, save_rows

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "leetcode_test_medhard.jsonl.gz"

PROBLEM = {
    "id": 7,
    "prompt": [{"role": "user", "content": "Return n plus 2."}],
    "gt_answer": ["assert Solution().add(n = 1) == 3"],
    "func_name": "Solution().add",
    "note": "kept",
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fails(load, path, *parts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(path), *parts):
        assert part in text, text
    return text


def test_plain_and_gz_give_the_same_problems_and_keep_unknown_fields(tmp_path):
    plain = write(tmp_path / "a.jsonl", PROBLEM, {**PROBLEM, "id": "x"})
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    problems = load_problems(plain)
    assert problems == load_problems(packed)
    assert [p.id for p in problems] == [7, "x"]
    assert problems[0].model_extra == {"note": "kept"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"gt_answer": []}, "gt_answer"),
        ({"gt_answer": "assert True"}, "gt_answer"),
        ({"gt_answer": [1]}, "gt_answer.0"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt.0"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt.0.role"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt.0.role"),
        ({"id": None}, "id"),
        ({"setup_code": 3}, "setup_code"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, change, field):
    fails(load_problems, write(tmp_path / "a.jsonl", PROBLEM, {**PROBLEM, "id": 8, **change}), ":2", f"'{field}'")


def test_a_missing_field_is_named(tmp_path):
    row = {k: v for k, v in PROBLEM.items() if k != "gt_answer"}
    fails(load_problems, write(tmp_path / "a.jsonl", row), ":1", "'gt_answer'")


def test_repeated_ids_name_both_lines(tmp_path):
    fails(load_problems, write(tmp_path / "a.jsonl", PROBLEM, PROBLEM), ":2", "'id'", "line 1")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b"{\n", ":1: not JSON"),
        (b"[1]\n", ":1: a list"),
        (b"\xff\xfe\n", ":1: not UTF-8"),
    ],
)
def test_broken_files(tmp_path, content, part):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    fails(load_problems, path, part)


def test_absent_and_truncated_files(tmp_path):
    fails(load_problems, tmp_path / "none.jsonl", "cannot be read")
    fails(load_problems, tmp_path, "cannot be read")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"x" * 100_000)[:-20])
    fails(load_problems, packed, "broken gzip")
    packed.write_bytes(b"plain text")
    fails(load_problems, packed, "broken gzip")


def test_saved_rows_load_again(tmp_path):
    path = tmp_path / "a.jsonl"
    save_rows(path, [{**PROBLEM, "note": "é"}])
    assert load_problems(path)[0].model_extra == {"note": "é"}
    assert path.read_bytes().endswith(b"}\n")


def test_the_benchmarks_own_file_loads_as_it_is():
    if not SHARED.is_file():
        pytest.skip("needs ../shared/data/leetcode_test_medhard.jsonl.gz (the benchmark's problems)")
    problems = load_problems(SHARED)
    assert len(problems) == 119
    assert {p.model_extra["difficulty"] for p in problems} == {"medium", "hard"}
