"""Long work in a log: a line now and then, none for what is quick."""

from __future__ import annotations

import time

from rankspace.progress import bar, lines, span, stage


def test_a_line_now_and_then(capsys, tmp_path):
    now = iter([0.0, 1.0, 20.0, 21.0, 40.0])
    show = lines("extract", every_s=15.0, clock=lambda: next(now), file=tmp_path / "progress.log")
    for done in (1, 2, 3, 4):
        show(done, 9, "layer")
    # 20 s for 2 of 9: 7 more at 10 s each; 40 s for 4 of 9: 5 more at 10 s each
    told = ["extract: 2 of 9 layer, about 70 s left", "extract: 4 of 9 layer, about 50 s left"]
    assert capsys.readouterr().err.splitlines() == told
    assert [line[9:] for line in (tmp_path / "progress.log").read_text().splitlines()] == told


def test_work_of_unknown_length_says_how_long_it_has_taken(capsys, tmp_path):
    with stage("loading", tmp_path / "progress.log", every_s=0.05):
        time.sleep(0.3)
    told = capsys.readouterr().err.splitlines()
    assert told and set(told) == {"loading: 0 s so far"} and (tmp_path / "progress.log").is_file()
    with stage("loading", tmp_path / "nowhere" / "progress.log", every_s=0.05):
        time.sleep(0.1)
    assert not (tmp_path / "nowhere").exists()


def test_spans():
    assert [span(s) for s in (0, 4.4, 89, 90, 5399)] == ["0 s", "4 s", "89 s", "2 min", "90 min"]
    assert [span(s) for s in (5400, 12600, 172799, 432000)] == ["1.5 h", "3.5 h", "48.0 h", "5.0 d"]


def test_quick_work_in_a_pipe_is_silent(capsys):
    with bar("extract") as show:
        show(1, 1, "")
    assert capsys.readouterr().err == ""
