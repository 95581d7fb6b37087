"""What of a list of tests does not depend on the program: the calls for its job, the comparisons for our side.

tests ──> asserts.plan_test ──> steps for the job, marshalled
                           └──> checks: operator and expected value, or an expression for the judge
"""

from __future__ import annotations

import ast
import marshal
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType
from typing import Any, cast

from common.errors import ConfigError
from services.sandbox.jail import channel
from services.sandbox.verdicts import asserts, names


@dataclass(frozen=True)
class Check:
    """A check with its expected value where it is a plain comparison; `item` is (imports, expression) for the judge,
    `residual` that expression."""

    holes: int
    test: int
    op: type[ast.cmpop] | None
    expected: Any
    item: tuple[bytes, bytes]
    residual: ast.expr


@dataclass
class Plan:
    """Everything about a list of tests that does not depend on the submission; kept for its siblings."""

    setup: bytes
    steps: bytes
    checks: list[Check]
    weak_steps: bytes | None
    weak: bool
    total: int
    keep_setup: bool = False  # it only imports and defines: run once per fork server
    error: str = ""
    asks: bool = True  # some test's verdict depends on the program
    unasked: frozenset[str] = frozenset()  # trusted names in asserts that ask the program nothing


@lru_cache(maxsize=64)
def compile_setup(setup: str) -> bytes:
    """Marshal of the setup code's code object. Raises SyntaxError or ValueError."""
    return marshal.dumps(compile(setup, "<setup>", "exec", dont_inherit=True))


def make_plan(
    tests: tuple[str, ...], setup: str, method: str, judge: Any, defined: frozenset[str] = frozenset()
) -> Plan:
    """Split every test, compile the calls, work out the expected values: `judge(items, setup, keep_setup)` evaluates
    those that are not literals. defined: names of the setup code that the program binds too (asserts.plan_test)."""
    try:
        compiled_setup = compile_setup(setup)
        split, whole, asks = _split(tests, setup, method, defined)
        keep = names.only_defines(setup)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = f"a test or the setup code does not parse ({type(error).__name__})"
        return Plan(b"", b"", [], None, False, len(tests), error=message)
    steps = [(kind, _code(node, kind)) for _, plan in split for kind, node in plan.steps]
    pairs = [(index, check) for index, plan in split for check in plan.checks]
    try:
        checks = _expectations(pairs, lambda items: judge(items, compiled_setup, keep))
    except ConfigError as error:
        return Plan(b"", b"", [], None, False, len(tests), error=str(error))
    unasked = [check.residual for _, check in pairs if not check.asks]
    return Plan(
        compiled_setup,
        marshal.dumps(tuple(steps)),
        checks,
        marshal.dumps(tuple(("exec", code) for code in whole)) if whole else None,
        bool(whole) or any(plan.weak for _, plan in split),
        len(tests),
        keep,
        asks=asks or any(check.asks for _, check in pairs),
        unasked=frozenset(part.id for node in unasked for part in ast.walk(node) if isinstance(part, ast.Name)),
    )


def _split(
    tests: tuple[str, ...], setup: str, method: str, defined: frozenset[str]
) -> tuple[list[tuple[int, asserts.TestPlan]], list[CodeType], bool]:
    """(the plans of tests that can be split, the code of those that cannot, whether one of the latter asks the program)."""
    trusted, about, data = names.trusted_names(setup, method), names.about(method), names.setup_data(setup)
    split, whole, asks = [], [], False
    for index, test in enumerate(tests):
        try:
            split.append((index, asserts.plan_test(test, trusted, about, data, defined)))
        except asserts.Unsplittable:
            whole.append(compile(test, "<test>", "exec", dont_inherit=True))
            asks = asks or asserts.asks_whole(test, trusted)
    return split, whole, asks


def _code(node: ast.AST, kind: str) -> Any:
    tree = ast.Expression(cast(ast.expr, node)) if kind == "eval" else ast.Module([cast(ast.stmt, node)], [])
    return compile(ast.fix_missing_locations(tree), "<test>", kind, dont_inherit=True)


def _expectations(pairs: list[tuple[int, asserts.Check]], evaluate: Any) -> list[Check]:
    """Expected values: literals here, other trusted expressions (list(range(9)), inf) once by the judge."""
    checks: list[Check] = []
    open_items: list[tuple[int, tuple[Any, ...]]] = []
    for index, check in pairs:
        module = ast.fix_missing_locations(ast.Module(list(check.imports), []))
        imports = marshal.dumps(compile(module, "<test>", "exec"))
        item = (imports, marshal.dumps(_code(check.residual, "eval")))
        op, expected = check.op, None
        if op is not None and check.expected is not None:  # the one comes with the other
            try:
                expected = ast.literal_eval(check.expected)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                open_items.append((len(checks), (imports, marshal.dumps(_code(check.expected, "eval")), None)))
        checks.append(Check(check.holes, index, op, expected, item, check.residual))
    if open_items:
        outcome = evaluate([item for _, item in open_items])
        if not outcome.complete:
            at = min(len(outcome.frames), len(open_items) - 1)
            raise ConfigError(
                f"test {_number(checks, open_items, at)}: its expected value ends the judge ({outcome.ended})"
            )
        _fill_in(checks, open_items, outcome.frames)
    return checks


def _number(checks: list[Check], open_items: list[tuple[int, tuple[Any, ...]]], at: int) -> int:
    return checks[open_items[at][0]].test + 1


def own_part(check: Check) -> tuple[bytes, bytes, None]:
    """For the judge: what of a check's expression depends on no answer."""
    parts: list[ast.expr] = []
    bound = {part.id for part in ast.walk(check.residual) if isinstance(part, ast.Name) and _binds(part)}
    bound |= {part.arg for part in ast.walk(check.residual) if isinstance(part, ast.arg)}
    todo: list[ast.AST] = [check.residual]
    while todo:
        node = todo.pop()
        read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if isinstance(node, ast.expr) and not read & (bound | {asserts.HOLE, asserts.EACH}):
            parts.append(node)
        else:
            todo += ast.iter_child_nodes(node)
    done = ast.Tuple([*(ast.Tuple([part], ast.Load()) for part in parts), ast.Constant(1)], ast.Load())
    last = ast.Subscript(done, ast.UnaryOp(ast.USub(), ast.Constant(1)), ast.Load())
    return check.item[0], marshal.dumps(_code(last, "eval")), None


def _binds(name: ast.Name) -> bool:
    return not isinstance(name.ctx, ast.Load)


def _fill_in(
    checks: list[Check], open_items: list[tuple[int, tuple[Any, ...]]], answers: list[tuple[str, bytes]]
) -> None:
    """Fill in expected values; one without a plain value leaves its whole assert to the judge. Raises ConfigError for one
    that raises."""
    frames = answers + [("U", b"")] * len(open_items)
    for (index, _), (tag, body) in zip(open_items, frames, strict=False):
        if tag == "E":
            said = body[:100].decode("ascii", "replace")
            raise ConfigError(f"test {checks[index].test + 1}: its expected value raises {said}")
        value = channel.decode(body) if tag == "V" else None
        plain = tag == "V" and not isinstance(value, (channel.Foreign, channel.Items))
        checks[index] = replace(checks[index], expected=value) if plain else replace(checks[index], op=None)
