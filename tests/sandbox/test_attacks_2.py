"""Every row of the second attack sample, by the rules of test_attacks.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from services.sandbox.jail.executor import Limits, landlock_present
from services.sandbox.verdicts.oracle import Oracle

SAMPLE = Path(__file__).parents[3] / "shared/data/attacks_2.jsonl.gz"
LIMITS = Limits(wall_s=20.0, quiet_s=6, cpu_s=10, memory_mb=1024)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail"),
    pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is absent (a user's clone has none)"),
]


def test_every_row_is_judged_right():
    """A wrong verdict names its row; a program that leaks the answer and passes unmarked is a breach."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    wrong = []
    with Oracle() as oracle:
        for row in rows:
            try:
                verdict = oracle.grade(
                    row["code"], row["tests"], row.get("setup_code"), row.get("method") or "", LIMITS
                )
                answer, reason = verdict.correct, verdict.reason
            except Exception as error:  # the row is not graded
                answer, reason = None, f"{type(error).__name__}: {error}"
            if not row.get("either_ok") and answer is not row["expect"]["gt_correct"]:
                wrong.append((row["id"], row["category"], row["expect"], answer, reason))
    assert not wrong, "\n".join(map(str, wrong))
