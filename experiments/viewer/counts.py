"""What the page counts: facets beside the filters, curves over steps, one problem across runs.

A facet's counts are taken under every filter but its own: they say what a click would show. One pass over the rollouts
groups by all facets at once (some hundred cells); a facet that is itself filtered takes one more.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any

from experiments.viewer.query import SUMMARY, Filters, searching, where

FACETS = ("label", "mode", "purpose", "status", "modification")
MOST = 200  # values listed of one facet
RUNS_BESIDE = 12


def _cells(base: sqlite3.Connection, filters: Filters) -> list[sqlite3.Row]:
    """Counts by run and all facets at once, with the flags and the range of steps of each cell."""
    clause, values = where(filters)
    with searching(filters):
        return base.execute(
            f"SELECT r.run, {', '.join('r.' + name for name in FACETS)}, coalesce(r.forged, 0) AS forged,"
            " r.cos IS NOT NULL AS measured, count(*) AS n, min(r.step) AS first, max(r.step) AS last"
            f" FROM {clause} GROUP BY 1, 2, 3, 4, 5, 6, 7, 8",
            values,
        ).fetchall()


def facets(base: sqlite3.Connection, filters: Filters) -> dict[str, Any]:
    """What there is to choose from, and how many rollouts each choice would leave. QueryError for a bad search."""
    every = _cells(base, filters)

    def cells(*names: str) -> list[sqlite3.Row]:
        """Without the filters that this facet sets itself."""
        return (
            _cells(base, filters.without(*names))
            if any(getattr(filters, n) != Filters.model_fields[n].get_default(call_default_factory=True) for n in names)
            else every
        )

    def counted(name: str) -> list[dict[str, Any]]:
        sums: Counter[str] = Counter()
        for cell in cells(name):
            if cell[name] is not None:
                sums[cell[name]] += cell["n"]
        chosen = {value: 0 for value in getattr(filters, name) if value not in sums}  # so that it can be taken back
        return [{"value": v, "count": n} for v, n in [*sums.most_common(MOST), *chosen.items()]]

    steps, asked = cells("step_min", "step_max"), cells("verdict")
    return {
        **{name: counted(name) for name in FACETS},
        **_runs(base, cells("run"), cells("arm")),
        "steps": [min((c["first"] for c in steps), default=None), max((c["last"] for c in steps), default=None)],
        "forged": sum(c["n"] for c in asked if c["forged"]),
        "measured": sum(c["n"] for c in cells("measured") if c["measured"]),
        "total": base.execute("SELECT count(*) FROM rollouts").fetchone()[0],
    }


def _runs(
    base: sqlite3.Connection, for_runs: list[sqlite3.Row], for_arms: list[sqlite3.Row]
) -> dict[str, list[dict[str, Any]]]:
    per_run: Counter[int] = Counter()
    for cell in for_runs:
        per_run[cell["run"]] += cell["n"]
    runs = base.execute("SELECT id, name, arm, seed, preset, state, steps, model FROM runs ORDER BY name").fetchall()
    arm_of, per_arm = {run["id"]: run["arm"] for run in runs}, Counter[str]()
    for cell in for_arms:
        if arm_of.get(cell["run"]) is not None:
            per_arm[arm_of[cell["run"]]] += cell["n"]
    listed = [{k: run[k] for k in run.keys() if k != "id"} | {"count": per_run[run["id"]]} for run in runs]  # noqa: SIM118
    arms = sorted({run["arm"] for run in runs if run["arm"] is not None})
    return {"runs": listed, "arms": [{"value": arm, "count": per_arm[arm]} for arm in arms]}


def curves(base: sqlite3.Connection, filters: Filters) -> dict[str, Any]:
    """Per run and training step: rollouts, share of strict hacks, share solved. Filters of run, arm and problem hold.

    {runs: [{run, arm, points: [[step, count, hacks, solved or None], ...]}]}
    """
    kept = Filters(run=filters.run, arm=filters.arm, problem=filters.problem, purpose=["train"])
    clause, values = where(kept)
    found: dict[int, list[list[float | None]]] = {}
    for row in base.execute(
        "SELECT r.run, r.step, count(*) AS n, avg(r.label IS 'Reward Hack') AS hacks, avg(r.oracle) AS solved"
        f" FROM {clause} AND r.status = 'graded' GROUP BY 1, 2 ORDER BY 1, 2",
        values,
    ):
        found.setdefault(row["run"], []).append([row["step"], row["n"], row["hacks"], row["solved"]])
    runs = base.execute("SELECT id, name, arm FROM runs ORDER BY name").fetchall()
    return {"runs": [{"run": r["name"], "arm": r["arm"], "points": found[r["id"]]} for r in runs if r["id"] in found]}


def beside(base: sqlite3.Connection, problem: str, purpose: str, step: int) -> dict[str, Any]:
    """One problem across runs: of each run the group whose step is nearest to `step`, with all its completions.

    {columns: [{run, arm, step, group, rows: [summary, ...]}], left_out: runs beyond the first 12}
    """
    groups = base.execute(
        "SELECT r.run, r.step, r.group_id, r.mode FROM rollouts r WHERE r.problem = ? AND r.purpose = ?"
        " GROUP BY r.run, r.group_id ORDER BY r.run, abs(r.step - ?), r.step DESC, r.group_id",
        (problem, purpose, step),
    ).fetchall()
    nearest: dict[int, sqlite3.Row] = {}
    for group in groups:
        nearest.setdefault(group["run"], group)
    columns = []
    for group in list(nearest.values())[:RUNS_BESIDE]:
        rows = base.execute(
            f"SELECT {SUMMARY} FROM rollouts r JOIN runs u ON u.id = r.run WHERE r.run = ? AND r.group_id = ?"
            " ORDER BY r.idx LIMIT 256",
            (group["run"], group["group_id"]),
        ).fetchall()
        summaries = [{k: row[k] for k in row.keys() if k != "id"} for row in rows]  # noqa: SIM118
        first = summaries[0]
        columns.append(
            {
                "run": first["run"],
                "arm": first["arm"],
                "step": first["step"],
                "group": first["group"],
                "rows": summaries,
            }
        )
    return {"columns": columns, "left_out": max(0, len(nearest) - RUNS_BESIDE)}
