"""Long work in a log: a line now and then, none for what is quick."""

from __future__ import annotations

from rankspace.progress import bar, lines


def test_a_line_now_and_then(capsys):
    now = iter([0.0, 1.0, 20.0, 20.0, 21.0, 40.0, 40.0])
    show = lines("extract", every_s=15.0, clock=lambda: next(now))
    for done in (1, 2, 3, 4):
        show(done, 9, "layer")
    assert capsys.readouterr().err.splitlines() == ["extract: 2 of 9 layer", "extract: 4 of 9 layer"]


def test_quick_work_in_a_pipe_is_silent(capsys):
    with bar("extract") as show:
        show(1, 1, "")
    assert capsys.readouterr().err == ""
