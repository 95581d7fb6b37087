"""One completion with all that is known of it, for the page. The index knows where it is; the files hold it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from experiments.viewer import code, query, rows, tokens
from experiments.viewer.index import run_path

MAX_PROMPT = 65536  # tokens
WINDOW = 8192  # tokens a page of the token view: a browser draws some ten thousand elements in a second


def detail(
    base: sqlite3.Connection,
    root: Path,
    kept: tokens.Tokenizers,
    run: str,
    group: str,
    index: int,
    token_from: int = 0,
) -> dict[str, Any] | None:
    """The index's row, what the file says beside it, and the group. None when there is no such completion (any more).
    Of the tokens those of one window, from `token_from` on.

    `run` and `group` are looked up, never used as a path: the path is made of names that the index found on disk.
    """
    known = query.one(base, run, group, index)
    if known is None:
        return None
    path = run_path(root, known["run"]) / "rollouts" / known.pop("file")
    row = _row(path, known.pop("start"), known.pop("line"))
    if (
        row is None
        or (row.group_id, row.index) != (group, index)
        or rows.token_digest(row.token_ids) != known["digest"]
    ):
        return None  # the file was written anew since; the next scan puts that right
    more = {"siblings": query.siblings(base, run, group), "alarm": alarm(run_path(root, known["run"]))}
    return known | describe(row, kept.of(known["model"]), token_from) | more


def alarm(run: Path) -> dict[str, Any] | None:
    """Step and text of the run's alarm (alarm.json of the trainer), None where none rang or it cannot be read."""
    try:
        found = json.loads((run / "alarm.json").read_text())
        return {"step": int(found["step"]), "text": str(rows.printable(found["text"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(row: rows.RolloutRow, tokenizer: Any | None, token_from: int = 0) -> dict[str, Any]:
    """What does not depend on the index: text in parts and pieces, verdict fields, evidence. JSON-able.

    `token_ids`, `logprobs` and `pieces` are those of [token_from, token_from + WINDOW); pieces count from `token_from`.
    """
    text = str(rows.printable(row.text))
    end = token_from + WINDOW
    found = tokens.pieces(tokenizer, row.token_ids, row.text, end)
    if found is not None:
        why = ""
    elif tokenizer is None:
        why = "the run's model directory has no tokenizer here"
    else:
        why = "this tokenizer does not give back the completion's text"
    parts = [[part.kind, text[part.start : part.end]] for part in code.parts(text, row.evidence)]
    return {
        "parts": parts,
        "pieces": None if found is None else [
            [max(p.first, token_from) - token_from, min(p.last, end) - token_from, rows.printable(p.text)]
            for p in found if p.first < end and p.last > token_from
        ],
        "no_pieces": why, "token_from": token_from, "window": WINDOW,
        "token_ids": row.token_ids[token_from:end], "logprobs": rows.printable(row.logprobs[token_from:end]),
        "prompt": _prompt(row, tokenizer), "prompt_tokens": None if row.prompt_ids is None else len(row.prompt_ids),
        "evidence": rows.printable(row.evidence), "reason": rows.printable(row.reason),
        "test_name": code.test_name(row.evidence), "version": row.policy_version, "finish": row.finish_reason,
        "modification": row.test_modification,
    }  # fmt: skip


def _prompt(row: rows.RolloutRow, tokenizer: Any | None) -> str | None:
    ids = row.prompt_ids
    if ids is None or tokenizer is None or len(ids) > MAX_PROMPT or any(i < 0 or i >= 1 << 32 for i in ids):
        return None
    return str(rows.printable(tokenizer.decode(ids, skip_special_tokens=False)))


def _row(path: Path, start: int, line: int) -> rows.RolloutRow | None:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            member = next(rows.members(file.read(), start), None)
    except OSError:
        return None
    lines = (member.text or b"").split(b"\n") if member is not None else []
    return rows.parse(lines[line]) if line < len(lines) else None
