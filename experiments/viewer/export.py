"""The page as files: report/viewer/ with a sample of the rollouts inside, to be opened without a server.

    index.html, static/...    the served page, unchanged but for one more script tag
    static/data.js            window.ROLLOUTS = {note, runs, rows, bad_lines}

A script tag and not a fetch, because browsers do not let a page from file:// read its neighbours. Which rollouts: of each
run, steps spread evenly from first to last, and of each step whole groups in the order of a hash of their names: without a
look at label or reward, so that nobody can pick, and the same each time. The page says how many of how many.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.analysis.run_files import Run
from experiments.viewer.detail import alarm, describe
from experiments.viewer.rows import RolloutRow, members, parse, parse_cos, printable, token_digest
from experiments.viewer.tokens import Tokenizers

STATIC = Path(__file__).parent / "static"
MAX_ROLLOUTS = 600
MAX_BYTES = 6 << 20
STEPS = 6  # of a run
MARK = '<script src="static/state.js"></script>'


def files(runs: Sequence[Run], limit: int = MAX_ROLLOUTS, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    """Every file by its path under the report: at most `limit` rollouts (a group is never cut) and about `max_bytes` of data."""
    found = {f"viewer/static/{path.relative_to(STATIC)}": path.read_bytes() for path in sorted(STATIC.rglob("*"))
             if path.is_file() and path.name != "index.html"}  # fmt: skip
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert MARK in page
    found["viewer/index.html"] = page.replace(MARK, '<script src="static/data.js"></script>\n' + MARK).encode()
    text = json.dumps(printable(sample(runs, limit, max_bytes)), allow_nan=False).replace("<", "\\u003c")
    found["viewer/static/data.js"] = f"window.ROLLOUTS = {text};\n".encode()
    return found


def sample(runs: Sequence[Run], limit: int, max_bytes: int) -> dict[str, Any]:
    """What stands in data.js."""
    kept, tokenizers = [], Tokenizers()
    room, space = limit, max_bytes
    total = bad = 0
    for number, run in enumerate(runs):
        groups, seen, lost = _groups(run)
        cosines = _cosines(run)
        total, bad = total + seen, bad + lost
        share, room_left = room // (len(runs) - number), space // (len(runs) - number)
        for group in _taken(groups, share):
            made = [_entry(run, row, cosines, tokenizers) for row in group]
            size = sum(len(json.dumps(printable(entry))) for entry in made)
            if size > room_left:
                break
            room, space, room_left = room - len(made), space - size, room_left - size
            kept += [(run.folder, row.step, entry) for row, entry in zip(group, made, strict=True)]
    rows = [entry for _, _, entry in sorted(kept, key=lambda item: item[:2])]
    return {
        "note": _note(len(rows), total, runs),
        "runs": [_listed(run) for run in runs],
        "rows": rows,
        "bad_lines": bad,
    }


def _note(shown: int, total: int, runs: Sequence[Run]) -> str:
    if shown == total:
        return f"All {total:,} rollouts of {len(runs)} run{'s' * (len(runs) != 1)}, as files."
    return (
        f"A sample: {shown:,} of {total:,} rollouts, whole groups of up to {STEPS} evenly spaced steps a run, chosen by a hash of"
        " their names. The served viewer (python -m experiments view) shows all."
    )


def _groups(run: Run) -> tuple[list[list[RolloutRow]], int, int]:
    """(groups of the sampled steps, interleaved by step in hash order; rollouts in the run; lines that are no rows)."""
    paths = sorted((run.path / "rollouts").glob("step_*.jsonl.gz"))
    count = min(STEPS, len(paths))
    wanted = {paths[round(i * (len(paths) - 1) / max(1, count - 1))] for i in range(count)}
    steps: list[list[list[RolloutRow]]] = []
    seen = bad = 0
    for path in paths:
        lines = [
            line for member in members(path.read_bytes()) for line in (member.text or b"").split(b"\n") if line.strip()
        ]
        seen += len(lines)
        if path not in wanted:
            continue
        rows = [parse(line) for line in lines]
        bad += sum(row is None for row in rows)
        groups: dict[str, list[RolloutRow]] = {}
        for row in rows:
            if row is not None:
                groups.setdefault(row.group_id, []).append(row)
        steps.append(sorted(groups.values(), key=lambda group: hashlib.sha256(group[0].group_id.encode()).digest()))
    depth = max(map(len, steps), default=0)
    return [groups[i] for i in range(depth) for groups in steps if i < len(groups)], seen - bad, bad


def _taken(groups: list[list[RolloutRow]], share: int) -> list[list[RolloutRow]]:
    taken: list[list[RolloutRow]] = []
    for group in groups:
        if len(group) > share:
            break
        share -= len(group)
        taken.append(group)
    return taken


def _cosines(run: Run) -> dict[tuple[str, int, str], tuple[float, str]]:
    found = {}
    for path in sorted((run.path / "rollouts").glob("cos_*.jsonl")):
        for row in map(parse_cos, path.read_bytes().splitlines()):
            if row is not None:
                found[row.group_id, row.index, row.tokens] = (row.cos, row.at)
    return found


def _entry(
    run: Run, row: RolloutRow, cosines: dict[tuple[str, int, str], tuple[float, str]], kept: Tokenizers
) -> dict[str, Any]:
    cos, at = cosines.get((row.group_id, row.index, token_digest(row.token_ids)), (None, None))
    summary = {
        "run": run.folder, "arm": run.arm, "step": row.step, "purpose": row.purpose, "mode": row.mode,
        "problem": str(row.problem_id), "group": row.group_id, "index": row.index, "label": row.label, "status": row.status,
        "published": row.published_correct, "oracle": row.oracle_correct, "forged": row.forged, "reward": row.reward,
        "advantage": row.advantage, "tokens": len(row.token_ids), "logprob": row.mean_logprob, "cos": cos, "cos_at": at,
    }  # fmt: skip
    known = describe(row, kept.of(str(run.config.get("model") or ""))) | {"alarm": alarm(run.path)}
    return {"summary": summary, "detail": known}


def _listed(run: Run) -> dict[str, Any]:
    """What the page says of a run; it counts the sample itself."""
    return {"name": run.folder, "arm": run.arm, "seed": run.seed, "preset": run.preset, "state": run.status.state}
