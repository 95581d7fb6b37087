"""python -m experiments demo: the whole loop on this machine, from problem to plot.

    extract v_hack, validate it on held-out pairs -> start the services -> arm vanilla, arm projected (same seed)
    -> held-out evaluation -> report with figures and the headline table

Interrupted, the same command goes on where it stopped. `--fresh` forgets earlier demo runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError
from common.model_names import local
from common.settings import TrainerSettings
from common.writable import require_directory
from experiments.design import presets
from experiments.design.plan import Plan
from experiments.launch.check import check_model
from experiments.launch.direction import ensure_direction, rendering
from experiments.launch.given import check_same, given, save
from experiments.launch.run import finished, services, train
from experiments.options import demo as parser

if TYPE_CHECKING:
    from experiments.report.tables import ArmView

ARMS = ("vanilla", "projected")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _demo(args)


def _demo(args: argparse.Namespace) -> int:
    require_directory(args.out, "--out")
    said = given(args)
    names = list(dict.fromkeys(args.arms or ARMS))
    plans = [
        said.plan(arm, args.seed if args.seed is not None else said.seed or 0, args, f"demo {arm}") for arm in names
    ]
    runs = [p.trainer for p in plans]
    if args.fresh:
        for s in runs:
            shutil.rmtree(s.run_dir, ignore_errors=True)
    for p in plans:
        check_same(p, finished(p.trainer.run_dir))
    started = time.monotonic()
    presets.prepare(said.preset, *runs)
    check_model(plans[0])
    for s in runs:
        ensure_direction(said.preset, s.arm, s.seed, s)
    _validate(runs[0], args.out)
    _train_all([p for p in plans if not finished(p.trainer.run_dir)], args.runs)
    arms = _report(runs, args.runs, args.out, said.name)
    _closing(arms, args.runs, args.out, time.monotonic() - started)
    return 0


ON_A_TERMINAL = 8  # columns of the headline table that fit 100 characters; the report has all of them


def _train_all(todo: list[Plan], root: Path) -> None:
    if not todo:
        return
    # The organism is harmless: on a machine without some layer of the jail the demo says so and goes on.
    with services(todo[0], root / ".stack" / "demo", "best_effort") as stack:
        for p in todo:
            s = p.trainer
            print(f"\n{s.arm}: {s.steps} steps of {s.groups_per_step} x {s.group_size} rollouts", flush=True)
            save(p)
            code = train(s.model_copy(update=stack.access("trainer")), p.preset, check=stack.check)
            if code:
                raise ConfigError(f"{s.run_id} did not finish (exit code {code}); the same command resumes it")


def _validate(s: TrainerSettings, out: Path) -> None:
    """Held-out cos_align of v_hack: histogram and JSON under `out`/v_hack."""
    command = [
        sys.executable,
        "-m",
        "rankspace",
        "validate",
        "--model",
        str(local(s.model)),
        *rendering(s),
        "--pairs",
        str(s.pairs),
    ]
    command += ["--v", str(s.v_hack), "--out", str(out / "v_hack"), "--svd-cache", str(s.svd_cache)]
    if subprocess.run(command).returncode:
        raise ConfigError(f"{s.v_hack} could not be validated on {s.pairs}; see the line above")


def _report(runs: list[TrainerSettings], root: Path, out: Path, name: str | None = None) -> list[ArmView]:
    from experiments import options
    from experiments.report import build as report

    wanted = ["--runs", str(root), "--out", str(out), "--arms", ",".join(s.arm for s in runs)]
    wanted += ["--name", name] if name else []
    return report.make(options.report().parse_args(wanted))


def _closing(arms: list[ArmView], root: Path, out: Path, seconds: float) -> None:
    """The headline table and the time breakdown, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from experiments.report.tables import headline_rows, measured_columns, phase_medians

    console = Console(width=max(100, Console().width))
    shown = measured_columns(arms)[:ON_A_TERMINAL]
    headline = Table("Arm", *[column.head for column in shown], title="end of training; one seed proves nothing")
    for arm, cells in headline_rows(arms, shown):
        headline.add_row(arm.label, *[cell.text for cell in cells])
    console.print(headline)
    medians = {arm.label: phase_medians(arm) for arm in arms}
    phases = next(iter(medians.values()))
    times = Table("seconds a step (median)", *phases)
    for label, seconds_of in medians.items():
        times.add_row(label, *[f"{seconds_of[phase]:.2f}" for phase in phases])
    console.print(times)
    console.print(f"report: {out}/report.html   figures: {out}/figures   runs: {root}   {seconds / 60:.1f} min")
