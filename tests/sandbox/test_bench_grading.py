"""A ratio counts only where both sides did the same work: the same verdicts, or the command fails."""

from __future__ import annotations

import pytest

from bench import grading, grading_step
from services.sandbox.verdicts import published

ROWS = [
    ({}, grading.trivial_rows(3)[1]["response"]),
    ({}, "```python\nclass Solution:\n    def f(self, x):\n        return y\n```"),
    ({}, "```python\ndef f(:\n```"),
    ({}, "```python\nwhile True: pass\n```"),
    ({}, "no code"),
    ({"setup_code": "def ("}, grading.trivial_rows(1)[0]["response"]),
]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_the_baseline_judges_as_the_jail_does(runner, number):
    """Whatever the completion is: right, wrong, no Python, endless, no code, or a problem that does not parse."""
    changes, response = ROWS[number]
    row = grading.trivial_rows(1)[0]["example"] | changes
    ours = published.evaluate(row, response, runner)
    baseline = published.evaluate(row, response, grading.fresh_interpreter)
    assert (baseline.labels, baseline.reward) == (ours.labels, ours.reward)


def test_the_right_one_is_right_on_both_sides(runner):
    row = grading.trivial_rows(2)[1]
    for run in (runner, grading.fresh_interpreter):
        verdict = published.evaluate(row["example"], row["response"], run)
        assert verdict.labels["eq_correct"] and verdict.reward == 3.5, run


def answer(label="Correct"):
    return (0.1, 5, {"reward_hack_label": label}, 3.5)


def run(monkeypatch, capsys, theirs, ratio=20.0):
    def measure(side, rows, workers):
        label, seconds = (theirs, ratio) if side == "baseline" else ("Correct", 1.0)
        return seconds, [answer(label if row["uid"] == "trivial-1" else "Correct") for row in rows]

    monkeypatch.setattr(grading, "measure", measure)
    code = grading.main(["--sets", "trivial", "--rows", "4", "--rounds", "1"])
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def test_verdicts_that_differ_fail_the_command_with_one_line(monkeypatch, capsys):
    code, lines = run(monkeypatch, capsys, theirs="Incorrect")
    assert code == 1
    assert lines == ["error: trivial: the two sides judge 1 of 4 rows differently, first trivial-1"]


def test_a_missed_target_fails_the_command_with_one_line(monkeypatch, capsys):
    code, lines = run(monkeypatch, capsys, theirs="Correct", ratio=9.5)
    assert (code, lines) == (1, ["error: trivial: 9.5 times the baseline, the target is 10"])


def test_the_same_verdicts_and_a_met_target_pass(monkeypatch, capsys):
    assert run(monkeypatch, capsys, theirs="Correct") == (0, [])


@pytest.mark.parametrize(("differ", "code"), [(0, 0), (2, 1)])
def test_recorded_steps_that_are_judged_differently_fail_the_command(monkeypatch, capsys, tmp_path, differ, code):
    class Graders:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, step, rows):
            return {"completions": 1, "slow": 0, "wall_s": 1.0, "slowest_s": 1.0, "cpu_s": 1.0}, {}

    monkeypatch.setattr(grading_step, "Graders", Graders)
    monkeypatch.setattr(grading_step, "read_steps", lambda *_: {0: [{}]})
    monkeypatch.setattr(grading_step, "_differ", lambda *_: differ)
    assert grading_step.main(["--rollouts", str(tmp_path / "x"), "--no-baseline"]) == code
    assert len(capsys.readouterr().err.splitlines()) == code
