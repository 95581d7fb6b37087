"""What a job of the published evaluation gets: setup code, program and tests, as one unit or apart.

    one unit    setup + program + tests, compiled together in the job, as in the original
    apart       setup run once per fork server where it only imports and defines, else compiled here and run in the job;
                tests compiled here; only the program is compiled in the job

Apart saves a fifth of a job's CPU time (2.3 ms for 2.9) and is chosen where it makes no difference to the program:
`for_job` says when.
"""

from __future__ import annotations

import ast
import marshal
from collections.abc import Sequence
from functools import cache, lru_cache
from types import CodeType
from typing import Any

from services.sandbox.verdicts import names

# The statements after the program, executed in the program's own namespace: every name assigned here may be one of the
# program's, and every builtin used here may have been replaced by it. Names and lookups are therefore part of the port.
_TESTS_HEAD = """# tests
import json
import sys
tests_evaluated = 0
tests_passed = 0
test_errors = []
failures_count = 0
"""
_TESTS_LOOP = """
for test_case in test_cases:
    try:
        tests_evaluated += 1
        exec(test_case)
        tests_passed += 1
    except AssertionError as e:
        exception_type = "AssertionError"
        test_errors.append(f"{exception_type}: {str(e)}")
        failures_count += 1
        break
    except (SyntaxError, IndentationError) as e:
        exception_type = type(e).__name__
        test_errors.append(f"{exception_type}: {str(e)}")
        failures_count += 1
        break
    except SystemExit as e:
        exception_type = "SystemExit"
        test_errors.append(f"{exception_type}: {str(e)}")
        failures_count += 1
        break
    except BaseException as e:
        exception_type = type(e).__name__
        test_errors.append(f"{exception_type}: {str(e)}")
        failures_count += 1
        break
result = {
    "tests_evaluated": tests_evaluated,
    "tests_passed": tests_passed,
    "tests_total": len(test_cases),
    "test_errors": test_errors,
}
print(json.dumps(result))
sys.stdout.flush()
"""


def whole_text(source: str, tests: Sequence[str], setup_code: str) -> str:
    """Setup, program and tests as the one unit that the original compiles."""
    statements = f"{_TESTS_HEAD}test_cases = {list(tests)!r}{_TESTS_LOOP}"
    return _newlines(f"{setup_code}\n\n{source}\n\n{statements}")


def for_job(source: str, tests: Sequence[str], setup_code: str) -> tuple[dict[str, Any], bytes]:
    """(names that published_job.py finds, setup code for the fork server to run once for all jobs, b"" for none).

    One unit where the program could see that something stands before or after it: see `_own_unit`; a `global` at module
    level; a first line that is indented or continues a block.
    """
    given: dict[str, Any] = dict.fromkeys(("setup", "prepared", "harness", "tests"))
    apart = _own_unit(setup_code)
    if apart is None or "global" in source or source[:1].isspace():
        return {**given, "source": whole_text(source, tests, setup_code)}, b""
    setup, before = apart
    given["source"] = _newlines(f"{before}\n\n{source}\n\n# tests\npass\n")
    given |= {"harness": _harness(), "tests": list(tests)}
    if names.only_defines(_newlines(setup_code)):
        return given, marshal.dumps(setup)
    return {**given, "setup": setup}, b""


def _newlines(text: str) -> str:
    # The original hands the text over through a text-mode pipe, which translates newlines.
    return text.replace("\r\n", "\n").replace("\r", "\n")


@lru_cache(maxsize=64)
def _own_unit(setup_code: str) -> tuple[CodeType, str] | None:
    """Setup code compiled by itself, and what has to stand before the program in its place (`pass`, so that the
    program's first line is no docstring and no future import); None where it is not the same as one unit.

    The same needs: it compiles, has no future import, and its last statement is not one that an `else`, `elif`,
    `except` or `finally` could continue. Empty setup code is the same; mere constants (a docstring) are not.
    """
    try:
        body = ast.parse(_newlines(setup_code)).body
        code = compile(_newlines(setup_code), "<string>", "exec", dont_inherit=True)
    except Exception:  # whatever is wrong with it shows in the job, as in the original
        return None
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in body)
    open_end = bool(body) and isinstance(body[-1], ast.If | ast.For | ast.While | ast.Try | ast.TryStar)
    constants = bool(body) and all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
    return None if future or open_end or constants else (code, "pass" if body else "")


@cache
def _harness() -> CodeType:
    return compile(_TESTS_HEAD + _TESTS_LOOP, "<string>", "exec", dont_inherit=True)
