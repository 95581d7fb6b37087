"""python -m experiments watch RUN...: has a run left what clean runs do? For finished and running runs.

    python -m experiments watch --calibrate clean.json runs/clean-*      from clean runs of the same setting
    python -m experiments watch --clean clean.json runs/X runs/Y         a line a run: alarm or not, with its evidence

Exit code 0; 1 when a run rings. docs/alarm.md says when to believe it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.writable import require_file
from experiments.options import watch as parser
from rankspace import RankspaceError
from rankspace.hack_watch import CleanRuns, calibrate, read_rows, replay
from rankspace.run_source import name_of


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if (options.clean is None) == (options.calibrate is None):
        raise ConfigError("give --clean FILE to watch runs, or --calibrate FILE to make that file from clean runs")
    try:
        if options.calibrate is not None:
            return _calibrate(options.runs, options.calibrate, options.signals or None)
        found = watched(options.runs, CleanRuns.read(options.clean), options.false_alarm_rate)
    except RankspaceError as error:
        raise ConfigError(str(error)) from None
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return cli.EXIT_FAILED if any(row["alarm"] for row in found) else 0


def watched(paths: Sequence[Path], clean: CleanRuns, rate: float) -> list[dict[str, Any]]:
    """One dict a run: run, step (of its last row), ratio (S over its bound there), signal (that is highest), alarm (or
    None). RankspaceError: an unreadable run, or too few clean runs for the rate."""
    found = []
    for path in paths:
        rows = read_rows(path)
        watch = replay(rows, clean, rate)
        found.append({
            "run": name_of(path), "step": rows[-1]["step"] if rows else None, "ratio": watch.ratio,
            "alarm": None if watch.alarm is None else asdict(watch.alarm),
            "text": "" if watch.alarm is None else str(watch.alarm),
        })  # fmt: skip
    return found


def _calibrate(paths: Sequence[Path], out: Path, signals: list[str] | None) -> int:
    require_file(out, "--calibrate")
    ordered = sorted(paths, key=_by_seed)
    clean = calibrate([read_rows(path) for path in ordered], signals)
    try:
        clean.write(out)
    except OSError as error:
        raise ConfigError(f"--calibrate {out}: {error.strerror}; give a file that can be written") from None
    n = len(clean.maxima)
    print(f"{out}: {len(paths)} clean runs, {n} behind the bound (false-alarm rates from {1 / (n + 1):.3g} up), good for "
          f"{clean.horizon} steps; signals: {', '.join(clean.scales)}")  # fmt: skip
    return 0


def _by_seed(path: Path) -> tuple[int, str]:
    """Runs of one seed beside each other, so that the fifth that sets the scale has some of every arm."""
    seed = re.search(r"-s(\d+)$", name_of(path.resolve()))
    return int(seed[1]) if seed else -1, path.name


def _show(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 1000
    view = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "step", "statistic / bound", "alarm"):
        view.add_column(name, justify="left" if name in ("run", "alarm") else "right")
    for row in found:
        step = "-" if row["step"] is None else str(row["step"])
        view.add_row(row["run"], step, f"{row['ratio']:.2f}", row["text"] or "no", style="red" if row["alarm"] else "")
    console.print(view)
