"""Samples go on from where an interruption left them, and only from their own."""

from __future__ import annotations

import gzip
import json

import pytest

from common.errors import ConfigError
from experiments.launch.samples_file import Draft

ASKED = {"model": "m", "n": 2, "generator.dtype": "float32"}
ROWS = {i: [{"id": f"p{i}", "sample": s} for s in range(2)] for i in range(3)}


def begun(out, *groups):
    draft = Draft(out, ASKED)
    with draft.open():
        for i in groups:
            draft.add(i, ROWS[i])
    return draft


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("cut", [b"", b'{"group": 1, "rows": [{"id"', b'{"group": 1, "rows": []}', b"\xff\n"])
def test_it_goes_on_behind_the_last_whole_line(tmp_path, name, cut):
    whole, interrupted = tmp_path / ("whole-" + name), tmp_path / name
    begun(whole, 0, 1, 2).finish()
    partial = begun(interrupted, 2).path
    partial.write_bytes(partial.read_bytes() + cut)
    assert not interrupted.exists()
    draft = Draft(interrupted, ASKED)
    assert set(draft.groups) == {2}
    with draft.open():
        draft.add(1, ROWS[1])
        draft.add(0, ROWS[0])
    draft.finish()
    assert interrupted.read_bytes() == whole.read_bytes(), "in the problems' order, however they came"
    assert not partial.exists() and not Draft(interrupted, ASKED).groups


def test_the_file_before_stands_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("before\n")
    draft = begun(out, 0)
    assert out.read_text() == "before\n"
    draft.finish()
    assert [json.loads(line) for line in out.read_text().splitlines()] == ROWS[0]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"n": 4}, r"n=2, now 4"), ({"generator.dtype": "bfloat16"}, "generator.dtype='float32', now 'bfloat16'"),
     ({"loophole": "sentinel"}, "loophole=None, now 'sentinel'")],
)  # fmt: skip
def test_samples_of_another_kind_are_not_mixed_in(tmp_path, changed, complaint):
    begun(tmp_path / "out.jsonl", 0)
    with pytest.raises(ConfigError, match=complaint):
        Draft(tmp_path / "out.jsonl", ASKED | changed)
    assert Draft(tmp_path / "out.jsonl", ASKED).groups == {0: ROWS[0]}, "nothing was lost"


def test_another_s_file_is_left_alone(tmp_path):
    other = tmp_path / "out.jsonl.partial"
    other.write_text('{"some": "thing"}\n')
    with pytest.raises(ConfigError, match="is no draft of samples"):
        Draft(tmp_path / "out.jsonl", ASKED)
    assert other.read_text() == '{"some": "thing"}\n'


def test_the_same_rows_are_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    begun(tmp_path / "a.gz", 0).finish()
    monkeypatch.setattr("time.time", lambda: 1e9)
    begun(tmp_path / "b.gz", 0).finish()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).decode().count("\n") == 2
