"""A report made anew from the CSV files of a report says what the first one said."""

import csv
import re

import pytest
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments.analysis import csv_files
from experiments.report import build


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The folder of a report of two arms and two seeds, one run unfinished."""
    monkeypatch.setattr(build, "draw", lambda arms, rules: [])
    for seed in (0, 1):
        write(tmp_path / "runs", Plan(seed=seed, hack=[0.0, 0.1, 0.6, 0.6], bare=[(0, 0.2), (4, 0.3)]))
        write(
            tmp_path / "runs",
            Plan(arm="projected", seed=seed, hack=[0.0] * 4, cos=[0.1] * 4, bare=[(0, 0.2), (4, 0.4)],
                 state="running" if seed else "finished", planned=4),
        )  # fmt: skip
    assert build.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def table(folder):
    return re.findall(r"^\| (?:vanilla|projected) .*$", (folder / "report.md").read_text(), re.M)[:2]


def test_the_same_numbers_verdicts_and_classes(first, tmp_path):
    again = tmp_path / "again"
    assert build.main(["--from-csv", str(first), "--out", str(again)]) == 0
    assert table(again) == table(first)
    old, new = (list(csv.DictReader((folder / "runs.csv").read_text().splitlines())) for folder in (first, again))
    assert old == new and {row["outcome"] for row in new} == {"hacking", "safe", ""}
    text = (again / "report.md").read_text()
    assert "Made from the CSV files of an earlier report" in text and "NOT PREREGISTERED" not in text
    for section in ("## Preregistered verdicts", "## Outcome of each run"):
        of = [t.split(section)[1].split("\n## ")[0] for t in (text, (first / "report.md").read_text())]
        assert of[0] == of[1], section
    assert not (again / "viewer").exists() and not (again / "steps.csv").exists()


def test_columns_of_older_reports_are_read_and_missing_ones_are_not_measured(first):
    steps = (first / "steps.csv").read_text().replace("grad_norm_mean", "grad_norm").replace("truncated_rate", "other")
    (first / "steps.csv").write_text(steps)
    chosen = csv_files.choose(first)
    (run, _) = chosen.by_arm["projected"]
    assert run.series["grad_norm_mean"].tolist() == [0.031] * 4
    assert not (run.series["truncated_rate"] == run.series["truncated_rate"]).any()
    assert run.config["projection"] == "one_sided" and run.preset == "demo"


def test_the_first_reports_wrote_no_evaluations_and_that_is_said(first, tmp_path):
    (first / "evaluations.csv").unlink()
    assert build.main(["--from-csv", str(first), "--out", str(tmp_path / "again")]) == 0
    text = (tmp_path / "again/report.md").read_text()
    assert "That report wrote no evaluations.csv: nothing is known of held-out problems" in text
    assert {run.evals for run in csv_files.choose(first).runs} == {()}


def test_a_run_without_steps_is_left_out_by_name(first):
    lines = (first / "steps.csv").read_text().splitlines(keepends=True)
    (first / "steps.csv").write_text("".join(line for line in lines if not line.startswith("projected,1,")))
    chosen = csv_files.choose(first)
    assert chosen.left_out == ("demo-projected-s1 is running after 4/4 steps, which steps.csv has not",)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "runs.csv").unlink(), "runs.csv: No such file or directory; give the folder of a report"),
        (lambda f: (f / "runs.csv").write_text("run_id,arm,seed\nx,vanilla,0\n"), "no column 'steps'"),
        (
            lambda f: (f / "steps.csv").write_text("arm,seed,step,hack_strict\nvanilla,0,0,x\n"),
            "1 steps of demo-vanilla-s0",
        ),
    ],
)
def test_a_folder_that_is_no_report_is_one_line(first, damage, says):
    damage(first)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        csv_files.choose(first)
    assert "\n" not in str(caught.value)
