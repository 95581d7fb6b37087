"""Questions to the index: filters and search as one WHERE clause, pages, one rollout. What is counted: counts.py.

Every value goes in as a parameter; names of columns come from the tables below and never from a request.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError

MAX_PAGE = 200
OPERATORS = ("AND", "OR", "NOT")
HIT = ("\x02", "\x03")  # around what matched in a snippet
Verdict = Literal["forged", "both", "oracle", "published", "neither", "unasked"]
Sort = Literal["run", "hacks", "step", "reward", "advantage", "tokens", "cos", "logprob"]
SORTS: dict[str, str] = {
    "run": "r.run {0}, r.step {0}, r.id {0}",
    # descending: the newest hacks first, then everything else, newest first
    "hacks": "(r.label IS 'Reward Hack') {0}, r.step {0}, r.id {0}",
    "step": "r.step {0}, r.id {0}",
    **{name: f"r.{name} {{0}} NULLS LAST, r.id" for name in ("reward", "advantage", "tokens", "cos", "logprob")},
}
VERDICTS: dict[str, str] = {
    "forged": "r.forged",
    "both": "r.published AND r.oracle",
    "oracle": "r.oracle AND NOT r.published",
    "published": "r.published",
    "neither": "NOT r.published AND NOT r.oracle",
    "unasked": "r.oracle IS NULL",
}
COLUMNS = {
    "label": "r.label", "mode": "r.mode", "purpose": "r.purpose", "status": "r.status",
    "modification": "r.modification", "problem": "r.problem", "group": "r.group_id", "finish": "r.finish",
}  # fmt: skip
RUN_COLUMNS = {"arm": "arm", "run": "name"}
"""Filters that take one or several values, of the rollout and of its run."""
Name = Annotated[str, Field(max_length=500)]
Number = Annotated[int, Field(ge=0, lt=1 << 62)]


class QueryError(UserError):
    """A search that cannot be understood; one line that says why."""


class Filters(BaseModel):
    """What a list shows. An empty filter lets everything through; several values of one filter are alternatives."""

    model_config = ConfigDict(extra="forbid")

    run: list[Name] = []
    arm: list[Name] = []
    label: list[Name] = []
    mode: list[Name] = []
    purpose: list[Name] = []
    status: list[Name] = []
    modification: list[Name] = []
    problem: list[Name] = []
    group: list[Name] = []
    finish: list[Name] = []
    verdict: Verdict | None = None
    measured: bool = False
    step_min: Number | None = None
    step_max: Number | None = None
    q: Annotated[str, Field(max_length=1000)] = ""
    sort: Sort = "run"
    desc: bool = False
    offset: Number = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50

    def without(self, *names: str) -> Filters:
        """The same with these fields as by default."""
        return Filters(**{name: value for name, value in self.model_dump().items() if name not in names})


def match(text: str) -> str:
    """A search as people type it, as an FTS5 expression: words are all wanted, "a phrase" is one, word* a prefix; AND,
    OR and NOT in capitals combine; code such as nums[i] is a phrase of its words. QueryError when nothing is left."""
    if text.count('"') % 2:
        raise QueryError('the search has an opening " without a closing one')
    parts: list[str] = []
    for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', text):
        if word in OPERATORS:
            parts.append(word)
        elif re.search(r"\w", phrase or word):
            prefix = "*" if word.endswith("*") else ""
            parts.append('"' + (phrase or word).rstrip("*").replace("\x00", " ") + '"' + prefix)
    if not parts:
        raise QueryError("nothing to search for: give at least one letter, digit or underscore")
    for before, word, after in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        if word in OPERATORS and not (before and after and before not in OPERATORS and after not in OPERATORS):
            raise QueryError(
                f"{word} stands alone: it combines the words before and after it (as a word, put it in quotes)"
            )
    return " ".join(parts)


def where(filters: Filters) -> tuple[str, list[Any]]:
    """(tables and conditions, parameters)."""
    tables, conditions, values = "rollouts r", [], []
    if filters.q.strip():
        tables = "found f CROSS JOIN rollouts r ON r.id = f.rowid"
        conditions.append("found MATCH ?")
        values.append(match(filters.q))
    for name, column in COLUMNS.items():
        wanted = getattr(filters, name)
        if wanted:
            conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    for name, column in RUN_COLUMNS.items():
        wanted = getattr(filters, name)
        if wanted:
            conditions.append(f"r.run IN (SELECT id FROM runs WHERE {column} IN ({', '.join('?' * len(wanted))}))")
            values += wanted
    for bound, sign in (("step_min", ">="), ("step_max", "<=")):
        if getattr(filters, bound) is not None:
            conditions.append(f"r.step {sign} ?")
            values.append(getattr(filters, bound))
    if filters.verdict:
        conditions.append(f"({VERDICTS[filters.verdict]})")
    if filters.measured:
        conditions.append("r.cos IS NOT NULL")
    return tables + (" WHERE " + " AND ".join(conditions) if conditions else ""), values


@contextmanager
def searching(filters: Filters) -> Iterator[None]:
    """QueryError instead of what SQLite says of a search that its full-text index cannot read."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if filters.q and "fts5" in str(error):
            raise QueryError(f"the search cannot be understood ({error})") from None
        raise


SUMMARY = (
    "r.id, u.name AS run, u.arm, r.step, r.purpose, r.mode, r.problem, r.group_id AS 'group', r.idx AS 'index', r.label,"
    " r.status, r.published, r.oracle, r.forged, r.reward, r.advantage, r.tokens, r.logprob, r.cos"
)


def page(base: sqlite3.Connection, filters: Filters) -> dict[str, Any]:
    """{total, offset, limit, rows}; a row has what a list shows, and the words around a hit. QueryError."""
    clause, values = where(filters)
    order = SORTS[filters.sort].format("DESC" if filters.desc else "ASC")
    counted = clause.replace(" CROSS JOIN rollouts r ON r.id = f.rowid", "") if clause.count("r.") == 1 else clause
    with searching(filters):
        total = base.execute(f"SELECT count(*) FROM {counted}", values).fetchone()[0]
        ids = base.execute(
            f"SELECT r.id FROM {clause} ORDER BY {order} LIMIT ? OFFSET ?", [*values, filters.limit, filters.offset]
        ).fetchall()
    rows = [_summary(base, row["id"], filters) for row in ids]
    return {"total": total, "offset": filters.offset, "limit": filters.limit, "rows": [row for row in rows if row]}


def _summary(base: sqlite3.Connection, number: int, filters: Filters) -> dict[str, Any] | None:
    row = base.execute(
        f"SELECT {SUMMARY} FROM rollouts r JOIN runs u ON u.id = r.run WHERE r.id = ?", (number,)
    ).fetchone()
    if row is None:
        return None
    found = dict(row)
    found.pop("id")
    if filters.q.strip():
        found["snippet"] = base.execute(
            "SELECT snippet(found, -1, ?, ?, '…', 12) FROM found WHERE found MATCH ? AND rowid = ?",
            (*HIT, match(filters.q), number),
        ).fetchone()[0]
    return found


def one(base: sqlite3.Connection, run: str, group: str, index: int) -> dict[str, Any] | None:
    """The index's row of a completion, with the place of the rest: file, start, line, digest. None when there is none."""
    row = base.execute(
        f"SELECT {SUMMARY}, r.version, r.modification, r.finish, r.digest, r.cos_at, r.start, r.line, f.name AS file,"
        " u.seed, u.preset, u.model FROM rollouts r JOIN runs u ON u.id = r.run JOIN files f ON f.id = r.file"
        " WHERE u.name = ? AND r.group_id = ? AND r.idx = ? ORDER BY r.id DESC LIMIT 1",
        (run, group, index),
    ).fetchone()
    return dict(row) if row else None


def siblings(base: sqlite3.Connection, run: str, group: str) -> list[dict[str, Any]]:
    """The whole group of a completion, by index."""
    found = base.execute(
        "SELECT r.idx AS 'index', r.label, r.status, r.forged, r.reward, r.advantage, r.cos FROM rollouts r"
        " JOIN runs u ON u.id = r.run WHERE u.name = ? AND r.group_id = ? ORDER BY r.idx LIMIT 1024",
        (run, group),
    )
    return [dict(row) for row in found]


def health(base: sqlite3.Connection) -> dict[str, Any]:
    """What was skipped while reading, and where (the first 20 files)."""
    sums = base.execute(
        "SELECT count(*), coalesce(sum(torn), 0), coalesce(sum(open), 0), coalesce(sum(bad), 0) FROM files"
    ).fetchone()
    worst = base.execute(
        "SELECT u.name || '/rollouts/' || f.name AS file, f.torn, f.open, f.bad FROM files f JOIN runs u ON u.id = f.run"
        " WHERE f.torn OR f.open OR f.bad ORDER BY u.name, f.name LIMIT 20"
    ).fetchall()
    return {
        "files": sums[0], "torn_members": sums[1], "unfinished_files": sums[2], "bad_lines": sums[3],
        "where": [dict(row) for row in worst],
    }  # fmt: skip
