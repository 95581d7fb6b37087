"""Which parts of a completion are code, and which of those are its test function.

    completion ── fences ──> prose | fence | code ── evidence.test_function names it ──> lines of that function

The evidence holds the function as the grader prints it (comments and layout lost, cut when long), so the name is taken
from it and the definition is looked for in the code itself. Every definition of that name is marked: the last one is
what runs. Code that does not parse is marked by indentation.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any, Literal

MAX_PARSED = 128 * 1024  # characters, as the grader
_FENCE = re.compile(r"```(?:python)?\n", re.IGNORECASE)
_DEFINED = re.compile(r"\s*(?:async\s+)?def\s+([^\W\d]\w*)")
Kind = Literal["prose", "fence", "code", "test"]


@dataclass(frozen=True)
class Part:
    """A stretch of the text, [start, end)."""

    kind: Kind
    start: int
    end: int


def test_name(evidence: dict[str, Any]) -> str | None:
    """The name of the test function that the grader found, None when it found none."""
    source = evidence.get("test_function")
    found = re.search(r"\bdef\s+([^\W\d]\w*)", source) if isinstance(source, str) else None
    return found[1] if found else None


test_name.__test__ = False  # type: ignore[attr-defined]  # not a pytest test, whatever its name says


def parts(text: str, evidence: dict[str, Any]) -> list[Part]:
    """The whole text in order, without gaps; neighbours may be of one kind."""
    name, found, at = test_name(evidence), [], 0
    while opening := _FENCE.search(text, at):
        closing = text.find("```", opening.end())
        stop = closing if closing >= 0 else len(text)
        found.append(Part("prose", at, opening.start()))
        found.append(Part("fence", opening.start(), opening.end()))
        found += _code(text, opening.end(), stop, name)
        at = min(len(text), stop + 3)
        found.append(Part("fence", stop, at))
    found.append(Part("prose", at, len(text)))
    return [part for part in found if part.end > part.start]


def _code(text: str, start: int, end: int, name: str | None) -> list[Part]:
    block = text[start:end]
    offsets = [start]  # of each line; the lines of ast end in \n, \r\n or \r, those of str.splitlines in more
    for line in re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", block):
        offsets.append(offsets[-1] + len(line))
    found, at = [], start
    for first, last in _merged(_definitions(block, name)) if name else []:
        begin, stop = offsets[min(first, len(offsets) - 1)], offsets[min(last, len(offsets) - 1)]
        found += [Part("code", at, begin), Part("test", begin, stop)]
        at = stop
    return [*found, Part("code", at, end)]


def _definitions(block: str, name: str) -> list[tuple[int, int]]:
    """Lines [first, last) of each definition of `name`, from 0, decorators included."""
    tree = _parse(block)
    if tree is None:
        return _by_indentation(block, name)
    return [
        (min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]


def _parse(block: str) -> ast.Module | None:
    if len(block) > MAX_PARSED:
        return None
    try:
        # A form feed splits lines for nobody here; a block may be indented as a whole or not be Python at all.
        return ast.parse(block)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError):
        return None


def _by_indentation(block: str, name: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    lines = re.split(r"\r\n|\r|\n", block)
    for number, line in enumerate(lines):
        head = _DEFINED.match(line)
        if not head or head[1] != name:
            continue
        indent, last = len(line) - len(line.lstrip()), number + 1
        for below in range(number + 1, len(lines)):
            rest = lines[below]
            if rest.strip() and len(rest) - len(rest.lstrip()) <= indent:
                break
            if rest.strip():
                last = below + 1
        found.append((number, last))
    return found


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, nested ones dropped."""
    kept: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if not kept or first >= kept[-1][1]:
            kept.append((first, last))
    return kept
