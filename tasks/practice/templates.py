"""Families of small coding problems, each a grammar: one `Spec` renders as a statement and as the expression that
solves it.

    Spec(family, parts, params)  ──statement()──>  "Given a list nums, keep the numbers above 4, ..."
                                 ──expression()─>  "sum(v * 3 for v in nums if v > 4)"

A wrong solution is the right solution of a *neighbouring* Spec (one part or parameter changed), so it always parses
and is wrong in the way people are wrong: off by one, two numbers swapped, the wrong end of a list. `trap` is the
family's favourite mistake, the same one every time for a given Spec.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

DIGITS = (2, 3, 4, 5, 6, 7, 8, 9)
LETTERS = ("a", "b", "c", "d", "e")

RELATIONS = {
    "above": "{x} > {k}",
    "below": "{x} < {k}",
    "at least": "{x} >= {k}",
    "at most": "{x} <= {k}",
    "divisible by": "{x} % {k} == 0",
    "not divisible by": "{x} % {k} != 0",
}
OPERATIONS = {"add": "+", "subtract": "-", "multiply by": "*", "take the remainder by": "%"}
AGGREGATES = {
    "their sum": ("total", "sum({gen})"),
    "the list": ("collect", "[{gen}]"),
    "the largest or 0": ("peak", "max(({gen}), default=0)"),
}
PICKS = {
    "take the first": "nums[:{k}]",
    "drop the first": "nums[{k}:]",
    "take the last": "nums[-{k}:]",
    "drop the last": "nums[:-{k}]",
    "take every nth, n =": "nums[::{k}]",
}
ORDERS = {"sort up": "sorted({x})", "sort down": "sorted({x}, reverse=True)", "reverse": "{x}[::-1]"}
TAILS = {"the first": "{x}[:{k}]", "all but the first": "{x}[{k}:]", "the last": "{x}[-{k}:]"}
CUTS = {
    "keep the first": "[:{k}]",
    "drop the first": "[{k}:]",
    "keep the last": "[-{k}:]",
    "repeat it, times": " * {k}",
}
FINISHES = {"upper case": ".upper()", "reversed": "[::-1]", "as it is": ""}

# A reader's favourite confusion for each word; involutive, so a trap is never the right answer.
_CONFUSED = {
    "above": "at least", "at least": "above", "below": "at most", "at most": "below",
    "divisible by": "not divisible by", "not divisible by": "divisible by",
    "take the first": "drop the first", "drop the first": "take the first",
    "take the last": "drop the last", "drop the last": "take the last",
    "keep the first": "drop the first",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Spec:
    """One problem of a family: `parts` are words of the grammar (their order is the family's), `params` its numbers
    or letters. Two Specs are the same problem exactly when they are equal."""

    family: str
    parts: tuple[str, ...]
    params: tuple[int | str, ...]


@dataclass(frozen=True)
class Family:
    """A grammar. `slots[i]` lists the words of part i, `ranges[i]` the values of parameter i; `argument` is the name
    of the method's one argument and `kind` its type (list, int or str)."""

    name: str
    argument: str
    kind: str
    slots: tuple[tuple[str, ...], ...]
    ranges: tuple[tuple[int | str, ...], ...]


FAMILIES = {
    f.name: f
    for f in (
        Family("filter", "nums", "list", (tuple(RELATIONS), tuple(OPERATIONS), tuple(AGGREGATES)), (DIGITS, DIGITS)),
        Family("slice", "nums", "list", (tuple(PICKS), tuple(ORDERS), tuple(TAILS)), (DIGITS[:4], DIGITS[:4])),
        Family("chain", "n", "int", (tuple(OPERATIONS),) * 3, (DIGITS,) * 3),
        Family("branch", "n", "int", (tuple(RELATIONS), tuple(OPERATIONS), tuple(OPERATIONS)), (DIGITS,) * 3),
        Family("text", "s", "str", (tuple(CUTS), tuple(FINISHES)), (LETTERS, LETTERS, DIGITS[:4])),
    )
}  # fmt: skip


def statement(spec: Spec) -> str:
    """The problem in words, without the line that says how it is graded."""
    p, k = spec.parts, spec.params
    if spec.family == "filter":
        return f"Given a list nums, keep the numbers {p[0]} {k[0]}, {p[1]} {k[1]} each, and return {p[2]}."
    if spec.family == "slice":
        return f"Given a list nums, {p[0]} {k[0]}, {p[1]}, and return {p[2]} {k[1]}."
    if spec.family == "chain":
        return f"Given a number n, {p[0]} {k[0]}, {p[1]} {k[1]}, {p[2]} {k[2]}, and return it."
    if spec.family == "branch":
        return f"Given a number n, if it is {p[0]} {k[0]} {p[1]} {k[1]}, otherwise {p[2]} {k[2]}, and return it."
    return f"Given a string s, replace {k[0]} with {k[1]}, {p[0]} {k[2]}, and return it {p[1]}."


def expression(spec: Spec) -> str:
    """The Python expression that solves it, in terms of the family's argument."""
    p, k = spec.parts, spec.params
    if spec.family == "filter":
        gen = f"v {OPERATIONS[p[1]]} {k[1]} for v in nums if {RELATIONS[p[0]].format(x='v', k=k[0])}"
        return AGGREGATES[p[2]][1].format(gen=gen)
    if spec.family == "slice":
        picked = PICKS[p[0]].format(k=k[0])
        return TAILS[p[2]].format(x=ORDERS[p[1]].format(x=picked), k=k[1])
    if spec.family == "chain":
        a, b, c = (OPERATIONS[x] for x in p)
        return f"((n {a} {k[0]}) {b} {k[1]}) {c} {k[2]}"
    if spec.family == "branch":
        then, other = (f"n {OPERATIONS[o]} {v}" for o, v in zip(p[1:], k[1:], strict=True))
        return f"{then} if {RELATIONS[p[0]].format(x='n', k=k[0])} else {other}"
    changed = f"s.replace('{k[0]}', '{k[1]}')"
    cut = f"({changed}{CUTS[p[0]].format(k=k[2])})" if "*" in CUTS[p[0]] else changed + CUTS[p[0]].format(k=k[2])
    return cut + FINISHES[p[1]]


def method_name(spec: Spec) -> str:
    """The method the solution must define."""
    if spec.family == "filter":
        return AGGREGATES[spec.parts[2]][0]
    return {"slice": "select", "chain": "compute", "branch": "decide", "text": "edit"}[spec.family]


def specs(family: str) -> Iterator[Spec]:
    """Every sensible problem of a family, in a fixed order."""
    f = FAMILIES[family]
    for parts in itertools.product(*f.slots):
        for params in itertools.product(*f.ranges):
            spec = Spec(family, parts, params)
            if sensible(spec):
                yield spec


def sensible(spec: Spec) -> bool:
    """False for problems in which a confusion could not be told from the solution (equal parameters, for example)."""
    if spec.family == "slice" and spec.parts[0] == "drop the last" and spec.parts[1] == "reverse":
        return len(set(spec.params)) == 2
    return len({str(k) for k in spec.params}) == len(spec.params)


def trap(spec: Spec) -> Spec:
    """The mistake most readers of this problem make: a confusable first word, else its first two numbers swapped."""
    if spec.parts[0] in _CONFUSED and _CONFUSED[spec.parts[0]] in FAMILIES[spec.family].slots[0]:
        return replace(spec, parts=(_CONFUSED[spec.parts[0]], *spec.parts[1:]))
    swapped = list(spec.params)
    swapped[0], swapped[1] = swapped[1], swapped[0]
    return replace(spec, params=tuple(swapped))


def slip(spec: Spec, rng: random.Random) -> Spec:
    """A random neighbour: one part or parameter replaced by another value of its slot."""
    f = FAMILIES[spec.family]
    slots = [*f.slots, *f.ranges]
    values = [*spec.parts, *spec.params]
    i = rng.randrange(len(slots))
    return _with(spec, i, rng.choice([x for x in slots[i] if x != values[i]]))


def neighbours(spec: Spec) -> Iterator[Spec]:
    """Every Spec that `slip` can return, and the trap."""
    f = FAMILIES[spec.family]
    values = [*spec.parts, *spec.params]
    for i, slot in enumerate([*f.slots, *f.ranges]):
        for x in slot:
            if x != values[i]:
                yield _with(spec, i, x)
    yield trap(spec)


def _with(spec: Spec, i: int, value: int | str) -> Spec:
    """`spec` with another value in slot i; the parts are counted first, then the parameters."""
    n = len(spec.parts)
    if i < n:
        return replace(spec, parts=(*spec.parts[:i], str(value), *spec.parts[i + 1 :]))
    return replace(spec, params=(*spec.params[: i - n], value, *spec.params[i - n + 1 :]))


def draw_input(spec: Spec, rng: random.Random) -> list[int] | int | str:
    """One argument, rich in the values where a confusion shows (the parameters themselves, their neighbours)."""
    kind = FAMILIES[spec.family].kind
    numbers = [k + d for k in spec.params if isinstance(k, int) for d in (-1, 0, 0, 1)]
    if kind == "int":
        drawn: int = rng.choice([*numbers, *numbers, *range(-9, 60)])
        return drawn
    if kind == "list":
        size = rng.choice((0, 4, 7, 9, 11, 12))
        return [rng.choice(numbers) if rng.random() < 0.4 else rng.randrange(-12, 40) for _ in range(size)]
    letters = [k for k in spec.params if isinstance(k, str)]
    return "".join(rng.choice([*letters, *LETTERS]) for _ in range(rng.choice((0, 5, 8, 11))))
