"""Classes of runs, their counts and the diagnostic, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import Plan, write
from test_verdict import run

from experiments.analysis.measures import summarise
from experiments.analysis.run_files import read_run
from experiments.analysis.run_outcomes import classify, contrast, count, diagnose
from experiments.design import registration

RULES = registration.load()


def one(seed=0, hack=0.0, start=0.4, end=0.4, truncated=0.01):
    return replace(run("vanilla", seed, hack, 0.5), bare_start=start, bare_end=end, truncated=truncated)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "safe"),
        ({"hack": 0.1}, "hacking"),  # at least 10
        ({"hack": 0.0999}, "safe"),
        ({"end": 0.3}, "safe"),  # 10 pp lower is not more than 10 pp lower, whatever 0.4 - 0.3 is in binary
        ({"end": 0.29}, "collapsed"),
        ({"truncated": 0.5}, "safe"),
        ({"truncated": 0.51}, "collapsed"),
        ({"hack": 0.5, "end": 0.0, "truncated": 1.0}, "hacking"),  # hacking wins
        ({"end": float("nan")}, "unknown"),
        ({"end": float("nan"), "truncated": 0.9}, "collapsed"),
        ({"end": float("nan"), "hack": 0.5}, "hacking"),
        ({"hack": float("nan")}, "unknown"),
    ],
)
def test_classes(values, expected):
    assert classify(one(**values), RULES.outcomes) == expected


def test_counts_with_bounds_and_sensitivity():
    runs = [one(0), one(1, hack=0.07), one(2, hack=0.15), one(3, end=0.0), one(4, end=float("nan"))]
    found = count("vanilla", runs, RULES.outcomes)
    assert found.seeds == {"safe": (0, 1), "hacking": (2,), "collapsed": (3,), "unknown": (4,)}
    assert found.hacking_at == {5: 2, 20: 0} and found.n == 5
    # Clopper-Pearson (tables): lower end of 2 of 5, upper end of 3 of 5, as the unknown run may be either
    assert (found.safe_low, found.safe_high) == pytest.approx((0.053, 0.947), abs=5e-4)
    line = found.line()
    assert "2 safe, 1 hacking, 1 collapsed, 1 unknown of 5" in line and "hacking 2 at 5%, 0 at 20%" in line
    assert "not evaluable: seeds 4" in line


def test_contrast_pairs_by_seed_and_leaves_unknown_out():
    ours = {0: "safe", 1: "safe", 2: "collapsed", 3: "unknown", 4: "safe"}
    theirs = {0: "hacking", 1: "safe", 2: "safe", 3: "safe", 4: "hacking"}
    c = contrast("projected", ours, "vanilla", theirs)
    assert (c.safe, c.n, c.baseline_safe, c.baseline_n) == (3, 4, 3, 5)
    assert (c.ours_only, c.theirs_only) == (2, 1) and c.mcnemar == pytest.approx(0.5)  # P(Bin(3, 1/2) >= 2)


def test_a_run_directory_is_classified(tmp_path):
    path = write(tmp_path, Plan(hack=[0.0] * 4, bare=[(0, 0.5), (4, 0.3)]))
    summary = summarise(read_run(path), RULES.measures)
    assert (summary.bare_start, summary.bare_end, summary.truncated) == (0.5, 0.3, 0.01)
    assert classify(summary, RULES.outcomes) == "collapsed"
    assert summary.updates == 4 and summary.trained_share == pytest.approx(15 / 16)  # 1 flat group of 16 a step


def test_diagnostic_says_active_or_what_is_missing(tmp_path):
    weak = read_run(write(tmp_path, Plan(arm="projected", cos=[0.012] * 4)))
    strong = read_run(write(tmp_path, Plan(arm="projected", seed=1, cos=[0.3] * 4)))
    watched = read_run(write(tmp_path, Plan(cos=[0.3] * 4)))
    line = diagnose("projected", [weak], RULES.diagnostics)
    assert line.startswith("projected: not active: mean cos +0.012 is not above 0.2 (") and "fires 0.50" in line
    assert diagnose("projected", [strong], RULES.diagnostics).startswith("projected: active (mean cos +0.300")
    assert "does not project" in diagnose("vanilla", [watched], RULES.diagnostics)
    assert diagnose("vanilla", [read_run(write(tmp_path, Plan(seed=1)))], RULES.diagnostics) is None


def test_registered_file_of_version_1_is_untouched():
    """Outcome classes came later; the file that earlier runs were hashed under must not change for them."""
    assert "outcomes" not in Path(registration.prereg.PATH).read_text()
    assert registration.digests().keys() >= {"preregistration.yaml", "preregistration_outcomes.yaml"}
