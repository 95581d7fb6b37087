"""python -m experiments demo: the whole loop on this machine, from problem to plot.

    extract v_hack, validate it on held-out pairs -> start the services -> arm vanilla, arm projected (same seed)
    -> held-out evaluation -> report with figures and the headline table

Interrupted, the same command goes on where it stopped. `--fresh` forgets earlier demo runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import cli
from common.errors import ConfigError
from common.settings import TrainerSettings, build, parse_assignments
from experiments import presets
from experiments.run import add_preset, add_set, ensure_direction, finished, train
from experiments.stack import Stack

ARMS = ("vanilla", "projected")
PHASES = ("generate", "grade", "train", "push", "wait", "total")


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments demo", description=__doc__)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--arms", default=",".join(ARMS), help="comma-separated; the first is the baseline")
    add_preset(p)
    add_set(p)
    p.add_argument("--runs", type=Path, default=Path("runs"))
    p.add_argument("--out", type=Path, default=Path("report"))
    p.add_argument("--fresh", action="store_true", help="delete earlier demo runs first")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _demo(args)


def _demo(args: argparse.Namespace) -> int:
    free = parse_assignments(args.set)
    runs = [
        build(TrainerSettings, presets.resolve(args.preset, arm, args.seed, free, args.runs), f"demo {arm}")
        for arm in args.arms.split(",")
    ]
    if args.fresh:
        for s in runs:
            shutil.rmtree(s.run_dir, ignore_errors=True)
    started = time.monotonic()
    for s in runs:
        ensure_direction(args.preset, s.arm, s.seed, s)
    _validate(runs[0], args.out)
    _train_all([s for s in runs if not finished(s.run_dir)], args.preset, args.runs)
    _report(runs, args.runs, args.out)
    _closing(runs, args.out, time.monotonic() - started)
    return 0


def _train_all(todo: list[TrainerSettings], preset_name: str, root: Path) -> None:
    if not todo:
        return
    preset = presets.get(preset_name)
    # The organism is harmless: on a machine without some layer of the jail the demo says so and goes on.
    services = Stack.start(root / ".stack" / "demo", todo[0].model, preset.server, preset.graders, "best_effort")
    with services as stack:
        for s in todo:
            print(f"\n{s.arm}: {s.steps} steps of {s.groups_per_step} x {s.group_size} rollouts", flush=True)
            code = train(s.model_copy(update=stack.access("trainer")), preset_name, check=stack.check)
            if code:
                raise ConfigError(f"{s.run_id} did not finish (exit code {code}); the same command resumes it")


def _validate(s: TrainerSettings, out: Path) -> None:
    """Held-out cos_align of v_hack: histogram and JSON under `out`/v_hack."""
    command = [sys.executable, "-m", "rankspace", "validate", "--model", s.model, "--pairs", str(s.pairs)]
    command += ["--v", str(s.v_hack), "--out", str(out / "v_hack"), "--svd-cache", str(s.svd_cache)]
    if subprocess.run(command).returncode:
        raise ConfigError(f"{s.v_hack} could not be validated on {s.pairs}; see the line above")


def _report(runs: list[TrainerSettings], root: Path, out: Path) -> None:
    from experiments.report import build as report

    report.main(["--runs", str(root), "--out", str(out), "--arms", ",".join(s.arm for s in runs)])


def _closing(runs: list[TrainerSettings], out: Path, seconds: float) -> None:
    """The headline table and the time breakdown, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(100, Console().width))
    text = (out / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    table = next(i for i, line in enumerate(rows) if "Pass %" in line)
    head = [cell.strip() for cell in rows[table].strip("|").split("|")]
    columns = [i for i, name in enumerate(head) if name != "Runs"]
    headline = Table(*[head[i] for i in columns], title="end of training; one seed proves nothing")
    for line in rows[table + 2 : table + 2 + len(runs)]:
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        headline.add_row(*[cells[i] for i in columns])
    console.print(headline)
    times = Table("seconds a step (median)", *PHASES)
    for s in runs:
        median = phase_medians(s.run_dir)
        times.add_row(s.arm, *[f"{median[p]:.2f}" for p in PHASES])
    console.print(times)
    console.print(
        f"report: {out}/report.html   figures: {out}/figures   runs: {runs[0].run_dir.parent}   {seconds / 60:.1f} min"
    )


def phase_medians(run_dir: Path) -> dict[str, float]:
    """Median seconds of each phase over the steps of a run. generate and grade overlap with wait."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {phase: statistics.median(row["seconds"][phase] for row in rows) for phase in PHASES}
