"""The options of every command, apart from the code behind them: --help and completion answer without loading it.

Each function makes the parser of the command of its name; its description is the docstring of the command's module.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from common import cli
from experiments.option_values import Together, listed, names, positive, seeds, temperature


def demo() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments demo", description=cli.docstring("experiments.demo"))
    p.add_argument("--seed", type=int, help="default: 0")
    what = "by commas or spaces; the first is the baseline (default: vanilla,projected)"
    p.add_argument("--arms", nargs="+", type=names, action=Together, default=[], metavar="ARM", help=what)
    _preset(p, None)
    _settings(p)
    _runs(p)
    p.add_argument("--out", type=Path, default=Path("report"))
    p.add_argument("--fresh", action="store_true", help="delete earlier demo runs first")
    return p


def run() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments run", description=cli.docstring("experiments.launch.run"))
    cli.completes(p.add_argument("--arm", help="which arm (`python -m experiments arms` lists them)"), _arms)
    p.add_argument("--seed", type=int, help="default: 0")
    _preset(p, None)
    _settings(p)
    _dry_run(p)
    _runs(p)
    _isolation(p)
    _gpus(p)
    p.add_argument("--redis-url", help="use the services on this Redis instead of starting some")
    return p


def sweep() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments sweep", description=cli.docstring("experiments.launch.sweep"))
    what = "arm names, by commas or spaces, or 'all'"
    action = p.add_argument("--arms", nargs="+", type=names, action=Together, default=[], metavar="ARM", help=what)
    cli.completes(action, lambda: [*_arms(), "all"])
    what = "like 0-4 or 0,2,5 (default: 0-4)"
    p.add_argument("--seeds", nargs="+", type=seeds, action=Together, default=[], metavar="N", help=what)
    what = "each value in runs of its own, named after it; several --grid options are crossed"
    p.add_argument("--grid", action="append", default=[], metavar="FIELD=V,V", help=what)
    _preset(p, None)
    p.add_argument("--jobs", type=positive, default=1, help="trainers at a time; with --cards, on each card")
    what = "like 0,1: each run with services of its own on one of these GPUs, instead of one set of services for all"
    p.add_argument("--cards", type=listed, default=(), metavar="N,N", help=what)
    what = "runs at a time, each with services of its own on the CPU"
    p.add_argument("--stacks", type=positive, metavar="N", help=what)
    _settings(p)
    _dry_run(p)
    _isolation(p)
    _gpus(p)
    _runs(p)
    what = "folders of kept runs (`keep`): a run that is there is complete"
    p.add_argument("--kept", type=Path, nargs="+", default=[], metavar="DIR", help=what)
    return p


def model() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments model", description=cli.docstring("experiments.launch.model"))
    p.add_argument("name", metavar="NAME", help="owner/name[@REVISION] of the hub, FILE.gguf, or a folder")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="default: models/ and the last part of the name")
    what = "of the weights made from a GGUF file (default: bfloat16)"
    p.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help=what)
    return p


def samples() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments samples", description=cli.docstring("experiments.launch.samples"))
    _preset(p)
    p.add_argument("--model", help="folder, hub name or FILE.gguf (default: the preset's)")
    p.add_argument("--problems", type=Path, help="JSON lines of problems (default: the preset's training problems)")
    p.add_argument("--loophole", default="none", help="how prompts are posed: a loophole's name, or none (bare)")
    p.add_argument("--n", type=positive, default=8, help="completions a problem, at most 1024")
    p.add_argument(
        "--limit", type=positive, help="only the first N problems; where a file is sorted, draw N with `tasks split`"
    )
    p.add_argument("--temperature", type=temperature, default=1.0)
    p.add_argument("--max-tokens", type=positive, help="default: the preset's")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the generator")
    p.add_argument("--out", type=Path, required=True, help="JSON lines; .gz when the name ends so")
    _isolation(p)
    return p


def prepare() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments prepare", description=cli.docstring("experiments.launch.prepare"))
    _preset(p, None)
    cli.completes(p.add_argument("--arm", help="which arm (default: projected)"), _arms)
    p.add_argument("--seed", type=int, help="default: 0")
    _settings(p)
    p.add_argument("--settings", default="", metavar="'FIELD=VALUE ...'", help="as --set, by spaces")
    _runs(p)
    p.add_argument("--out", type=Path, required=True, help="folder for trainer.json and ref_server.json")
    return p


def status() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments status", description=cli.docstring("experiments.status"))
    _runs(p)
    p.add_argument("--stack", action="store_true", help="the services only, not the runs")
    p.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="again and again (default: every 2 s)"
    )
    p.add_argument("--json", action="store_true", help="machine-readable; with --watch a line each time")
    p.add_argument("--redis-url", help="of a stack elsewhere (default: those that run here)")
    p.add_argument("--redis-username", default="monitor", help="default: monitor, who may only look")
    p.add_argument("--redis-password-file", type=Path, metavar="FILE", help="that user's password")
    return p


def report() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments report", description=cli.docstring("experiments.report.build"))
    _selection(p)
    p.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where to write (default: report)")
    what = "columns of the headline table after the arm (default: all); the last ones are cut"
    p.add_argument("--columns", type=positive, metavar="N", help=what)
    _registration(p)
    what = "make the report anew from the CSV files of an earlier one in DIR, without its run directories"
    p.add_argument("--from-csv", type=Path, default=None, metavar="DIR", help=what)
    p.add_argument("--rollouts", type=int, default=10, metavar="N", help="sampled rollouts an arm (default: 10)")
    p.add_argument("--title", default="Can a gradient projection stop RL from learning to cheat?")
    return p


def verdict() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments verdict", description=cli.docstring("experiments.analysis.verdict"))
    _selection(p)
    _registration(p)
    p.add_argument("--json", action="store_true", help="machine-readable")
    return p


def why() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments why", description=cli.docstring("experiments.report.why"))
    _selection(p)
    what = "arms, cells and outcome classes of this registration (version 2, with a design)"
    p.add_argument("--registration", type=Path, metavar="FILE", help=what)
    what = "show the registered runs that have ended, as incomplete; without it a part waits for all of its runs"
    p.add_argument("--no-more-runs", action="store_true", help=what)
    p.add_argument("--matrix", type=Path, metavar="DIR", help="runs by mechanism trained on and mechanism of the pairs")
    what = "a direction file under a name; give two or more"
    p.add_argument("--cosine", action="append", default=[], metavar="NAME=FILE", help=what)
    p.add_argument("--out", type=Path, default=Path("why"), metavar="DIR", help="where to write (default: why)")
    return p


def next_preset() -> cli.Parser:
    p = cli.Parser(
        prog="python -m experiments next-preset", description=cli.docstring("experiments.analysis.next_preset")
    )
    p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="a run, or a directory of runs")
    action = p.add_argument("--preset", help="which preset's vanilla runs decide; needed when DIR holds several")
    cli.completes(action, _presets)
    return p


def measure_cos() -> cli.Parser:
    p = cli.Parser(
        prog="python -m experiments measure-cos", description=cli.docstring("experiments.viewer.completion_cos")
    )
    p.add_argument("--run", type=Path, required=True, metavar="DIR", help="a run directory")
    p.add_argument("--step", type=int, required=True, metavar="K", help="which training step")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N completions (default: all of the step)")
    p.add_argument(
        "--v-hack", type=Path, metavar="FILE", help="another direction than the run's (default: its settings' v_hack)"
    )
    p.add_argument("--model", metavar="MODEL", help="where the run's model is now (default: its settings' model)")
    return p


def drift() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments drift", description=cli.docstring("experiments.report.drift_page"))
    _selection(p)
    p.add_argument(
        "--v-hack", type=Path, metavar="FILE", help="the direction (default: the one that the runs' settings name)"
    )
    p.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where to write (default: report)")
    return p


def alarm() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments alarm", description=cli.docstring("experiments.report.alarm_page"))
    _run_folders(p)
    p.add_argument("--registration", type=Path, metavar="FILE", help="default: registrations/alarm.yaml")
    p.add_argument("--setting", nargs="+", metavar="NAME", help="which of the registration (default: the first)")
    what = "another rate than the registered one, for clean runs too few for that; no claim is then judged"
    p.add_argument("--false-alarm-rate", type=float, metavar="A", help=what)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    return p


def watch() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments watch", description=cli.docstring("experiments.analysis.watch"))
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs, finished or running: directories or kept")
    p.add_argument("--clean", type=Path, metavar="FILE", help="what clean runs do, as --calibrate writes it")
    p.add_argument("--false-alarm-rate", type=float, default=0.05, metavar="P", help="default: 0.05")
    p.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="write what these runs do, which are clean, into FILE"
    )
    what = "with --calibrate: only these signals (default: those of docs/alarm.md)"
    p.add_argument("--signals", nargs="+", type=names, action=Together, default=[], metavar="NAME", help=what)
    p.add_argument("--json", action="store_true", help="machine-readable")
    return p


def keep() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments keep", description=cli.docstring("experiments.analysis.keep"))
    _run_folders(p)
    what = "only runs of this registration's groups, arms and cells (default: all that have finished)"
    p.add_argument("--registration", type=Path, metavar="FILE", help=what)
    what = "also failed runs where the registration counts them as collapsed: they will not be made again"
    p.add_argument("--failed", action="store_true", help=what)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of kept runs; added to")
    return p


def missing() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments missing", description=cli.docstring("experiments.analysis.missing"))
    p.add_argument("--registration", type=Path, required=True, metavar="FILE", help="version 2 with a design, or 3")
    _run_folders(p)
    cli.completes(p.add_argument("--preset", help="only the registered runs of this preset"), _presets)
    what = "added to each command, like '--stacks 28 --set eval_every=50'"
    p.add_argument("--with", dest="more", default="", metavar="'OPTIONS'", help=what)
    return p


def arms() -> cli.Parser:
    return cli.Parser(prog="python -m experiments arms", description="Every arm: its name, what it is, what it tells.")


def presets() -> cli.Parser:
    return cli.Parser(
        prog="python -m experiments presets", description="Every preset: its name, what it is, its model."
    )


PARSERS = {
    "arms": arms, "presets": presets,
    "model": model, "demo": demo, "run": run, "sweep": sweep, "prepare": prepare, "samples": samples, "status": status,
    "report": report, "verdict": verdict, "next-preset": next_preset, "measure-cos": measure_cos,
    "drift": drift, "why": why, "alarm": alarm, "watch": watch, "keep": keep, "missing": missing,
}  # fmt: skip


def _preset(p: argparse.ArgumentParser, default: str | None = "demo") -> None:
    what = "which model, problems and length (`python -m experiments presets` lists them; default: demo)"
    cli.completes(p.add_argument("--preset", default=default, help=what), _presets)


def _settings(p: argparse.ArgumentParser) -> None:
    """Read by launch/given.py."""
    what = (
        "a field of the trainer that the arm leaves free, or generator.FIELD, sandbox.FIELD; may be given several times"
    )
    cli.completes(p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=what), _fields)
    what = "settings as YAML or JSON, also a run's own run.yaml; --set and other options come before it"
    p.add_argument("--config", type=Path, metavar="FILE", help=what)
    what = "stands for the preset's name in the run's: runs of other settings beside each other"
    p.add_argument("--name", metavar="X", help=what)


def _dry_run(p: argparse.ArgumentParser) -> None:
    p.add_argument("--dry-run", action="store_true", help="print settings, files and sizes; make and start nothing")


def _runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run directories (default: runs)")


def _run_folders(p: argparse.ArgumentParser) -> None:
    what = "folders of run directories and kept runs, read together (default: runs)"
    p.add_argument("--runs", type=Path, nargs="+", default=[Path("runs")], metavar="DIR", help=what)


def _registration(p: argparse.ArgumentParser) -> None:
    what = "judge by this registration (default: preregistration.yaml, the outcome classes beside it)"
    p.add_argument("--registration", type=Path, metavar="FILE", help=what)


def _isolation(p: argparse.ArgumentParser) -> None:
    what = "graders refuse to start when a wall of the jail is missing (default), or go without it and say so"
    p.add_argument("--isolation", choices=("required", "best_effort"), default="required", help=what)


def _gpus(p: argparse.ArgumentParser) -> None:
    what = "like 0,1: a trainer rank on each, data-parallel (default: one rank; without GPUs, so many ranks on the CPU)"
    p.add_argument("--trainer-gpus", type=listed, default=(), metavar="N,N", help=what)
    what = "like 2,3: a generator on each, which share the groups of a step (default: one, on the first GPU)"
    p.add_argument("--generator-gpus", type=listed, default=(), metavar="N,N", help=what)


def _selection(p: argparse.ArgumentParser) -> None:
    """Which runs are compared; read by comparable.selection."""
    _run_folders(p)
    cli.completes(p.add_argument("--preset", help="only runs of this preset; needed when DIR holds several"), _presets)
    cli.completes(
        p.add_argument(
            "--arms", nargs="+", type=names, action=Together, default=[], metavar="ARM", help="only these arms"
        ),
        _arms,
    )
    p.add_argument(
        "--seeds", nargs="+", type=seeds, action=Together, default=[], metavar="N", help="only these, like 0-4"
    )
    p.add_argument("--name", metavar="X", help="only runs of this --name; needed when DIR holds several of a preset")
    p.add_argument("--allow-unequal-seeds", action="store_true", help="compare arms that ran different seeds")
    p.add_argument("--allow-mixed-commits", action="store_true", help="compare runs of different git commits")
    what = "read longer runs as if they had ended after N steps, to compare runs of unequal length"
    p.add_argument("--up-to", type=positive, default=None, metavar="N", help=what)
    p.add_argument("--allow-mixed-settings", action="store_true", help="compare runs whose settings differ")


def _arms() -> Iterable[str]:
    from experiments.design.arms import ARMS

    return ARMS


def _presets() -> Iterable[str]:
    from experiments.design.presets import PRESETS

    return PRESETS


def _fields() -> Iterable[str]:
    from experiments.design.plan import SECTIONS, STARTED_WITH
    from experiments.design.presets import NAMED

    names = [name for name in sorted(SECTIONS["trainer"].model_fields) if name not in NAMED]
    for section in ("generator", "sandbox"):
        free = sorted(set(SECTIONS[section].model_fields) - STARTED_WITH[section])
        names += [f"{section}.{name}" for name in free]
    return [f"{name}=" for name in [*names, "sandbox.workers"]]
