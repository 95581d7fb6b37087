"""How the rows of a step are dealt to ranks and forward passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from common.packing import consecutive
from services.trainer.collate import TrainingSample


def micro_batches(
    rows: Sequence[TrainingSample], rank: int, ranks: int, accumulation: int, together: int = 1
) -> list[list[TrainingSample]]:
    """This rank's rows in exactly `accumulation` parts (parts may be empty); every rank computes the same deal.

    Rows of like length share a part, so that little of its padded rectangle (rows x longest) is padding, and the
    largest rectangle, which decides peak memory, is as small as a cut of the rows in order of length can make it. Ranks
    take turns, so that they work on rectangles of like size at the same time.

    together: up to so many neighbours with one prompt are dealt as one row that holds the prompt once (shared_prompt.py).
    """
    ordered = sorted(_units(rows, together), key=lambda unit: -_length(unit))
    lengths = [_length(unit) for unit in ordered]
    longest = lengths[0] if ordered else 0
    low, high = longest, longest * len(ordered)  # one rectangle holds everything
    while low < high:  # the smallest area that `ranks * accumulation` parts suffice for
        middle = (low + high) // 2
        if len(consecutive(lengths, middle)) <= ranks * accumulation:
            high = middle
        else:
            low = middle + 1
    parts = [[row for i in part for row in ordered[i]] for part in consecutive(lengths, low)]
    parts += [[] for _ in range(ranks * accumulation - len(parts))]
    return parts[rank::ranks]


def _units(rows: Sequence[TrainingSample], most: int) -> list[list[TrainingSample]]:
    if most == 1:
        return [[row] for row in rows]
    from rankspace.shared_prompt import together

    units = together([row.prompt_ids for row in rows], [len(row.token_ids) for row in rows], most)
    return [[rows[i] for i in unit] for unit in units]


def _length(unit: Sequence[TrainingSample]) -> int:
    """Tokens of the row that holds them."""
    return len(unit[0].prompt_ids) + sum(len(row.token_ids) for row in unit)
