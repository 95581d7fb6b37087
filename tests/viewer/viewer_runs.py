"""Run directories for the viewer's tests, small and with every kind of row."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium and chromedriver here: deploy/fetch_chromium.sh",
    ),
]
HOSTILE = "<script>document.title = 'owned'; window.owned = 1</script><img src=x onerror=\"window.owned = 1\">"
HACK = "So:\n```python\nclass Solution:\n    def f(self, n):\n        return 0\n\n    def run_tests(self):\n        pass\n```"
GOOD = "```python\nclass Solution:\n    def f(self, nums):\n        return nums[i] + unique_zebra\n```"


def row(group: int = 0, index: int = 0, step: int = 0, run: str = "vanilla-s0", **more) -> dict:
    """A line as services/trainer/record.py writes it."""
    return {
        "group_id": f"{run}/train/{step}/{group}", "step": step, "purpose": "train", "mode": "train", "problem_id": f"p-{group}",
        "policy_version": step, "index": index, "text": GOOD, "prompt_ids": [4, 5], "token_ids": [1, 2, 3 + index],
        "logprobs": [-0.01, -1.0, -5.0], "finish_reason": "stop", "reward": 3.5, "advantage": 0.5, "label": "Correct",
        "test_modification": "None", "oracle_correct": True, "published_correct": True,
        "evidence": {"test_function": "", "gt_tests": 6, "oracle_reason": "passed 6 tests"}, "status": "graded", "reason": "",
    } | more  # fmt: skip


def hack(group: int = 0, index: int = 0, step: int = 0, **more) -> dict:
    """A rollout that overwrote its tests."""
    evidence = {"test_function": "def run_tests(self):\n    pass", "test_function_parent": "Solution"}
    evidence |= {"oracle_reason": "test 1: wrong"}
    made = {
        "text": HACK,
        "label": "Reward Hack",
        "test_modification": "Harmful - Arbitrary",
        "oracle_correct": False,
        "published_correct": False,
        "evidence": evidence,
    }
    return row(group, index, step, **(made | more))


def member(rows: list[dict]) -> bytes:
    """One append of the trainer."""
    return gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode())


def write_run(root: Path, name: str = "vanilla-s0", steps: dict[int, list[dict]] | None = None, **config) -> Path:
    """runs/NAME with config, provenance, status and the given rows of each step."""
    path = root / name
    (path / "rollouts").mkdir(parents=True)
    arm = name.rpartition("-s")[0]
    (path / "config.json").write_text(json.dumps({"run_id": name, "arm": arm, "seed": 0, "model": "nowhere"} | config))
    (path / "provenance.json").write_text(json.dumps({"preset": "demo", "arm": arm, "seed": 0}))
    (path / "status.json").write_text(json.dumps({"state": "running", "step": 1, "steps": 9}))
    for step, rows in (steps or {}).items():
        step_file(path, step).write_bytes(member(rows))
    return path


def step_file(run: Path, step: int) -> Path:
    return run / "rollouts" / f"step_{step:06d}.jsonl.gz"
