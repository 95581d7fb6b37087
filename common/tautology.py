"""Conditions that hold whatever the program does: `assert (f(1) == 2, "msg")` is a tuple, and a tuple is true.

Read from the text alone, for whoever checks problems before a run and for whoever grades with them. Covers: displays with
something in them, lambdas, generator expressions, true constants, and an `or` with one of these. Does not cover: what a
computation makes true (`f(1) * 0 == 0`).
"""

from __future__ import annotations

import ast


def always_true(node: ast.AST) -> bool:
    """Whether an expression is true whatever the names in it stand for, provided that it does not raise."""
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return any(not isinstance(part, ast.Starred) for part in parts)
        case ast.Dict(keys=keys):
            return any(key is not None for key in keys)
        case ast.Constant(value=value):
            return bool(value)
        case ast.JoinedStr(values=values):
            return any(isinstance(part, ast.Constant) and bool(part.value) for part in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(map(always_true, values))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(map(always_true, values))
        case ast.NamedExpr(value=value):
            return always_true(value)
        case ast.IfExp(body=body, orelse=orelse):
            return always_true(body) and always_true(orelse)
    return isinstance(node, ast.Lambda | ast.GeneratorExp)
