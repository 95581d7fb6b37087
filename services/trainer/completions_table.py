"""A few completions of a step for the loggers: which ones, and how they read. Pure.

Chosen without looking at what they say: the first completion of every group, groups evenly spaced over the step, then the
second ones. So a reader sees the step as it was, not its best or its worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.unseen import spelt

Row = Mapping[str, Any]

COLUMNS = ("problem", "completion", "label", "reward", "advantage", "oracle", "text")
TEXT_CHARS = 8000


def chosen(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` of the rollout rows of one step (rows of a group stand together, as in the rollout files)."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row)
    every, taken = list(groups.values()), list[Row]()
    depth = max(map(len, every), default=0)
    for rank in range(depth):
        having = [group[rank] for group in every if len(group) > rank]
        room = min(len(having), most - len(taken))
        taken += [having[i * len(having) // room] for i in range(room)] if room > 0 else []
    return taken


def cells(row: Row) -> list[Any]:
    """The row under COLUMNS; a long text is cut, with what is left out told; what a browser would obey is spelt out."""
    text = spelt(row["text"])
    if len(text) > TEXT_CHARS:
        text = f"{text[:TEXT_CHARS]}\n[{len(text) - TEXT_CHARS} more characters]"
    oracle = {True: "correct", False: "not correct", None: "not asked"}[row["oracle_correct"]]
    return [
        spelt(row["problem_id"]),
        row["index"],
        row["label"] or row["status"],
        row["reward"],
        row["advantage"],
        oracle,
        text,
    ]


def markdown(rows: Sequence[Row]) -> str:
    """One heading and one indented block a completion: in Markdown an indented block shows any text as it is."""
    parts = []
    for row in rows:
        *facts, text = cells(row)
        line = " · ".join(f"{name} {value}" for name, value in zip(COLUMNS[:-1], facts, strict=True))
        parts += [f"**{_plain(line)}**", "\n".join(f"    {part}" for part in text.splitlines() or [""])]
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """No markup: a problem's name is data."""
    return "".join("\\" + char if char in "\\`*_{}[]()#+!<>|~" else char for char in text)
