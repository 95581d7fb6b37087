"""python -m experiments keep --runs DIR --out DIR: keep finished runs as small files that can be committed, one a run.

    python -m experiments keep --registration experiments/design/registrations/alarm.yaml --out docs/results/alarm/runs
    python -m experiments alarm --runs docs/results/alarm/runs runs --out DIR

A kept run (<run_id>.tar.xz) has settings, provenance, the rows of metrics.jsonl and eval.jsonl and what the direction says of
itself; no rollouts, checkpoints or logs, and no path or address of the machine. Commands with --runs read it as they read run
directories. Started again, the command adds what is new; a run that is kept with other contents is refused, and then nothing
is written. It prints counts and seeds, no results.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.writable import require_directory
from experiments.analysis import slim
from experiments.analysis.run_files import Run
from experiments.analysis.run_folders import read_runs
from experiments.design import prereg, series
from experiments.design.series import Part, ranges
from experiments.options import keep as parser
from rankspace.run_source import KEPT

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass
class Sorted:
    """Runs by what becomes of them. kept: by part. foreign: of no part of the registration. wrong: a line each."""

    kept: dict[str, list[Run]] = field(default_factory=dict)
    foreign: int = 0
    unfinished: int = 0
    wrong: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    require_directory(options.out, "--out")
    parts = None if options.registration is None else series.parts(options.registration)
    found = sort(read_runs(options.runs), parts, options.failed)
    new = _new([run for own in found.kept.values() for run in own], options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for run_id, files in new.items():
            slim.write(files, run_id, options.out)
    except OSError as error:
        raise ConfigError(f"--out {options.out}: {error.strerror}; give a directory that can be written") from None
    print("\n".join(_told(found, set(new), options)))
    return 0


def sort(runs: Sequence[Run], parts: Sequence[Part] | None, failed: bool = False) -> Sorted:
    """Which runs are kept. No measurement of a run is looked at. parts: of the registration; None: every run is of one.

    failed: also failed runs of parts in which such a run is a result.
    """
    found = Sorted()
    for run in runs:
        part = part_of(run, parts or ())
        counts = failed and run.status.state == "failed" and (parts is None or (part is not None and part.failed_count))
        fault = part.fault(run.config) if part else ""
        if parts is not None and part is None:
            found.foreign += 1
        elif not run.finished and not counts:
            found.unfinished += 1
        elif fault:
            found.wrong.append(f"{run.run_id}: {fault}")
        else:
            label = part.label if part else f"{run.called}-{run.arm}"
            found.kept.setdefault(label, []).append(run)
    return found


def part_of(run: Run, parts: Sequence[Part]) -> Part | None:
    """The part of a registration that a run is of."""
    return next((p for p in parts if p.has(run.preset, run.called, run.arm, run.seed, run.config)), None)


def _new(runs: Sequence[Run], out: Path) -> dict[str, dict[str, bytes]]:
    """Contents of the runs that are not kept yet, by run_id. ConfigError for one that is, with other contents."""
    new: dict[str, dict[str, bytes]] = {}
    for run in runs:
        if not _RUN_ID.fullmatch(run.run_id):
            raise ConfigError(
                f"{run.path}: run_id {run.run_id!r} is no file name; use letters, digits, '.', '_' and '-'"
            )
        files, path = slim.contents(run.path), out / f"{run.run_id}{KEPT}"
        before = slim.contents(path) if path.exists() else new.get(run.run_id)
        if before is not None and before != files:
            raise ConfigError(
                f"{run.path}: another run {run.run_id} is kept in {out}, and a run counts once; move one of them away"
            )
        if before is None:
            new[run.run_id] = files
    return new


def _told(found: Sorted, new: set[str], options: argparse.Namespace) -> list[str]:
    lines = []
    for label, runs in found.kept.items():
        added = sum(run.run_id in new for run in runs)
        lines.append(f"{label}: {len(runs)} kept, {added} of them new; seeds {ranges([run.seed for run in runs])}")
    lines.append(f"{options.out}: {len(new)} new, {len(slim.kept_in(options.out))} kept in all")
    if found.unfinished:
        lines.append(f"not kept: {found.unfinished} not finished")
    if found.foreign:
        lines.append(f"not kept: {found.foreign} of no group of {options.registration.name}")
    lines += [f"not kept: {line}" for line in found.wrong]
    return lines + _begun_elsewhere(found, options.registration)


def _begun_elsewhere(found: Sorted, registration: Path | None) -> list[str]:
    """A line where runs began under another version of the file: they are kept, and every page says so of them."""
    if registration is None:
        return []
    now = prereg.digest(registration)
    runs = [run for own in found.kept.values() for run in own]
    other = sum(run.provenance.registrations.get(registration.name) != now for run in runs)
    return [f"note: {other} of these began under another version of {registration.name}"] if other else []
