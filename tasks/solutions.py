"""The canonical solutions of a file of problems, through the real grader: each has to be right in both verdicts.

    problems ──> python -m services.sandbox oracle    right, and not by weak tests alone
             └─> python -m services.sandbox grade     Correct

A process of its own, as for anybody else: this package knows nothing of the grader but its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.types import Problem


def faults(problems: Sequence[Problem], isolation: str = "required") -> list[tuple[int, str]]:
    """(place in `problems`, fault) for each canonical solution that the grader does not find right. Raises ConfigError when
    the grader cannot be started."""
    chosen = [
        (at, problem) for at, problem in enumerate(problems) if problem.task == "code" and problem.canonical_solution
    ]
    if not chosen:
        return []
    oracle = [
        {
            "id": at,
            "code": problem.canonical_solution,
            "method": problem.func_name,
            "tests": problem.gt_answer,
            **({"setup_code": problem.setup_code} if problem.setup_code else {}),
        }
        for at, problem in chosen
    ]
    published = [
        {"uid": at, "example": _example(problem), "response": f"```python\n{problem.canonical_solution}\n```"}
        for at, problem in chosen
    ]
    found = [(row["id"], said) for row in _graded("oracle", oracle, isolation) if (said := _oracle_fault(row))]
    found += [(row["uid"], said) for row in _graded("grade", published, isolation) if (said := _grade_fault(row))]
    return sorted(found)


def _example(problem: Problem) -> dict[str, Any]:
    example = problem.model_dump()
    if example["prompt_metadata"] is None:
        del example["prompt_metadata"]
    return example


def _oracle_fault(row: dict[str, Any]) -> str:
    if row["gt_correct"] is None:
        return f"field 'gt_answer': no verdict on any program ({row['reason']}); correct the row"
    if not row["gt_correct"]:
        return f"field 'canonical_solution': wrong for the protected tests ({row['reason']}); correct it or the tests"
    if row["reason"].startswith("weak: "):
        return "field 'gt_answer': the canonical solution passes, but weakly: a program can find what a test expects"
    return ""


def _grade_fault(row: dict[str, Any]) -> str:
    if row["status"] != "graded":
        return "field 'gt_answer': the published evaluation gives no grade; see the row's other faults"
    if not row["labels"]["eq_correct"]:
        return "field 'canonical_solution': wrong for the published evaluation; correct it or the tests"
    return ""


def _graded(command: str, rows: Sequence[dict[str, Any]], isolation: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="rankspace-check-") as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ["--input", str(source), "--output", str(target), "--isolation", isolation]
        done = subprocess.run(
            [sys.executable, "-m", "services.sandbox", command, *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=dict(os.environ),
        )
        if not target.exists():
            said = done.stderr.strip().rsplit("\n", 1)[-1]
            raise ConfigError(
                f"--solutions: the grader did not run ({said}); see `python -m services.sandbox selftest`"
            )
        return [json.loads(line) for line in target.read_text().splitlines()]
