"""Values of options: each function is the `type` of an argument, and argparse says what it raises."""

from __future__ import annotations

import argparse
import math
from typing import Any


def listed(text: str) -> tuple[str, ...]:
    """'0,1' -> ('0', '1')."""
    found = tuple(text.split(","))
    if not all(part.isdecimal() for part in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: write different numbers of GPUs, like 0 or 0,1")
    return found


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, at least 1")
    return int(text)


def temperature(text: str) -> float:
    """A temperature that log-probs exist for: above 0, at most 10 as messages have it."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found <= 10:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number above 0 and at most 10")
    return found


def seeds(text: str) -> list[int]:
    """'0-2,7' -> [0, 1, 2, 7]; argparse says what is wrong with anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers = range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: write numbers and ranges, like 0-4 or 0,2,5") from None
        if not numbers:
            raise argparse.ArgumentTypeError(f"{text!r}: {first} is above {last}; write the smaller seed first")
        found += [number for number in numbers if number not in found]
    return found


class Together(argparse.Action):
    """Lists given by commas, by spaces or by several options become one list, each value once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        found = list(getattr(namespace, self.dest) or [])
        for group in values:
            found += [value for value in group if value not in found]
        setattr(namespace, self.dest, found)


def names(text: str) -> list[str]:
    """'a,b' -> ['a', 'b']."""
    return [name for name in text.split(",") if name]
