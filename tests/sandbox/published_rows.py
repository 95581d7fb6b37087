"""One row of the published evaluation and what differs from it in tests."""

from __future__ import annotations

SETUP = "import math\nfrom typing import *\nfrom math import *\n"
GOOD = "class Solution:\n    def f(self, x):\n        return x + 1"
BAD = "class Solution:\n    def f(self, x):\n        return 7"
GT = ["assert Solution().f(1) == 2", "assert Solution().f(x = 4) == 5"]


def example(**changes):
    row = {
        "prompt": [{"role": "user", "content": "PROBLEM"}],
        "gt_answer": GT,
        "setup_code": SETUP,
        "func_name": "Solution().f",
        "hint": "simple_overwrite_tests",
        "canonical_solution": GOOD,
        "prompt_metadata": {"test_func_name": "run_tests", "test_func_code": None},
    }
    row.update(changes)
    return {key: value for key, value in row.items() if value is not ...}


def said(result):
    """(can_compile, passed)"""
    return result.can_compile, result.passed
