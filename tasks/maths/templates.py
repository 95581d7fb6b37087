"""Templates of word problems: a few numbers -> question, worked steps, answer. Pure; every wording is our own.

A template draws its numbers from `rng` so that the answer is exact, and returns the steps as the solution of a person
would state them. Two to four steps, numbers as in everyday life; some answers are large, decimal or negative, so that
every rule by which answers are read (tasks/numbers.py) is met by some problem.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Karl", "Lena", "Musa", "Nora")
THINGS = ("nuts", "pens", "stamps", "beads", "shells", "cards", "coins", "plums", "eggs", "tiles")


@dataclass(frozen=True)
class Drawn:
    """One problem: what is asked, the worked steps, and the number that is right, as it is to be written."""

    question: str
    steps: tuple[str, ...]
    answer: str


def bags(rng: random.Random) -> Drawn:
    name, thing, n, each = rng.choice(NAMES), rng.choice(THINGS), rng.randint(3, 9), rng.randint(4, 12)
    gone = rng.randint(2, n * each - 2)
    return Drawn(
        f"{name} has {n} bags with {each} {thing} each and gives {gone} {thing} away. How many {thing} are left?",
        (f"{n} bags hold {n} * {each} = {n * each} {thing}.", f"{n * each} - {gone} = {n * each - gone} are left."),
        str(n * each - gone),
    )


def stall(rng: random.Random) -> Drawn:
    first, second = rng.sample(THINGS, 2)
    a, p, b, q = rng.randint(3, 15), rng.randint(2, 9), rng.randint(3, 15), rng.randint(2, 9)
    return Drawn(
        f"A stall sells {a} {first} at ${p} each and {b} {second} at ${q} each. How many dollars does it take in?",
        (f"The {first} bring {a} * {p} = {a * p}.", f"The {second} bring {b} * {q} = {b * q}.",
         f"Together {a * p} + {b * q} = {a * p + b * q}."),
        str(a * p + b * q),
    )  # fmt: skip


def savings(rng: random.Random) -> Drawn:
    name, week, weeks = rng.choice(NAMES), rng.randint(6, 40), rng.randint(4, 20)
    spent = rng.randint(5, week * weeks - 5)
    total = week * weeks
    return Drawn(
        f"{name} saves ${week} a week for {weeks} weeks and then spends ${spent}. How many dollars are left?",
        (f"{weeks} weeks bring {weeks} * {week} = {total}.", f"{total} - {spent} = {total - spent}."),
        str(total - spent),
    )


def journey(rng: random.Random) -> Drawn:
    v, h, w, k = rng.randint(3, 12) * 10, rng.randint(2, 6), rng.randint(3, 12) * 10, rng.randint(2, 6)
    return Drawn(
        f"A bus drives {h} hours at {v} km an hour and then {k} hours at {w} km an hour. How many km does it drive?",
        (f"First {h} * {v} = {h * v} km.", f"Then {k} * {w} = {k * w} km.", f"{h * v} + {k * w} = {h * v + k * w} km."),
        str(h * v + k * w),
    )


def book(rng: random.Random) -> Drawn:
    name, part = rng.choice(NAMES), rng.randint(2, 5)
    pages = part * rng.randint(20, 90)
    first = pages // part
    second = rng.randint(5, pages - first - 5)
    word = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[part]
    return Drawn(
        f"{name} reads {word} of a book of {pages} pages on Monday and {second} pages on Tuesday. How many pages remain?",
        (f"On Monday {pages} / {part} = {first} pages.", f"Read so far: {first} + {second} = {first + second}.",
         f"{pages} - {first + second} = {pages - first - second} pages remain."),
        str(pages - first - second),
    )  # fmt: skip


def discount(rng: random.Random) -> Drawn:
    price, percent, n = rng.randint(2, 30) * 20, rng.choice((5, 10, 15, 20, 25, 30, 40, 50)), rng.randint(2, 6)
    off = price * percent // 100
    return Drawn(
        f"A lamp costs ${price} and is sold at {percent}% off. How many dollars do {n} lamps cost?",
        (f"{percent}% of {price} is {off}.", f"One lamp costs {price} - {off} = {price - off}.",
         f"{n} lamps cost {n} * {price - off} = {n * (price - off)}."),
        str(n * (price - off)),
    )  # fmt: skip


def town(rng: random.Random) -> Drawn:
    people, come, years = rng.randint(12, 480) * 100, rng.randint(11, 95) * 10, rng.randint(2, 9)
    total = people + years * come
    return Drawn(
        f"A town has {people:,} people and gains {come} people a year. How many people live there after {years} years?",
        (f"In {years} years {years} * {come} = {years * come:,} people come.",
         f"{people:,} + {years * come:,} = {total:,} people."),
        f"{total:,}",
    )  # fmt: skip


def change(rng: random.Random) -> Drawn:
    name, n, cents, note = rng.choice(NAMES), rng.randint(2, 7), 25 * rng.randint(2, 11), rng.choice((20, 50))
    price = Fraction(cents, 100)
    left = note - n * price
    return Drawn(
        f"{name} buys {n} drinks at ${_money(price)} each and pays with a ${note} note. How many dollars of change are due?",
        (f"The drinks cost {n} * {_money(price)} = {_money(n * price)}.",
         f"{note} - {_money(n * price)} = {_money(left)}."),
        _money(left),
    )  # fmt: skip


def frost(rng: random.Random) -> Drawn:
    start, fall, hours = rng.randint(-3, 6), rng.randint(1, 4), rng.randint(3, 8)
    end = start - fall * hours
    return Drawn(
        f"It is {start} degrees and gets {fall} degrees colder each hour. How many degrees is it after {hours} hours?",
        (f"It gets {hours} * {fall} = {fall * hours} degrees colder.", f"{start} - {fall * hours} = {end}."),
        str(end),
    )


def _money(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"


TEMPLATES: dict[str, Callable[[random.Random], Drawn]] = {
    made.__name__: made for made in (bags, stall, savings, journey, book, discount, town, change, frost)
}
HELDOUT_ONLY = "journey"
"""The template that training never shows, so that part of the held-out file asks for more than other numbers."""
