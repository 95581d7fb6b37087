"""`python -m experiments status`: one line a run: state, step, hack and pass rate so far, last sign of life."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from experiments import prereg
from experiments.measures import summarise
from experiments.runs import age_seconds, find_runs, read_run

STALE_AFTER_S = 600.0


def rows(root: Path, now: datetime | None = None) -> list[dict[str, Any]]:
    """One dict a run; an unreadable run is a row with state 'unreadable', so that one bad directory hides no other."""
    rules, table = prereg.load().measures, []
    for path in find_runs(root):
        try:
            run = read_run(path)
        except ConfigError as error:
            table.append({"run": path.name, "state": "unreadable", "reason": str(error)})
            continue
        age = age_seconds(run.status, now)
        silent = run.status.state == "running" and age > STALE_AFTER_S
        summary = summarise(run, rules)
        table.append({
            "run": run.run_id, "preset": run.preset, "arm": run.arm, "seed": run.seed,
            "state": "silent" if silent else run.status.state, "step": run.steps_done, "steps": run.status.steps,
            "hack": _finite(summary.hack), "pass": _finite(summary.passed), "age_s": age,
            "reason": "; ".join(part for part in (run.status.reason, *run.notes) if part),
        })  # fmt: skip
    return table


def _finite(value: float) -> float | None:
    return value if value == value else None


def age_text(seconds: float) -> str:
    """'12 s', '3 min', '5.0 h', '2.0 d'."""
    for limit, unit, size, digits in ((90, "s", 1, 0), (5400, "min", 60, 0), (172800, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments status", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="run directories (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(argv)
    table = rows(options.runs)
    if options.json:
        print(json.dumps(table, indent=1))
        return 0
    _print(table)
    return 0


def _print(table: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"finished": "green", "running": "cyan", "silent": "yellow", "stopped": "yellow"}
    view = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "step", "hack %", "pass %", "age", "note"):
        view.add_column(name, justify="right" if name in ("step", "hack %", "pass %", "age") else "left")
    for row in table:
        state = Text(row["state"], style=colours.get(row["state"], "red"))
        if row["state"] == "unreadable":
            view.add_row(row["run"], state, "", "", "", "", row["reason"])
            continue
        percent = [f"{100 * row[key]:.1f}" if row[key] is not None else "-" for key in ("hack", "pass")]
        view.add_row(
            row["run"], state, f"{row['step']}/{row['steps']}", *percent, age_text(row["age_s"]), row["reason"]
        )
    Console().print(view)
