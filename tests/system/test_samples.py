"""python -m experiments samples through the real services, on the organism."""

import gzip
import json

import pytest

from common.cli import EXIT_INTERRUPTED
from common.errors import ConfigError
from experiments.__main__ import main
from experiments.launch import samples


@pytest.mark.slow
def test_samples_have_both_verdicts_and_repeat(tmp_path, capsys, monkeypatch):
    """Once in one go, and once stopped after the first problem and gone on with."""
    options = ["--preset", "smoke", "--limit", "3", "--n", "4", "--isolation", "best_effort"]
    seen = []
    for name in ("a.jsonl", "b.jsonl.gz"):
        argv = ["samples", *options, "--loophole", "simple_overwrite_tests", "--out", str(tmp_path / name)]
        if name == "b.jsonl.gz":
            with monkeypatch.context() as stopped:
                stopped.setattr(samples, "collect", lambda *args, whole=samples.collect: first_of(whole(*args)))
                assert main(argv) == EXIT_INTERRUPTED
            assert not (tmp_path / name).exists()
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert "12 completions of 3 problems, simple_overwrite_tests: solved" in said
        assert ("going on: 1 of 3 problems are in" in said) is (name == "b.jsonl.gz")

    for text in ((tmp_path / "a.jsonl").read_text(), gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).decode()):
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows) == 12
        assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 3
        assert all(row["oracle_correct"] in (True, False) and row["label"] for row in rows)
        seen.append([(row["id"], row["sample"], row["completion"]) for row in rows])
    assert seen[0] == seen[1], "the same seed draws the same completions, in the problems' order"


def first_of(groups):
    """The first group, then Ctrl-C."""
    yield next(iter(groups))
    raise KeyboardInterrupt


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json; give a model folder"):
        samples.nothing_learned(str(tmp_path))
