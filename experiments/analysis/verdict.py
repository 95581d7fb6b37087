"""`python -m experiments verdict`: every preregistered claim against the finished runs, with the numbers behind it.

Four answers, never fewer lines than claims: supported, falsified, inconclusive (between the thresholds, or too few
seeds), not evaluable (the runs needed are not there, or there was nothing to suppress). Only finished runs count.
`--registration FILE` judges by another registration; one of version 2 (outcome classes and exact tests) picks its own
preset, arms and seeds from --runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.analysis import comparable, registered
from experiments.analysis.answers import State, Verdict
from experiments.analysis.beside import Beside, beside
from experiments.analysis.comparable import Chosen, short_ids
from experiments.analysis.measures import summarise
from experiments.analysis.rules import evaluate, finished_by_arm
from experiments.design import prereg, registration
from experiments.design.prereg import Measures, Preregistration
from experiments.design.registration import Registration
from experiments.options import verdict as parser

__all__ = ["State", "Verdict", "evaluate", "finished_by_arm", "main", "registration_notes"]


@dataclass(frozen=True)
class Page:
    """Everything that the command prints. rules: those of the outcome classes. measures: windows of the numbers."""

    chosen: Chosen
    file: str
    digest: str
    verdicts: list[Verdict]
    notes: list[str]
    beside: Beside
    rules: Registration
    measures: Measures


def registration_notes(chosen: Chosen, now: str | None = None, file: str = prereg.PATH.name) -> list[str]:
    """One line per digest that runs were started under and that is not the file's digest now; [] when all agree."""
    now = now or prereg.digest()
    groups: dict[str, list[str]] = {}
    for run in chosen.runs:
        first = file == prereg.PATH.name
        then = run.provenance.prereg_sha256 if first else run.provenance.registrations.get(file, "")
        if not then or not now.startswith(then):  # a CSV file keeps the first twelve digits
            groups.setdefault(then, []).append(run.run_id)
    return [
        f"NOT PREREGISTERED: {file} is {now[:12]} now but was {then[:12] or 'unknown'} when these runs began: "
        f"{', '.join(short_ids(names))}. What follows judges them by rules written or edited later."
        for then, names in groups.items()
    ]


def page(options: argparse.Namespace) -> Page:
    """Read the registration and the runs, and judge. ConfigError."""
    path = options.registration or prereg.PATH
    found = registration.load_any(path)
    wanted = comparable.selection(options)
    design = found.design if isinstance(found, Registration) else None
    chosen = comparable.choose_registered(wanted, design) if design else comparable.choose(wanted)
    return judged(chosen, found, path)


def judged(chosen: Chosen, found: Preregistration | Registration, path: Path = prereg.PATH) -> Page:
    """The claims of a registration, read from `path`, against chosen runs; the outcome classes are its own, or those of
    preregistration_outcomes.yaml."""
    if isinstance(found, Preregistration):
        verdicts, rules = evaluate(found, finished_by_arm(chosen, found)), registration.load()
    else:
        arms = {name: [summarise(run, found.measures) for run in runs] for name, runs in chosen.by_arm.items()}
        verdicts, rules = registered.evaluate(found, arms), found
    now, name = prereg.digest(path), Path(path).name
    notes = registration_notes(chosen, now, name)
    shown = beside(registered.ended(chosen, rules.design), rules)
    return Page(chosen, name, now, verdicts, notes, shown, rules, found.measures)


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    found = page(options)
    if options.json:
        json.dump({"preset": found.chosen.preset, "registration": found.file, "prereg_sha256": found.digest,
                   "not_preregistered": found.notes, "warnings": found.chosen.warnings,
                   "left_out": found.chosen.left_out, "verdicts": [asdict(v) for v in found.verdicts],
                   "outcomes": found.beside.json()}, sys.stdout, indent=1)  # fmt: skip
        print()
        return 0
    _print(found)
    return 0


def _print(found: Page) -> None:
    chosen = found.chosen
    what = "preregistration" if found.file == prereg.PATH.name else found.file
    print(f"preset {chosen.preset}, {what} {found.digest[:12]}")
    for line in found.notes:
        print(f"!! {line}")
    for line in chosen.warnings:
        print(f"warning: {line}")
    for run in chosen.runs:
        if not run.finished:
            print(f"not counted: {run.run_id} is {run.status.state} at {run.steps_done} of {run.status.steps} steps")
    for line in chosen.left_out:
        print(f"not counted: {line}")
    for verdict in found.verdicts:
        print(f"\n{verdict.name}  {verdict.state.upper()}  {verdict.claim}\n    {verdict.because}")
        for line in verdict.numbers:
            print(f"    {line}")
        if verdict.run_ids:
            print(f"    runs: {', '.join(short_ids(verdict.run_ids))}")
    if found.beside.counts:
        print(f"\nOutcome of each run. {found.beside.explained}")
        for line in found.beside.lines:
            print(f"    {line}")
    if found.beside.diagnostics:
        print("\nProjection active? (the plan's diagnostic)")
        for line in found.beside.diagnostics:
            print(f"    {line}")
