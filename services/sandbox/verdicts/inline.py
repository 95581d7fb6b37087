"""Values of a test written where they are read, so that each goes to the side that needs it.

    x = [1, 17]; assert f(x[0]) - x[1] == 0          ->  assert f(1) - 17 == 0
    cases = [(1, 17)]; for a, b in cases: ...        ->  for a, b in [(1, 17)]: ...
    near = abs(f(1) - 17) < 1e-6; assert near        ->  assert abs(f(1) - 17) < 1e-6

Only where it cannot matter: literals that are bound once and cannot change, or are read once; results that the next
statement reads, once. Everything else is left as it is.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from dataclasses import dataclass
from typing import cast

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def literals(body: list[ast.stmt]) -> list[ast.stmt]:
    """Literals that are bound once, in place of the names that are bound to them."""
    if any(isinstance(part, (*_FUNCTIONS, ast.Global)) for statement in body for part in ast.walk(statement)):
        return body
    for name, value in _bound_once(body).items():
        uses = [use for statement in body for use in _uses(statement, name)]
        places = _places(uses, value) if uses else None
        if places is not None:
            body = [cast(ast.stmt, _Replace(places).visit(part)) for part in body if not _binds(part, name)]
    return body


def results(body: list[ast.stmt], trusted: frozenset[str]) -> list[ast.stmt]:
    """A value that only the next statement reads, an assert that asks the program nothing else, in its place there."""
    done: list[ast.stmt] = []
    counts = Counter(part.id for node in body for part in ast.walk(node) if isinstance(part, ast.Name))
    for statement in body:
        last = done[-1] if done else None
        if isinstance(statement, ast.Assert) and isinstance(last, ast.Assign) and _binds(last, None):
            name = _bound(last)
            uses = _uses(statement, name)
            others = {part.id for part in ast.walk(statement.test) if isinstance(part, ast.Name)} - {name}
            if counts[name] == 2 and len(uses) == 1 and not uses[0].repeated and others <= trusted:
                done.pop()
                statement = cast(ast.stmt, _Replace({id(uses[0].node): last.value}).visit(statement))
        done.append(statement)
    return done


@dataclass(frozen=True)
class _Use:
    """A place where a name is read: the nodes around it, nearest first, and whether it may be read again there."""

    node: ast.Name
    around: tuple[ast.AST, ...]
    repeated: bool


def _uses(root: ast.AST, name: str) -> list[_Use]:
    found: list[_Use] = []
    todo: list[tuple[ast.AST, tuple[ast.AST, ...], bool]] = [(root, (), False)]
    while todo:
        node, around, repeated = todo.pop()
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            found.append(_Use(node, around, repeated))
        once: list[ast.AST] = []
        if isinstance(node, _COMPREHENSIONS):
            once = [node.generators[0].iter]
            todo.append((once[0], (node.generators[0], node, *around), repeated))
        elif isinstance(node, ast.For):
            once = [node.iter]
            todo.append((node.iter, (node, *around), repeated))
        again = repeated or isinstance(node, (*_COMPREHENSIONS, ast.Lambda, ast.While, ast.For, ast.comprehension))
        for child in ast.iter_child_nodes(node):
            if child not in once and not _is_first_iterable(child, node, around):
                todo.append((child, (node, *around), again))
    return found


def _is_first_iterable(child: ast.AST, node: ast.AST, around: tuple[ast.AST, ...]) -> bool:
    return (
        isinstance(node, ast.comprehension)
        and child is node.iter
        and node is cast(ast.ListComp, around[0]).generators[0]
    )


def _bound_once(body: list[ast.stmt]) -> dict[str, ast.expr]:
    stores = Counter(
        part.id
        for node in body
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load)
    )
    arguments = {part.arg for node in body for part in ast.walk(node) if isinstance(part, ast.arg)}
    plain = [node for node in body if isinstance(node, ast.Assign) and _binds(node, None)]
    once = [node for node in plain if stores[_bound(node)] == 1 and _bound(node) not in arguments]
    return {_bound(node): node.value for node in once if _value(node.value) is not _NONE}


def _bound(node: ast.Assign) -> str:
    return cast(ast.Name, node.targets[0]).id


def _binds(node: ast.stmt, name: str | None) -> bool:
    """Whether it is `name = ...`; of any name when None."""
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
        return False
    return name is None or node.targets[0].id == name


_NONE = object()
_SCALAR = (type(None), bool, int, float, complex, str, bytes, type(...))


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NONE


def _places(uses: list[_Use], value: ast.expr) -> dict[int, ast.expr] | None:
    """id of the node to replace -> what to put there, for each use; None where the name has to stay."""
    found = [_element(use, value) for use in uses]
    for use, (_, part, path) in zip(uses, found, strict=True):
        if isinstance(_value(part), _SCALAR):
            continue
        others = [other for _, _, other in found if other is not path]
        if use.repeated or any(other[: len(path)] == path or path[: len(other)] == other for other in others):
            return None  # it can change, and somebody else would see that
    return {id(node): part for node, part, _ in found}


def _element(use: _Use, value: ast.expr) -> tuple[ast.AST, ast.expr, list[object]]:
    """x[1][0] as far as the literal goes: (the node that stands for it, its literal, [1, 0])."""
    node: ast.AST = use.node
    path: list[object] = []
    for outer in use.around:
        if not (isinstance(outer, ast.Subscript) and outer.value is node and isinstance(outer.ctx, ast.Load)):
            break
        index = _value(outer.slice)
        inside = _inside(value, index)
        if inside is None:
            break
        node, value = outer, inside
        path.append(index)
    return node, value, path


def _inside(value: ast.expr, index: object) -> ast.expr | None:
    if isinstance(value, (ast.List, ast.Tuple)) and type(index) is int and -len(value.elts) <= index < len(value.elts):
        return value.elts[index]
    if isinstance(value, ast.Dict) and isinstance(index, (str, int)):
        matches = [part for key, part in zip(value.keys, value.values, strict=True) if key and _value(key) == index]
        return matches[0] if len(matches) == 1 else None
    return None


class _Replace(ast.NodeTransformer):
    def __init__(self, places: dict[int, ast.expr]) -> None:
        self.places = places

    def visit(self, node: ast.AST) -> ast.AST:
        new = self.places.get(id(node))
        return copy.deepcopy(new) if new is not None else self.generic_visit(node)
