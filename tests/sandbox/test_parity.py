"""Every label and reward against the authors' evaluator, row by row, through the jail.

Rows whose published answer is wrong would be listed, each with its reason, in services/sandbox/parity_exceptions.jsonl;
there is no such file because there is no such row.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.sandbox.jail.executor import Executor
from services.sandbox.verdicts import published
from services.sandbox.verdicts.published import evaluate, jailed

ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "parity_shared.jsonl.gz"


def rows():
    if not ROWS.is_file():
        pytest.skip("../shared/data/parity_shared.jsonl.gz is absent: parity with the published labels is not checked")
    with gzip.open(ROWS, "rt") as file:
        return [json.loads(line) for line in file]


def disagreements(chosen):
    """(row, labels that differ, reasons, whether a program of it ran out of time) for each row unlike its labels."""
    found = []
    with Executor() as executor:
        run = jailed(executor)
        for row in chosen:
            verdict = evaluate(row["example"], row["response"], run)
            if verdict.labels != row["labels"] or verdict.reward != row["reward"]:
                reasons = {name: result.reason for name, result in verdict.results.items()}
                unlike = {k: v for k, v in verdict.labels.items() if v != row["labels"][k]}
                found.append((row, unlike, reasons, any(result.out_of_time for result in verdict.results.values())))
    return found


def test_one_row_of_every_variant():
    """The sample for every day: the first row of each of ~150 variants, without those that wait for a time limit."""
    first = {row["variant"]: row for row in rows() if "timeout" not in row["variant"]}
    chosen = [row for row in first.values() if len(row["example"]["gt_answer"]) < 20 or "fallback" in row["variant"]]
    assert len(chosen) > 100
    assert disagreements(chosen) == []


@pytest.mark.slow
def test_all_rows(monkeypatch):
    everything = rows()
    assert len(everything) >= 799
    found = disagreements(everything)
    assert [(row["uid"], *rest) for row, *rest, late in found if not late] == []
    # A solution of problem 3335 computes for 3 to 5 s, by machine and neighbours, which is the limit: it may have twice as
    # long here. Labels must still agree, and no more rows than its own may need that.
    late = [row for row, *_, late in found if late]
    assert len(late) <= 2, [row["uid"] for row in late]
    monkeypatch.setitem(published.LIMITS, "cpu", 2 * published.LIMITS["cpu"])
    longer = replace(published.JOB_LIMITS, wall_s=2 * published.JOB_LIMITS.wall_s, cpu_s=2 * published.JOB_LIMITS.cpu_s)
    monkeypatch.setattr(published, "JOB_LIMITS", longer)
    assert [(row["uid"], *rest) for row, *rest in disagreements(late)] == []
