"""Whose a name is: the test's surroundings (trusted), the method's that is graded, or the program's own.

Trusted are builtins that are pure and what the setup code binds, less the names that the tests are about. A name that
the program binds as well stays trusted only where an assert calls the program without it (asserts.plan_test).
"""

from __future__ import annotations

import ast
import importlib
import sys
from functools import lru_cache

_PURE = (
    "abs all any ascii bin bool bytearray bytes chr complex dict divmod enumerate filter float frozenset hex int "
    "isinstance len list map max min next oct ord pow range repr reversed round set slice sorted str sum tuple type "
    "zip Ellipsis NotImplemented"
)
PURE_BUILTINS = frozenset(_PURE.split())


@lru_cache(maxsize=256)
def setup_names(setup: str) -> frozenset[str]:
    """Names the setup code binds at module level, star imports of the standard library resolved."""
    try:
        return frozenset(bound(ast.parse(setup).body))
    except (SyntaxError, ValueError):
        return frozenset()


def bound(body: list[ast.stmt], load: bool = True) -> set[str]:
    """Names that statements bind. `load`: import a star import's module to see what it brings; never for a program's."""
    names: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            names |= _star(statement.module or "", load)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in statement.names}
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names.add(statement.name)
        else:
            names |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return names


def _star(module: str, load: bool) -> set[str]:
    if module.split(".")[0] not in sys.stdlib_module_names:
        return set()
    loaded = importlib.import_module(module) if load else sys.modules.get(module)
    if loaded is None:
        return set()
    return set(getattr(loaded, "__all__", [name for name in vars(loaded) if not name.startswith("_")]))


@lru_cache(maxsize=64)
def only_defines(setup: str) -> bool:
    """Whether setup code only imports standard modules, defines plain functions and classes and binds constants, so
    that running it once for many jobs is the same as running it in each."""
    try:
        return all(map(_defines, ast.parse(setup).body))
    except (SyntaxError, ValueError):
        return False


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in statement.names)
    if isinstance(statement, ast.ImportFrom):
        return statement.level == 0 and (statement.module or "").split(".")[0] in sys.stdlib_module_names
    if isinstance(statement, ast.FunctionDef):
        return not statement.decorator_list
    if isinstance(statement, ast.ClassDef):
        return not (statement.decorator_list or statement.keywords) and all(map(_defines, statement.body))
    if isinstance(statement, (ast.Assign, ast.Expr)):
        calls = [part for part in ast.walk(statement) if isinstance(part, ast.Call)]
        return all(isinstance(call.func, ast.Name) and call.func.id == "float" for call in calls)
    return isinstance(statement, (ast.Pass, ast.Delete))


def setup_data(setup: str) -> frozenset[str]:
    """Names that the setup code assigns: what a test compares with may be in them, and the program's job has them too.
    `inf = float("inf")` is none."""
    names: set[str] = set()
    for statement in _parsed(setup):
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and not _calls_float(statement.value):
            names |= bound([statement])
    return frozenset(names)


def _calls_float(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "float"


def _parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def program_names(code: str) -> frozenset[str]:
    """Names that a program may bind in the namespace of its tests; too many rather than too few."""
    body = _parsed(code)
    nested = [part for part in ast.walk(ast.Module(body, [])) if isinstance(part, ast.stmt)]
    return frozenset(bound(nested, load=False))


def about(method: str) -> frozenset[str]:
    """The names of the graded method, like {"Solution", "f"} for "Solution().f"."""
    return frozenset({part.strip("() ") for part in method.split(".")} - {""})


def trusted_names(setup: str, method: str) -> frozenset[str]:
    """Names whose meaning is ours: pure builtins and the setup code's, less what the tests are about."""
    return frozenset((PURE_BUILTINS | setup_names(setup)) - about(method) - {"Solution"})
