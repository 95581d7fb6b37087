"""python -m experiments status: which services run, what work waits, and a line for every run.

A run that is still being made ready says how far its extraction or SVD is; a model on its way how much of it is here.
Exit code 0; with --stack 1 when no stack runs. --json gives the runs as a list, --stack --json the stacks.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from experiments import preparing, status_view
from experiments.analysis import slim
from experiments.analysis.measures import summarise
from experiments.analysis.run_files import Run, age_seconds, read_run
from experiments.analysis.run_folders import find_runs
from experiments.design import prereg
from experiments.launch import live_services
from experiments.launch.run import status as status_of
from experiments.options import status as parser

STALE_AFTER_S = 600.0
LATELY = 10  # steps


def rows(root: Path, now: datetime | None = None) -> list[dict[str, Any]]:
    """One dict a run; an unreadable run is a row with state 'unreadable', so that one bad directory hides no other."""
    rules = prereg.load().measures
    waiting = preparing.runs(root)
    table = [_waiting(path, now) for path in waiting]
    for path in [] if waiting and _empty(root) else find_runs(root):
        if path in waiting:
            continue
        try:
            run = read_run(path)
        except ConfigError as error:
            table.append({"run": path.name, "state": "unreadable", "reason": str(error)})
            continue
        age, note = age_seconds(run.status, now), _again(run, now)
        silent = run.status.state == "running" and age > STALE_AFTER_S
        state = "preparing" if note else "silent" if silent else run.status.state
        summary = summarise(run, rules)
        table.append({
            "run": run.run_id, "preset": run.preset, "arm": run.arm, "seed": run.seed,
            "state": state, "step": run.steps_done, "steps": run.status.steps,
            "hack": _finite(summary.hack), "pass": _finite(summary.passed), "age_s": age, "left_s": _left(run),
            "reason": "; ".join(part for part in (note, run.status.reason, *run.notes) if part),
        })  # fmt: skip
    return sorted(table, key=lambda row: str(row["run"]))


def _waiting(path: Path, now: datetime | None) -> dict[str, Any]:
    """The row of a run before its first word: how far what comes before it is."""
    line, when = preparing.progress(path)
    age = preparing.age(when, now)
    silent = age is not None and age > STALE_AFTER_S
    unknown = dict.fromkeys(("preset", "arm", "seed", "step", "steps", "hack", "pass", "left_s"))
    state = "silent" if silent else "preparing"
    return {"run": path.name, **unknown, "state": state, "age_s": age, "reason": line or "starting"}


def _again(run: Run, now: datetime | None) -> str:
    """How far a run is that is being made ready to go on; empty for one that is not."""
    line, when = preparing.progress(run.path)
    written = preparing.age(when, now)
    recent = written is not None and written < min(age_seconds(run.status, now), STALE_AFTER_S)
    return line if recent and not run.finished else ""


def _left(run: Run) -> float | None:
    """Seconds that a running run still needs, by the median of its last steps; evaluations are not counted."""
    took = [float(x) for x in run.series.get("seconds_total", ())[-LATELY:] if x == x]
    left = run.status.steps - run.steps_done
    return statistics.median(took) * left if took and left > 0 and run.status.state == "running" else None


def _finite(value: float) -> float | None:
    return value if value == value else None


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.watch is not None and not options.watch > 0:
        raise ConfigError(f"--watch {options.watch}: give seconds above 0")
    where = (options.runs, options.redis_url, options.redis_username, options.redis_password_file)

    def now() -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, list[dict[str, Any]]]:
        wanted = options.stack or not options.json
        stacks = live_services.running(live_services.candidates(*where)) if wanted else []
        for stack in stacks:
            _say_how_trainers_ended(stack["policies"], options.runs)
        return stacks, None if options.stack else _rows(options.runs, options.json), preparing.models()

    if options.watch is not None:
        return _watch(now, options.watch, options.json)
    stacks, table, models = now()
    if options.json:
        print(json.dumps(stacks if table is None else table, indent=1))
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console.width = 1000  # a pipe has no width: commands stay on one line
        console.print(status_view.page(stacks, table, models))
    return cli.EXIT_FAILED if options.stack and not stacks else 0


def _say_how_trainers_ended(policies: list[dict[str, Any]], root: Path) -> None:
    """In place of 'gone': finished, stopped or failed, where the run's directory says so; a killed one says running."""
    for row in policies:
        said = status_of(root / str(row["run"])) if row["trainer"] == "gone" else None
        if said is not None and said["state"] in ("finished", "stopped", "failed"):
            row["trainer"] = said["state"]


def _rows(root: Path, as_json: bool) -> list[dict[str, Any]]:
    """The runs. That the usual directory holds none yet is no error for a person who looks; for a program it is."""
    first = root == Path("runs") and not root.exists()
    empty = root.is_dir() and _empty(root) and not preparing.runs(root)
    return [] if (first or empty) and not as_json else rows(root)


def _empty(root: Path) -> bool:
    """Whether no run under `root` has been started."""
    return (
        not any(root.glob("*/provenance.json")) and not (root / "provenance.json").is_file() and not slim.kept_in(root)
    )


def _watch(now: Callable[[], Any], seconds: float, as_json: bool) -> int:
    """Until Ctrl-C, which is how it ends: exit code 0."""
    from rich.live import Live

    try:
        if as_json:
            while True:
                stacks, table, _ = now()
                print(json.dumps(stacks if table is None else table), flush=True)
                time.sleep(seconds)
        with Live(status_view.page(*now()), auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(status_view.page(*now()), refresh=True)
    except KeyboardInterrupt:
        return 0
