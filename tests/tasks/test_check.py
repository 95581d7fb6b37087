"""`python -m tasks check`: what a sound file holds, every fault of a broken one, and no end of lines."""

import json

from tasks import check
from tasks.practice import generate


def test_a_sound_file_says_what_it_holds(capsys):
    assert check.main([str(generate.FILES["train"])]) == 0
    assert capsys.readouterr().out.endswith("practice_train.jsonl: 200 code; loophole: simple_overwrite_tests 200\n")


def test_one_broken_file_decides_and_the_sound_one_is_still_counted(tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    rows = [json.loads(line) for line in generate.FILES["train"].read_text().splitlines()[:2]]
    broken.write_text(json.dumps(rows[0] | {"gt_answer": 3}) + "\n" + json.dumps(rows[1]) + "\nnot JSON\n")
    assert check.main([str(broken), str(generate.FILES["heldout"])]) == 2
    said = capsys.readouterr()
    assert f"{broken}:1: field 'gt_answer'" in said.err and f"{broken}:3: not JSON" in said.err
    assert f"{broken}:2" not in said.err
    assert "practice_heldout.jsonl: 100 code; loophole: none 100" in said.out


def test_the_rest_of_many_faults_is_counted(tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("[]\n" * (check.SHOWN + 7))
    assert check.main([str(broken)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == check.SHOWN + 1 and lines[-1] == f"... and 7 more in {broken}"
