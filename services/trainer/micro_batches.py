"""How the rows of a step are dealt to ranks and forward passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from common.packing import consecutive
from services.trainer.collate import TrainingSample


def micro_batches(
    rows: Sequence[TrainingSample], rank: int, ranks: int, accumulation: int
) -> list[list[TrainingSample]]:
    """This rank's rows in exactly `accumulation` parts (parts may be empty); every rank computes the same deal.

    Rows of like length share a part, so that little of its padded rectangle (rows x longest) is padding, and the
    largest rectangle, which decides peak memory, is as small as a cut of the rows in order of length can make it. Ranks
    take turns, so that they work on rectangles of like size at the same time.
    """
    ordered = sorted(rows, key=lambda r: -_length(r))
    lengths = [_length(row) for row in ordered]
    longest = lengths[0] if rows else 0
    low, high = longest, longest * len(rows)  # one rectangle holds everything
    while low < high:  # the smallest area that `ranks * accumulation` parts suffice for
        middle = (low + high) // 2
        if len(consecutive(lengths, middle)) <= ranks * accumulation:
            high = middle
        else:
            low = middle + 1
    parts = [[ordered[i] for i in part] for part in consecutive(lengths, low)]
    parts += [[] for _ in range(ranks * accumulation - len(parts))]
    return parts[rank::ranks]


def _length(row: TrainingSample) -> int:
    return len(row.prompt_ids) + len(row.token_ids)
