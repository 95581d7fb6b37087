"""Splitting a test in two: what the submission computes, and what the trusted side does with it.

    assert abs(Solution().mean(nums=[1, 2]) - 1.5) <= 1e-5
               └──────── hole 0 ──────────┘                     evaluated in the job, returned as a plain value
           abs(            _hole[0]         - 1.5) <= 1e-5      evaluated by us, on that value

A *hole* is the innermost call of something that the submission defines; methods, subscripts and operators on its
result stay on our side, so that a result cannot bring its own `==`, `__bool__` or `.count`. Names we trust: builtins
that are pure, what the setup code defines or imports, what the test imports. A comprehension over trusted values whose
element has a hole becomes one hole that returns the list of all elements.

Straight-line tests (`x = Solution(); x.push(1); assert x.pop() == 1`) are split statement by statement. What is left
(a loop, a function or a try around an assert, a lambda around the call, the function itself as an argument) is `weak`: it
has to run whole beside the submission. Also marked weak, though graded on our side: `is` against anything but None, True,
False, ..., and an assert with no trusted expected value in it (`f(1) == g(1)`).

Covers: single expressions and straight-line code. Does not cover: short-circuits (every hole of a test is evaluated).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import cast

from common.tautology import always_true
from services.sandbox.verdicts import exposure, inline, iteration
from services.sandbox.verdicts.names import bound

SINGLETONS = (None, True, False, ...)
_SCOPES = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_UNSPLITTABLE = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
HOLE, EACH = "_hole", "_each"
_TAKES_FUNCTION = dict.fromkeys(("map", "filter", "reduce", "starmap", "takewhile", "dropwhile", "filterfalse"), 0) | {
    "accumulate": 1,
    "isinstance": 1,
    "issubclass": 1,
}  # name -> which argument is one


class Unsplittable(Exception):
    """The test has no split; it can only be run whole (weak)."""


@dataclass(frozen=True)
class Check:
    """One assert. `residual` is an expression over `_hole[0..holes-1]`; `imports` are statements it needs first.

    When it is `_hole[0] OP pure`, op and expected say so, and the supervisor compares without running `residual`.
    """

    holes: int
    residual: ast.expr
    imports: tuple[ast.stmt, ...]
    op: type[ast.cmpop] | None = None
    expected: ast.expr | None = None
    weak: bool = False
    asks: bool = True  # its value depends on the program


@dataclass(frozen=True)
class TestPlan:
    """steps run in the job in order: ('exec', statement) or ('eval', hole). checks consume the holes in order."""

    steps: tuple[tuple[str, ast.stmt | ast.expr], ...]
    checks: tuple[Check, ...]
    weak: bool


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


class _Lift:
    """Takes the holes out of one assert."""

    def __init__(self, trusted: frozenset[str], about: frozenset[str] = frozenset()) -> None:
        self.trusted, self.about = trusted, about
        self.holes: list[ast.expr] = []
        self.exposed = False  # a hole carries values that its call does not need: perhaps the expected ones

    def pure(self, node: ast.AST, bound: frozenset[str] = frozenset()) -> bool:
        names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
        local = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        local |= {name.id for name in names if not isinstance(name.ctx, ast.Load)}
        loads = {name.id for name in names if isinstance(name.ctx, ast.Load)}
        return loads <= self.trusted | bound | local | {HOLE, EACH}

    def lift(self, node: ast.AST, bound: frozenset[str] = frozenset()) -> ast.AST:
        if self.pure(node, bound):
            return node
        if isinstance(node, (ast.Lambda, *_UNSPLITTABLE)):
            raise Unsplittable(type(node).__name__)
        if any(isinstance(part, (ast.Name, ast.Attribute)) and not self.pure(part, bound) for part in _called(node)):
            raise Unsplittable("a function of the program that a trusted one calls")
        if isinstance(node, _SCOPES):
            return self._comprehension(node, bound)
        if isinstance(node, (ast.Name, ast.Call, ast.Attribute)) and self._is_base(node):
            return self._hole(node, bound)
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                setattr(node, name, self.lift(value, bound))
            elif isinstance(value, list):
                setattr(node, name, [self.lift(v, bound) if isinstance(v, ast.AST) else v for v in value])
        return node

    def _is_base(self, node: ast.expr) -> bool:
        """The innermost thing that yields a value of the submission: x, x.a, f(), x.m(), X().m(), X().a."""
        if isinstance(node, ast.Name):
            return True
        inner = node.func if isinstance(node, ast.Call) else node
        if isinstance(inner, ast.Name):
            return inner.id not in self.trusted
        if not isinstance(inner, ast.Attribute):
            return isinstance(node, ast.Call) and not self.pure(inner)  # f(1)(2), table[0](2)
        owner = inner.value
        if isinstance(owner, ast.Name):
            return owner.id not in self.trusted
        if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id not in self.trusted:
            return owner.func.id[:1].isupper()  # an instance, not a result
        return (
            isinstance(owner, ast.Attribute)
            and self._is_base(owner)
            and isinstance(node, ast.Call)
            and isinstance(owner.value, ast.Name)
        )

    def _hole(self, node: ast.expr, bound: frozenset[str]) -> ast.expr:
        if _names(node) & bound:
            raise Unsplittable("a call that depends on a bound variable")
        if (node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")) in self.about:
            raise Unsplittable("the function itself is handed over, which no value stands for")
        self.holes.append(node)
        return _subscript(len(self.holes) - 1)

    def _comprehension(self, node: Comprehension, bound: frozenset[str]) -> ast.expr:
        targets = frozenset(name for part in node.generators for name in _names(part.target))
        first = node.generators[0]
        if not self.pure(first.iter, bound) and len(node.generators) == 1 and not bound:
            first.iter = cast(ast.expr, self.lift(first.iter))  # the submission's value is what is iterated over
            if all(self.pure(part, targets) for part in ast.iter_child_nodes(node)):
                return node
            raise Unsplittable("holes in a comprehension over a hole")
        if bound or not all(self.pure(part, targets) for part in node.generators):
            raise Unsplittable("nested comprehensions over the submission")
        inner = _Lift(self.trusted | targets, self.about)
        parts = ("key", "value") if isinstance(node, ast.DictComp) else ("elt",)
        for name in parts:
            element = inner.lift(getattr(node, name))
            setattr(node, name, _Next(len(self.holes)).visit(element))
        read = {name for part in parts for name in _names(getattr(node, part))}
        self.exposed = self.exposed or inner.exposed
        for hole in inner.holes:
            generators = iteration.without_unused(node.generators, hole, read)
            self.exposed = self.exposed or generators is None
            self.holes.append(ast.ListComp(hole, generators or node.generators))
        return node


class _Next(ast.NodeTransformer):
    """In a comprehension's element, hole i of the element becomes 'the next one of the list in hole `base` + i'."""

    def __init__(self, base: int) -> None:
        self.base = base

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if _is_hole(node):
            at = self.base + ast.literal_eval(node.slice)
            return ast.parse(f"next({EACH}[{at}])", mode="eval").body
        self.generic_visit(node)
        return node


def _called(node: ast.AST) -> list[ast.expr]:
    """The arguments of a call that are functions or classes, by what usual functions take."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Name, ast.Attribute)):
        return []
    at = _TAKES_FUNCTION.get(node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
    keys = [keyword.value for keyword in node.keywords if keyword.arg == "key"]
    return keys + (node.args[at : at + 1] if at is not None else [])


def _subscript(index: int) -> ast.expr:
    return ast.Subscript(ast.Name(HOLE, ast.Load()), ast.Constant(index), ast.Load())


def _is_hole(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == HOLE


def _has_hole(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) and part.id in (HOLE, EACH) for part in ast.walk(node))


_FLIP = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Is: ast.Is,
    ast.IsNot: ast.IsNot,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
}


def _shape(test: ast.expr) -> tuple[type[ast.cmpop] | None, ast.expr | None]:
    """(op, expected) of `_hole[0] op expected` or its mirror image; (None, None) for anything else."""
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1):
        return None, None
    op, right = type(test.ops[0]), test.comparators[0]
    if _is_hole(test.left) and not _has_hole(right):
        return op, right
    if _is_hole(right) and not _has_hole(test.left) and op in _FLIP:
        return _FLIP[op], test.left
    return None, None


def _weak(test: ast.expr) -> bool:
    for part in ast.walk(test):
        if isinstance(part, ast.Compare):
            sides = [part.left, *part.comparators]
            if all(map(_has_hole, sides)):
                return True
            if any(isinstance(op, (ast.Is, ast.IsNot)) for op in part.ops) and not any(
                isinstance(side, ast.Name) or (isinstance(side, ast.Constant) and side.value in SINGLETONS)
                for side in sides
            ):
                return True
    return False


def _check(
    test: ast.expr, trusted: frozenset[str], about: frozenset[str], imports: tuple[ast.stmt, ...]
) -> tuple[Check, list[ast.expr]]:
    lift = _Lift(trusted, about)
    test = iteration.Maps(lift.pure).visit(test)
    residual = cast(ast.expr, lift.lift(test))
    op, expected = _shape(residual) if len(lift.holes) == 1 else (None, None)
    return Check(len(lift.holes), residual, imports, op, expected, lift.exposed or _weak(residual)), lift.holes


class _Inline(ast.NodeTransformer):
    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.values.get(node.id, node) if isinstance(node.ctx, ast.Load) else node


def _constants(body: list[ast.stmt], trusted: frozenset[str]) -> dict[str, ast.expr]:
    """Names of the test that we may keep to ourselves: assigned once, from trusted values, used in asserts only and
    there never inside a hole."""
    stores = [
        name.id
        for statement in body
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]
    ours = {
        statement.targets[0].id: statement.value
        for statement in body
        if isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
        and stores.count(statement.targets[0].id) == 1
        and _Lift(trusted).pure(statement.value)
    }
    while True:
        used: set[str] = set()
        for statement in body:
            if isinstance(statement, ast.Assert):
                lift = _Lift(trusted | frozenset(ours))
                lift.lift(ast.parse(ast.unparse(statement.test), mode="eval").body)
                used |= {name for hole in lift.holes for name in _names(hole)}
            elif not (
                isinstance(statement, ast.Assign)
                and isinstance(statement.targets[0], ast.Name)
                and statement.targets[0].id in ours
            ):
                used |= _names(statement)
        if not used & ours.keys():
            return ours
        ours = {name: value for name, value in ours.items() if name not in used}


_SIMPLE = (
    ast.Assert,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Expr,
    ast.Import,
    ast.ImportFrom,
    ast.Delete,
    ast.Pass,
)


def plan_test(
    text: str,
    trusted: frozenset[str],
    about: frozenset[str] = frozenset(),
    data: frozenset[str] = frozenset(),
    defined: frozenset[str] = frozenset(),
) -> TestPlan:
    """The split of one test. about: names of the graded method; data: names whose values the setup code holds; defined:
    trusted names that the program binds too, asked of the program where an assert asks it nothing else.

    Raises SyntaxError or ValueError when it does not parse, Unsplittable when it has no split.
    """
    plan = _plan(text, trusted, about, data)
    if not defined or all(check.asks for check in plan.checks):
        return plan
    imported = bound([part for part in ast.parse(text).body if isinstance(part, (ast.Import, ast.ImportFrom))])
    shared = sorted(defined & trusted & _names(ast.parse(text)) - imported)
    for distrusted in [*({name} for name in _deepest_first(text, shared)), set(shared)]:
        try:
            other = _plan(text, trusted - distrusted, about, data)
        except Unsplittable:
            continue
        if all(check.asks for check in other.checks):
            several = any(len(_names(node) & set(shared)) > 1 for _, node in other.steps)
            several = several or any(_names(check.residual) & set(shared) for check in other.checks)
            return replace(other, weak=other.weak or several)  # which of them is graded is a guess
    return plan


def _deepest_first(text: str, names: list[str]) -> list[str]:
    depth = dict.fromkeys(names, 0)
    level: list[ast.AST] = [ast.parse(text)]
    for at in range(1_000):
        for node in level:
            if isinstance(node, ast.Name) and node.id in depth:
                depth[node.id] = at
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return sorted(names, key=lambda name: -depth[name])


def _plan(text: str, trusted: frozenset[str], about: frozenset[str], data: frozenset[str]) -> TestPlan:
    body = ast.parse(text).body
    if len(body) > 1:
        body = inline.literals(iteration.single_assignments(body))
    body = iteration.loops_as_asserts(body)
    for statement in body:
        if not isinstance(statement, _SIMPLE) and any(isinstance(part, ast.Assert) for part in ast.walk(statement)):
            raise Unsplittable(type(statement).__name__)
    imports = tuple(statement for statement in body if isinstance(statement, (ast.Import, ast.ImportFrom)))
    trusted = trusted | frozenset(bound(list(imports)))
    own = frozenset(bound([statement for statement in body if statement not in imports]))
    trusted = trusted - own
    body = inline.results(body, trusted)
    ours = _constants(body, trusted) if len(body) > 1 else {}
    steps: list[tuple[str, ast.stmt | ast.expr]] = []
    checks: list[Check] = []
    trace = exposure.Trace(trusted, own, about)
    for statement in body:
        if isinstance(statement, ast.Assert):
            check, holes = _check(_Inline(ours).visit(statement.test), trusted, about - own, imports)
            if isinstance(statement, iteration.LoopAssert) and len(holes) != 1:
                raise Unsplittable("a loop with several calls a round")
            steps += [("eval", hole) for hole in holes]
            asks = trace.check(holes) and not always_true(statement.test)
            checks.append(replace(check, asks=asks, weak=check.weak or not asks or bool(_names(check.residual) & data)))
        elif not (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id in ours
        ):
            steps.append(("exec", statement))
            trace.statement(statement)
    if not checks:
        raise Unsplittable("no assert")
    return TestPlan(tuple(steps), tuple(checks), trace.exposed() or any(check.weak for check in checks))


def asks_whole(text: str, trusted: frozenset[str]) -> bool:
    """Whether a test that has no split tests the program: it asserts or raises, and reads a name that is not its own.

    Raises SyntaxError or ValueError when it does not parse."""
    tree = ast.parse(text)
    tests = any(
        isinstance(part, (ast.Assert, ast.Raise))
        or (isinstance(part, ast.Attribute) and part.attr.startswith("assert"))
        for part in ast.walk(tree)
    )
    own = {part.arg for part in ast.walk(tree) if isinstance(part, ast.arg)} | bound(tree.body)
    return tests and bool(_names(tree) - trusted - own)
