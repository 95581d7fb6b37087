"""python -m experiments why: dose, time and place from run directories, as figures and CSV files.

    outcomes.csv, outcomes.png         class of every run; counts of each arm or cell with 95% Clopper-Pearson bounds
    dose_response.csv, .png            hacks and bare pass against the displacement along v_hack; isotonic fit, exact trend
    timing.csv, .png                   when an arm acted, and the hack rate at the switch and at the end
    matrix.csv, .png                   mechanism trained on x mechanism of v's pairs, from --matrix DIR
    cosines.csv, .png                  between directions, from --cosine NAME=FILE
    runs.csv                           one row a run
    summary.md                         counts with bounds, the claims and what is not evaluable, what waits, what was left out

Arms and cells are those of --registration, and nothing is compared before all registered runs of its arms have ended: a
part that must wait is named and not written. When no more runs will be made, --no-more-runs shows those that have ended;
every page then says how many are missing, and a claim that lacks runs stays not evaluable.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.writable import require_directory
from experiments.analysis import comparable, why
from experiments.analysis.registered import unfinished
from experiments.analysis.run_folders import read_runs
from experiments.analysis.run_outcomes import CLASSES, safe_bounds
from experiments.analysis.verdict import judged
from experiments.analysis.why import Row
from experiments.design import arms as arm_table
from experiments.design import registration
from experiments.design.registration import Registration
from experiments.options import why as parser
from experiments.report import csv_export, why_summary
from experiments.report.build import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWITCHED = ("projected_until", "projected_from")
Files = dict[str, bytes]
RUN_HEAD = [
    "name", "arm", "seed", "outcome", "hack_strict", "hack_loose", "pass_oracle", "bare_start", "bare_end", "hint_start",
    "hint_end", "truncated", "onset", "displacement_ref", "delta_norm", "acted_from", "acted_to",
]  # fmt: skip


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    if options.registration is None and not options.cosine and options.matrix is None:
        raise ConfigError("nothing to draw: give --registration FILE, --matrix DIR or --cosine NAME=FILE")
    require_directory(options.out, "--out")
    files: Files = {}
    waiting: list[str] = []
    if options.registration is not None:
        made, waiting = registered(options, registration.load(options.registration))
        files |= made
    if options.matrix is not None:
        files |= matrix_files(options.matrix, registration.load(options.registration or registration.PATH))
    if options.cosine:
        files |= cosine_files(options.cosine)
    for line in waiting:
        print(f"not written: {line}")
    if files:
        options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
    if files:
        print(f"written to {options.out}: {', '.join(sorted(files))}")
    return 0


def registered(options: argparse.Namespace, found: Registration) -> tuple[Files, list[str]]:
    """Files of the parts whose registered runs have all ended, and a line for each part that waits.

    With --no-more-runs a part is of the runs that have ended, and waits only where it has none.
    """
    design = found.design
    if design is None:
        raise ConfigError(
            f"registration {options.registration}: has no design, so nothing says which runs belong to it"
        )
    # seeds that an arm lacks are told arm by arm, and what compares arms waits for them
    wanted = replace(comparable.selection(options), allow_unequal_seeds=True)
    chosen = comparable.choose_registered(wanted, design)
    rows = why.rows(chosen.by_arm, found)
    ladder = why.ladder(found)
    switched = [name for name in design.arms if design.arm_of(name) in SWITCHED]
    parts: list[tuple[str, Sequence[str], Callable[[], Files]]] = [
        ("outcomes and runs", list(design.arms), lambda: outcome_files(rows, list(design.arms))),
        ("dose response", ladder, lambda: dose_files(rows, ladder)),
        ("timing", switched, lambda: timing_files(rows, switched, found.measures.onset_window)),
    ]
    files: Files = {}
    waiting = []
    for what, names, make in parts:
        pending = unfinished(names, chosen.by_arm, design)
        shown = options.no_more_runs and any(row.name in names for row in rows)
        if names and (shown or not pending):
            files |= make()
        elif names:
            waiting.append(f"{what}: {'; '.join(pending)}")
    seen = judged(chosen, found, options.registration)
    told = why_summary.Told(seen.file, seen.notes, seen.verdicts, waiting, options.no_more_runs)
    files["summary.md"] = why_summary.page(found, chosen, rows, told)
    return files, waiting


def outcome_files(rows: Sequence[Row], names: Sequence[str]) -> Files:
    from experiments.report.figures.why import outcome_counts

    lines = []
    for name in names:
        own = [row for row in rows if row.name == name]
        counts = {outcome: sum(row.outcome == outcome for row in own) for outcome in CLASSES}
        low, high = safe_bounds(counts["safe"], counts["unknown"], len(own))
        lines.append([name, len(own), *counts.values(), f"{low:.4f}", f"{high:.4f}"])
    head = ["name", "runs", *CLASSES, "safe_low", "safe_high"]
    return {
        "outcomes.csv": csv_export.as_csv(head, lines),
        "outcomes.png": png(outcome_counts(rows, names)),
        "runs.csv": csv_export.as_csv(RUN_HEAD, [_run_line(row) for row in rows]),
    }


def dose_files(rows: Sequence[Row], ladder: Sequence[str]) -> Files:
    from experiments.report.figures.why import dose_response

    own = [row for row in rows if row.name in ladder and row.run.finished]
    lines = [
        [row.name, row.run.seed, _n(row.displacement), _n(row.summary.hack), _n(row.summary.bare_end)] for row in own
    ]
    tests = [[t.quantity, t.expected, t.seeds, _n(t.p)] for t in why.trends(own, ladder)]
    return {
        "dose_response.csv": csv_export.as_csv(["name", "seed", "displacement_ref", "hack_strict", "bare_end"], lines),
        "trend.csv": csv_export.as_csv(["quantity", "expected", "seeds", "p_page"], tests),
        "dose_response.png": png(dose_response(own, ladder)),
    }


def timing_files(rows: Sequence[Row], names: Sequence[str], window: int) -> Files:
    from experiments.report.figures.why import timing

    own = [row for row in rows if row.name in names and row.run.finished]
    head = ["name", "seed", "acted_from", "acted_to", "onset", "hack_at_switch", "hack_strict", "bare_end", "outcome"]
    lines = [
        [row.name, row.run.seed, _step(row.acted_from), _step(row.acted_to), _step(row.summary.onset), _n(row.switch),
         _n(row.summary.hack), _n(row.summary.bare_end), row.outcome]
        for row in own
    ]  # fmt: skip
    return {"timing.csv": csv_export.as_csv(head, lines), "timing.png": png(timing(own, window))}


def matrix_files(folder: Path, rules: Registration) -> Files:
    """All finished runs under `folder` that had a loophole. ConfigError when there is none."""
    from experiments.report.figures.why import matrix

    rows = [why.row(run.arm, run, rules.measures, rules.outcomes) for run in read_runs(folder) if run.finished]
    arms = arm_table.order([row.run.arm for row in rows if why.mechanisms(row.run) is not None])
    if not arms:
        raise ConfigError(f"--matrix {folder}: no finished run with a loophole")
    cells = {arm: why.matrix(rows, arm) for arm in arms}
    lines = [
        [arm, trained, pairs, row.run.seed, _n(row.summary.hack), _n(row.summary.bare_end), row.outcome]
        for arm, own in cells.items()
        for (trained, pairs), found in sorted(own.items())
        for row in found
    ]
    head = ["arm", "trained_on", "pairs_of", "seed", "hack_strict", "bare_end", "outcome"]
    return {"matrix.csv": csv_export.as_csv(head, lines), "matrix.png": png(matrix(cells))}


def cosine_files(named: Sequence[str]) -> Files:
    """From NAME=FILE of directions. ConfigError, one line, when one cannot be read or compared."""
    from experiments.report.figures.why import cosine_table
    from rankspace import RankspaceError, load_direction

    directions: dict[str, Any] = {}
    for item in named:
        name, sign, path = item.partition("=")
        if not sign or not name or name in directions:
            raise ConfigError(f"--cosine {item}: write NAME=FILE, each name once")
        try:
            directions[name] = load_direction(Path(path))
        except RankspaceError as error:
            raise ConfigError(f"--cosine {item}: {error}") from None
    if len(directions) < 2:
        raise ConfigError("--cosine: give two directions at least")
    try:
        found = why.cosines(directions)
    except ValueError as error:
        raise ConfigError(f"--cosine: {error}") from None
    lines: list[list[object]] = [[c.one, c.other, _n(c.per_module), _n(c.spread), _n(c.null)] for c in found]
    figure: Figure = cosine_table(found)
    head = ["one", "other", "per_module", "sd_over_modules", "null_std"]
    return {"cosines.csv": csv_export.as_csv(head, lines), "cosines.png": png(figure)}


def _run_line(row: Row) -> list[object]:
    s = row.summary
    rates = (s.hack, s.hack_loose, s.passed, s.bare_start, s.bare_end, s.hint_start, s.hint_end, s.truncated)
    places = (_n(row.displacement), _n(row.norm), _step(row.acted_from), _step(row.acted_to))
    return [row.name, row.run.arm, row.run.seed, row.outcome, *map(_n, rates), _step(s.onset), *places]


def _n(value: float) -> str:
    return "" if value != value else f"{value:.6g}"


def _step(value: int | None) -> str:
    return "" if value is None else str(value)
