"""summary.md of `python -m experiments why`: counts with bounds, claims, and what cannot be said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.analysis.answers import Verdict
from experiments.analysis.comparable import Chosen
from experiments.analysis.registered import unfinished
from experiments.analysis.run_outcomes import CLASSES, safe_bounds
from experiments.analysis.why import Row
from experiments.design.registration import Design, Registration


@dataclass(frozen=True)
class Told:
    """What the page says beside the counts.

    file: name of the registration. notes: runs begun under another one. waiting: a line for each part that was not written,
    its name before the first colon. no_more_runs: what has ended is shown, whatever is missing.
    """

    file: str
    notes: Sequence[str]
    verdicts: Sequence[Verdict]
    waiting: Sequence[str]
    no_more_runs: bool


def page(registration: Registration, chosen: Chosen, rows: Sequence[Row], told: Told) -> bytes:
    """Markdown."""
    design = registration.design
    assert design is not None  # the command has refused one without
    lines = [f"# Runs of {told.file}", ""]
    for note in told.notes:
        lines += [f"**{note}**", ""]
    if told.no_more_runs and unfinished(design.arms, chosen.by_arm, design):
        lines += [
            "**Incomplete**: shown although registered runs are missing. No claim that lacks runs is answered.",
            "",
        ]
    lines += _counts(design, chosen, rows, told.no_more_runs)
    lines += ["", "## Claims", "", "| claim | | answer | why |", "|---|---|---|---|"]
    lines += [f"| {v.name} | {v.claim} | {v.state} | {v.because} |" for v in told.verdicts] or ["| none | | | |"]
    waiting = [f"{line.partition(':')[0]}: waits for registered runs" for line in told.waiting]
    for title, more in (("Not written", waiting), ("Left out", chosen.left_out), ("Warnings", chosen.warnings)):
        if more:
            lines += ["", f"## {title}", "", *(f"- {line}" for line in more)]
    return ("\n".join(lines) + "\n").encode()


def _counts(design: Design, chosen: Chosen, rows: Sequence[Row], no_more_runs: bool) -> list[str]:
    """A line an arm or cell; of one that waits only which runs have ended."""
    lines = [
        f"| arm or cell | ended | {' | '.join(CLASSES)} | P(safe), 95% | missing seeds |",
        "|---" * (len(CLASSES) + 4) + "|",
    ]
    for name, seeds in design.arms.items():
        own = [row for row in rows if row.name == name]
        missing = [seed for seed in seeds if seed not in {row.run.seed for row in own}]
        cells = ["-"] * (len(CLASSES) + 1)
        if own and (no_more_runs or not unfinished([name], chosen.by_arm, design)):
            counts = [sum(row.outcome == outcome for row in own) for outcome in CLASSES]
            low, high = safe_bounds(counts[CLASSES.index("safe")], counts[CLASSES.index("unknown")], len(own))
            cells = [*map(str, counts), f"{low:.2f} to {high:.2f}"]
        ended = f"{len(own)} of {len(seeds)}"
        lines.append(f"| {' | '.join([name, ended, *cells, ', '.join(map(str, missing)) or 'none'])} |")
    return lines
