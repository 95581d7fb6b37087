"""The answer to one registered claim, and how a rule compares numbers that arithmetic has rounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["supported", "falsified", "inconclusive", "not evaluable"]
ROUNDING_PP = 1e-9  # rates are ratios of counts below 1e6, so no two unlike ones are this close


@dataclass(frozen=True)
class Verdict:
    """One claim's answer. `because` is one sentence; `numbers` are lines; `run_ids` is what they rest on."""

    name: str
    claim: str
    state: State
    because: str
    numbers: tuple[str, ...] = ()
    run_ids: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict, hash=False)


def ties(a: float, b: float) -> bool:
    """Equal but for rounding, in pp."""
    return abs(a - b) <= ROUNDING_PP


def reaches(a: float, b: float) -> bool:
    """a >= b, a tie included."""
    return a >= b - ROUNDING_PP


def exceeds(a: float, b: float) -> bool:
    """a > b, a tie excluded."""
    return a > b + ROUNDING_PP
