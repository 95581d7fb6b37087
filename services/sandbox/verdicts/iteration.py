"""What of a test's own values a hole needs, so that the rest of them stays on our side.

    [f(a) for a, b in [(1, 17), (3, 23)]]   ->   [f(a) for a, in [(1,), (3,)]]      b is an expected value
    for a, b in [(1, 17)]: assert f(a) == b     ->   assert all([f(a) == b for a, b in [(1, 17)]])
    want: int = 17; x, y = 1, 2; want = 23  ->   want = 17; x = 1; y = 2; want_2 = 23     kept or sent one by one
    list(map(f, [1, 3])) == [17, 23]        ->   list((f(_1) for _1 in [1, 3])) == [17, 23]     a function stays in the job

Covers: literal lists of rows, zip and enumerate of literals, items() of a literal dict. Anything else is left as it is
and the test is marked weak.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeGuard, cast

_CONTAINERS = (list, tuple, set, frozenset, dict, str, bytes)


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def without_unused(
    generators: list[ast.comprehension], hole: ast.expr, read: set[str]
) -> list[ast.comprehension] | None:
    """The same iteration with only what `hole` needs, over values worked out here; `read`: the names that the trusted
    side uses too. None where that cannot be done."""
    if len(generators) != 1 or generators[0].ifs or generators[0].is_async:
        return None
    target, iterable, used = generators[0].target, generators[0].iter, names_in(hole)
    if isinstance(target, ast.Tuple):
        rows, targets = _rows(iterable), [part for part in target.elts if isinstance(part, ast.Name)]
        if rows is None or len(targets) != len(target.elts) or any(len(row) != len(targets) for row in rows):
            return None
        places = [i for i, name in enumerate(targets) if name.id in used]
        found = [_needed([row[i] for row in rows], targets[i].id, hole, read) for i in places]
        columns = [column for column in found if column is not None]
        if len(columns) != len(found):
            return None
        kept = [[column[at] for column in columns] for at in range(len(rows))]
        values: list[ast.expr] = [ast.Tuple([_literal(value) for value in row], ast.Load()) for row in kept]
        names = ast.Tuple([ast.Name(targets[i].id, ast.Store()) for i in places], ast.Store())
        return [ast.comprehension(names, ast.List(values, ast.Load()), [], 0)]
    if not isinstance(target, ast.Name):
        return None
    try:
        items = ast.literal_eval(iterable)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        is_range = (
            isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) and iterable.func.id == "range"
        )
        return generators if is_range else None
    if not isinstance(items, _CONTAINERS):
        return None
    needed = _needed(list(items), target.id, hole, read) if target.id in used else [None] * len(items)
    if needed is None:
        return None
    if needed == list(items):
        return generators if not isinstance(items, dict) else None  # a dict's values are no part of its iteration
    if isinstance(items, (set, frozenset)):
        return None  # another process may iterate over it in another order
    return [ast.comprehension(target, ast.List([_literal(value) for value in needed], ast.Load()), [], 0)]


def _needed(values: list[Any], name: str, hole: ast.expr, read: set[str]) -> list[Any] | None:
    """The values of `name` with None for the parts that the hole's call does not take; None where that is unclear.

    A value that holds others (a string its characters) may pair an input with its answer: f(r[0]) == r[1]."""
    if name not in read or not any(isinstance(value, _CONTAINERS) for value in values):
        return values
    places = _places(name, hole)
    if places is None or None in places:
        return values if places else None
    masked: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            keep = {place % len(value) for place in places if isinstance(place, int) and value}
            masked.append(type(value)(part if at in keep else None for at, part in enumerate(value)))
        elif isinstance(value, dict):
            masked.append({key: part for key, part in value.items() if key in places})
        else:
            return None
    return masked


def _places(name: str, hole: ast.expr) -> list[Any] | None:
    """What the hole's call takes of `name` as arguments: constant subscripts, or None in it for the whole. None: unclear."""
    if not isinstance(hole, ast.Call):
        return None
    places: list[Any] = []
    for argument in [*hole.args, *(keyword.value for keyword in hole.keywords)]:
        part = argument.value if isinstance(argument, ast.Starred) else argument
        if isinstance(part, ast.Name) and part.id == name:
            places.append(None)
        elif isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id == name:
            try:
                place = ast.literal_eval(part.slice)
            except (ValueError, TypeError, SyntaxError):
                return None
            if not isinstance(place, (int, str)):
                return None
            places.append(place)
    uses = sum(isinstance(part, ast.Name) and part.id == name for part in ast.walk(hole))
    return places if uses == len(places) else None


def _rows(iterable: ast.expr) -> list[tuple[Any, ...]] | None:
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


class Maps(ast.NodeTransformer):
    """`map(f, X)` as `(f(x) for x in X)`, where `f` is a name or an attribute of the program's and X is ours: what `f` is
    cannot be sent, what it returns can. ours(node): whether a node's value is known without the program."""

    def __init__(self, ours: Callable[[ast.AST], bool]) -> None:
        self.ours, self.made = ours, 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "map" and self.ours(node.func) and node.args[1:]):
            return node
        function, values = node.args[0], node.args[1:]
        theirs = isinstance(function, (ast.Name, ast.Attribute)) and not self.ours(function)
        if node.keywords or not theirs or any(isinstance(v, ast.Starred) or not self.ours(v) for v in values):
            return node
        names = [f"_map_{self.made + number}" for number in range(len(values))]
        self.made += len(names)
        targets: list[ast.expr] = [ast.Name(name, ast.Store()) for name in names]
        rows = values[0] if len(values) == 1 else ast.Call(ast.Name("zip", ast.Load()), values, [])
        target = targets[0] if len(values) == 1 else ast.Tuple(targets, ast.Store())
        call = ast.Call(function, [ast.Name(name, ast.Load()) for name in names], [])
        made = ast.GeneratorExp(call, [ast.comprehension(target, rows, [], 0)])
        return ast.fix_missing_locations(ast.copy_location(made, node))


class LoopAssert(ast.Assert):
    """An assert that was a loop: sound with one hole, whose calls come in the loop's order."""


def loops_as_asserts(body: list[ast.stmt]) -> list[ast.stmt]:
    """`for a, b in ...: assert f(a) == b` as `assert all([f(a) == b for a, b in ...])`, where that means the same."""
    loops = [loop for loop in body if isinstance(loop, ast.For)]
    elsewhere = set().union(*(names_in(part) for part in body if part not in loops))
    return [_loop_assert(part, elsewhere) or part if part in loops else part for part in body]


def _loop_assert(loop: ast.For, elsewhere: set[str]) -> LoopAssert | None:
    """None where the loop does more than assert, or leaves names behind that others read. An assignment whose name is
    read once is put where it is read."""
    *before, last = loop.body
    if loop.orelse or not isinstance(last, ast.Assert):
        return None
    test, bound = last.test, names_in(loop.target)
    for statement in reversed(before):
        if not _binds_name(statement):
            return None
        name, uses = _bound(statement).id, [part.id for part in ast.walk(test) if isinstance(part, ast.Name)]
        if uses.count(name) != 1 or any(
            name in names_in(other.value) for other in before if isinstance(other, ast.Assign)
        ):
            return None
        test, bound = _Put(name, statement.value).visit(test), bound | {name}
    if bound & elsewhere or any(isinstance(part, ast.NamedExpr) for part in ast.walk(loop)):
        return None
    every = ast.ListComp(test, [ast.comprehension(loop.target, loop.iter, [], 0)])
    call = ast.Call(ast.Name("all", ast.Load()), [every], [])
    return ast.fix_missing_locations(ast.copy_location(LoopAssert(call, None), loop))


class _Put(ast.NodeTransformer):
    def __init__(self, name: str, value: ast.expr) -> None:
        self.name, self.value = name, value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.value if node.id == self.name else node


def _bound(node: ast.Assign) -> ast.Name:
    return cast(ast.Name, node.targets[0])


def _binds_name(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)


def single_assignments(body: list[ast.stmt]) -> list[ast.stmt]:
    """Straight-line code with annotated and tuple assignments as plain ones, and each literal that is assigned to one
    name in turn under a name of its own. Values are untouched; anything less plain is left as it is."""
    plain = [part for statement in body for part in _plain(statement)]
    stores = Counter(
        part.id for node in plain for part in ast.walk(node) if isinstance(part, ast.Name) and _is_store(part)
    )
    literal = Counter(_bound(node).id for node in plain if _binds_literal(node))
    again = {name for name, count in literal.items() if count > 1 and stores[name] == count}
    version, renamed = Counter[str](), []
    for statement in plain:
        names = {name: f"{name}_{number}" for name, number in version.items() if number > 1}
        if _binds_literal(statement) and _bound(statement).id in again:
            name = _bound(statement).id
            version[name] += 1
            if version[name] > 1:
                _bound(statement).id = f"{name}_{version[name]}"
        else:
            for part in ast.walk(statement):
                if isinstance(part, ast.Name):
                    part.id = names.get(part.id, part.id)
        renamed.append(statement)
    return renamed


def _is_store(name: ast.Name) -> bool:
    return not isinstance(name.ctx, ast.Load)


def _binds_literal(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return _binds_name(node) and not names_in(node.value)


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
