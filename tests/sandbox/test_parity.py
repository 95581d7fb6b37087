"""Every label and reward against the authors' evaluator, row by row, through the jail.

Rows whose published answer is wrong would be listed, each with its reason, in services/sandbox/parity_exceptions.jsonl;
there is no such file because there is no such row.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from services.sandbox.jail.executor import Executor
from services.sandbox.verdicts.published import evaluate, jailed

ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "parity_shared.jsonl.gz"


def rows():
    if not ROWS.is_file():
        pytest.skip("../shared/data/parity_shared.jsonl.gz is absent: parity with the published labels is not checked")
    with gzip.open(ROWS, "rt") as file:
        return [json.loads(line) for line in file]


def disagreements(chosen):
    found = []
    with Executor() as executor:
        run = jailed(executor)
        for row in chosen:
            verdict = evaluate(row["example"], row["response"], run)
            if verdict.labels != row["labels"] or verdict.reward != row["reward"]:
                reasons = {name: result.reason for name, result in verdict.results.items()}
                found.append((row["uid"], {k: v for k, v in verdict.labels.items() if v != row["labels"][k]}, reasons))
    return found


def test_one_row_of_every_variant():
    """The sample for every day: the first row of each of ~150 variants, without those that wait for a time limit."""
    first = {row["variant"]: row for row in rows() if "timeout" not in row["variant"]}
    chosen = [row for row in first.values() if len(row["example"]["gt_answer"]) < 20 or "fallback" in row["variant"]]
    assert len(chosen) > 100
    assert disagreements(chosen) == []


@pytest.mark.slow
def test_all_rows():
    everything = rows()
    assert len(everything) >= 799
    assert disagreements(everything) == []
