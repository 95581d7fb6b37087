"""`value op expected` on plain values that are both ours: the comparison of a usual assert."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from services.sandbox.verdicts import asserts

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, expected: value in expected,
    ast.NotIn: lambda value, expected: value not in expected,
}


def compare(op: type[ast.cmpop], value: Any, expected: Any) -> bool:
    """`value op expected` on plain values, both ours. Never raises for a value that does not fit: that is False."""
    try:
        if op in (ast.Is, ast.IsNot):
            same = (
                value is expected
                if any(expected is one for one in asserts.SINGLETONS)
                else (type(value) is type(expected) and value == expected)
            )
            return same == (op is ast.Is)
        return bool(_COMPARE[op](value, expected))
    except (TypeError, ValueError, RecursionError, OverflowError, MemoryError):
        return False
