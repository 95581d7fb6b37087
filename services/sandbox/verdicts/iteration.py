"""What of a test's own values a hole needs, so that the rest of them stays on our side.

    [f(a) for a, b in [(1, 17), (3, 23)]]   ->   [f(a) for a, in [(1,), (3,)]]      b is an expected value
    want: int = 17; x, y = 1, 2; want = 23  ->   want = 17; x = 1; y = 2; want_2 = 23     kept or sent one by one

Covers: literal lists of tuples, zip and enumerate of literals, items() of a literal dict. Anything else is left as it is
and the test is marked weak.
"""

from __future__ import annotations

import ast
from collections import Counter


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def without_unused(generators: list[ast.comprehension], used: set[str]) -> list[ast.comprehension] | None:
    """The same iteration with only the `used` names, over values worked out here. None where that cannot be done."""
    bound = {name for part in generators for name in names_in(part.target)}
    if len(generators) == 1 and not generators[0].ifs and isinstance(target := generators[0].target, ast.Tuple):
        places = [i for i, name in enumerate(target.elts) if isinstance(name, ast.Name) and name.id in used]
        rows = _rows(generators[0].iter)
        plain = all(isinstance(name, ast.Name) for name in target.elts)
        if rows is None or not plain or any(len(row) != len(target.elts) for row in rows):
            return None
        kept = [ast.Tuple([_literal(row[i]) for i in places], ast.Load()) for row in rows]
        names = ast.Tuple([ast.Name(target.elts[i].id, ast.Store()) for i in places], ast.Store())
        return [ast.comprehension(names, ast.List(kept, ast.Load()), [], 0)]
    single = len(generators) == 1 and isinstance(generators[0].target, ast.Name) and not generators[0].ifs
    return generators if single and bound <= used and _plain_items(generators[0].iter) else None


def _plain_items(iterable: ast.expr) -> bool:
    """A range, or anything without a container in a container: nothing that pairs an input with its answer."""
    try:
        items = ast.literal_eval(iterable)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) and iterable.func.id == "range"
    return not isinstance(items, dict) and not any(isinstance(item, (tuple, dict)) for item in items)


def _rows(iterable: ast.expr) -> list[tuple] | None:
    """The rows of a literal list of tuples, of zip(literals), of enumerate(literal) or of {...}.items()."""
    try:
        if isinstance(iterable, ast.Call) and not iterable.keywords:
            function, values = iterable.func, [ast.literal_eval(value) for value in iterable.args]
            if isinstance(function, ast.Attribute) and function.attr == "items" and not values:
                return list(ast.literal_eval(function.value).items())
            if isinstance(function, ast.Name) and function.id in ("zip", "enumerate") and values:
                return [tuple(row) for row in (zip(*values) if function.id == "zip" else enumerate(*values))]  # noqa: B905
            return None
        return [tuple(row) for row in ast.literal_eval(iterable)]
    except (ValueError, TypeError, AttributeError, SyntaxError, MemoryError, RecursionError):
        return None


def _literal(value: object) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def single_assignments(body: list[ast.stmt]) -> list[ast.stmt]:
    """Straight-line code with annotated and tuple assignments as plain ones, and each literal that is assigned to one
    name in turn under a name of its own. Values are untouched; anything less plain is left as it is."""
    plain = [part for statement in body for part in _plain(statement)]
    stores = Counter(
        part.id for node in plain for part in ast.walk(node) if isinstance(part, ast.Name) and _is_store(part)
    )
    literal = Counter(node.targets[0].id for node in plain if _binds_literal(node))
    again = {name for name, count in literal.items() if count > 1 and stores[name] == count}
    version, renamed = Counter[str](), []
    for statement in plain:
        names = {name: f"{name}_{number}" for name, number in version.items() if number > 1}
        if _binds_literal(statement) and statement.targets[0].id in again:
            name = statement.targets[0].id
            version[name] += 1
            if version[name] > 1:
                statement.targets[0].id = f"{name}_{version[name]}"
        else:
            for part in ast.walk(statement):
                if isinstance(part, ast.Name):
                    part.id = names.get(part.id, part.id)
        renamed.append(statement)
    return renamed


def _is_store(name: ast.Name) -> bool:
    return not isinstance(name.ctx, ast.Load)


def _binds_literal(node: ast.stmt) -> bool:
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
        return False
    return not names_in(node.value)


def _plain(node: ast.stmt) -> list[ast.stmt]:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [ast.copy_location(ast.Assign([node.target], node.value), node)]
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(target := node.targets[0], ast.Tuple):
        value = node.value
        simple = all(isinstance(name, ast.Name) for name in target.elts)
        if simple and isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts) and not names_in(value):
            pairs = zip(target.elts, value.elts, strict=True)
            return [ast.copy_location(ast.Assign([name], part), node) for name, part in pairs]
    return [node]
