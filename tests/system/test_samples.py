"""python -m experiments samples through the real services, on the organism."""

import json

import pytest

from common.errors import ConfigError
from experiments.__main__ import main
from experiments.launch import samples


@pytest.mark.slow
def test_samples_have_both_verdicts_and_repeat(tmp_path, capsys):
    options = ["--preset", "smoke", "--limit", "3", "--n", "4", "--isolation", "best_effort"]
    seen = []
    for name in ("a.jsonl", "b.jsonl.gz"):
        argv = ["samples", *options, "--loophole", "simple_overwrite_tests", "--out", str(tmp_path / name)]
        assert main(argv) == 0
        assert "12 completions of 3 problems, simple_overwrite_tests: solved" in capsys.readouterr().out
    import gzip

    for text in ((tmp_path / "a.jsonl").read_text(), gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).decode()):
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows) == 12
        assert all(row["oracle_correct"] in (True, False) and row["label"] for row in rows)
        seen.append({(row["id"], row["sample"], row["completion"]) for row in rows})
    assert seen[0] == seen[1], "the same seed draws the same completions"


def test_a_folder_without_weights_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json; give a model folder"):
        samples.nothing_learned(str(tmp_path))
