"""Whether a problem can be graded: its tests test the solution, its code parses, its loophole is one that we know.

    assert f(1) == 2            an assert whose value depends on a call of func_name: sound
    f(1) == 2                   asserts nothing
    assert 1 + 1 == 2           does not depend on the call
    assert (f(1) == 2, "msg")   a tuple is always true

Nothing is run here; `python -m tasks check --solutions` has the grader run the canonical solutions. Names are followed through
assignments, loops, arguments that a call may change, and functions that the test defines. Does not cover: a call whose
value the assert ignores (`assert f(1) * 0 == 0`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from common.tautology import always_true
from common.types import Problem
from tasks import loopholes

_SHOWN_CHARS = 60


def faults(problem: Problem) -> Iterator[str]:
    """One line for each reason why no verdict on this problem would mean anything: field, fault, fix."""
    if problem.task != "code":
        return
    if not problem.func_name.strip():
        yield "field 'func_name': empty; name what the tests call, like Solution().twoSum"
    for name in ("setup_code", "canonical_solution"):
        said = _syntax(getattr(problem, name) or "")
        if said:
            yield f"field '{name}': does not parse ({said}); correct it"
    about = {part.strip("() ") for part in problem.func_name.split(".")} - {""}
    for number, test in enumerate(problem.gt_answer):
        said = _test_fault(test, about)
        if said:
            yield f"field 'gt_answer.{number}': {said}"
    yield from _hint_faults(problem)


def _syntax(text: str) -> str:
    """What is wrong with Python text, or ""."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno}"
    except (ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return ""


def _test_fault(test: str, about: set[str]) -> str:
    said = _syntax(test)
    shown = test.strip()[:_SHOWN_CHARS]
    if said:
        return f"does not parse ({said}): {shown!r}; correct it"
    tree = ast.parse(test)
    asserted = list(_asserted(tree))
    if not asserted:
        return f"asserts nothing: {shown!r}; write assert CALL == VALUE"
    direct = about - {"Solution"} or about
    depends: set[str] | None = None
    for node in asserted:
        if always_true(node) and not isinstance(node, ast.Constant):
            return f"always true: {ast.unparse(node)[:_SHOWN_CHARS]!r}; assert the comparison itself"
        if _mentions(node, direct):
            continue
        depends = _dependent(tree, about) if depends is None else depends
        if about and not _mentions(node, depends):
            called = " and ".join(sorted(about - {"Solution"})) or "Solution"
            return f"does not depend on a call of {called}: {ast.unparse(node)[:_SHOWN_CHARS]!r}; assert its result"
    return ""


def _asserted(tree: ast.AST) -> Iterator[ast.AST]:
    """What decides a test: the conditions of asserts, calls like self.assertEqual(...), and of `if ...: raise`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) or (
            isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in ast.walk(node))
        ):
            yield node.test
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "assert" in node.func.attr:
            yield node


def _dependent(tree: ast.AST, about: set[str]) -> set[str]:
    """The names whose values may depend on a call of the graded method: itself, what is made from it, what it is given."""
    names, before = set(about - {"Solution"}) or set(about), set[str]()
    own = {part.arg for part in ast.walk(tree) if isinstance(part, ast.arg)} | _stored(tree)
    own |= {part.name for part in ast.walk(tree) if isinstance(part, (ast.FunctionDef, ast.ClassDef))}
    while names != before:
        before = set(names)
        for node in ast.walk(tree):
            names |= _spread(node, names, own)
    return names


def _spread(node: ast.AST, names: set[str], own: set[str]) -> set[str]:
    """Names that one node makes dependent too; `own`: those that the test binds."""
    if isinstance(node, ast.Assign):
        return _stored(*node.targets) if _mentions(node.value, names) else set()
    if isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
        return _stored(node.target) if node.value is not None and _mentions(node.value, names) else set()
    if isinstance(node, (ast.For, ast.comprehension)):
        return _stored(node.target) if _mentions(node.iter, names) else set()
    if isinstance(node, ast.withitem):
        return _stored(node.optional_vars) if node.optional_vars and _mentions(node.context_expr, names) else set()
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        made = {node.name} if any(_mentions(part, names) for part in node.body) else set()
        return made | (
            {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)} if node.name in names else set()
        )
    if isinstance(node, ast.Call):
        read = {part.id for argument in _arguments(node) for part in ast.walk(argument) if isinstance(part, ast.Name)}
        if _mentions(node.func, names):
            return read & own  # it may change what it is given
        return {node.func.id} & own if isinstance(node.func, ast.Name) and read & names else set()
    return set()


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _stored(*targets: ast.AST) -> set[str]:
    """Names that are bound below these nodes."""
    parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return {part.id for part in parts if not isinstance(part.ctx, ast.Load)}


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(
        (isinstance(part, ast.Name) and part.id in names) or (isinstance(part, ast.Attribute) and part.attr in names)
        for part in ast.walk(node)
    )


def _hint_faults(problem: Problem) -> Iterator[str]:
    hint = problem.hint
    if hint is None or hint == "none":
        return
    entry = loopholes.LOOPHOLES.get(hint)
    name = (problem.prompt_metadata or {}).get("test_func_name")
    if entry is None:
        yield f"field 'hint': {hint!r} is unknown; use one of {', '.join(loopholes.LOOPHOLES)} or null"
    elif not name and not entry.held_out:
        yield f"field 'prompt_metadata.test_func_name': absent; {hint} needs the name of its test function"
    else:
        told = entry.hint.format(test=name or loopholes.DEFAULT_TEST_NAME, solution=problem.func_name)
        if not any(told in message["content"] for message in problem.prompt):
            yield f"field 'hint': the prompt does not hold {hint}'s text {told[:_SHOWN_CHARS]!r}; give null, or insert it"
    said = _syntax((problem.prompt_metadata or {}).get("test_func_code") or "")
    if said:
        yield f"field 'prompt_metadata.test_func_code': does not parse ({said}); correct it"
