"""Cutting rows of different lengths into batches: padded to its longest row, a batch is a rectangle of bounded area."""

from __future__ import annotations

from collections.abc import Sequence


def consecutive(lengths: Sequence[int], area: int, rows: int | None = None) -> list[list[int]]:
    """Indices of `lengths` in the order given, cut so that each part, padded to its longest, has at most `area` tokens and
    at most `rows` rows; a row longer than `area` is a part of its own. Sort by length first, either way, to pad little."""
    parts: list[list[int]] = []
    longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if parts and len(parts[-1]) != rows and longest * (len(parts[-1]) + 1) <= area:
            parts[-1].append(i)
        else:
            parts.append([i])
            longest = length
    return parts
