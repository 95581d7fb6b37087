"""The options of every command, apart from the code behind them: --help and completion answer without loading it.

Each function makes the parser of the command of its name; its description is the docstring of the command's module.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from common import cli


def demo() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments demo", description=cli.docstring("experiments.demo"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--arms", default="vanilla,projected", help="comma-separated; the first is the baseline")
    _preset(p)
    _set(p)
    _runs(p)
    p.add_argument("--out", type=Path, default=Path("report"))
    p.add_argument("--fresh", action="store_true", help="delete earlier demo runs first")
    return p


def run() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments run", description=cli.docstring("experiments.launch.run"))
    cli.completes(p.add_argument("--arm", required=True, help="which arm (see experiments/design/arms.py)"), _arms)
    p.add_argument("--seed", type=int, default=0)
    _preset(p)
    _set(p)
    _runs(p)
    _isolation(p)
    _gpus(p)
    p.add_argument("--redis-url", help="use the services on this Redis instead of starting some")
    return p


def sweep() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments sweep", description=cli.docstring("experiments.launch.sweep"))
    action = p.add_argument("--arms", required=True, help="comma-separated arm names, or 'all'")
    cli.completes(action, lambda: [*_arms(), "all"])
    p.add_argument("--seeds", default="0-4", help="like 0-4 or 0,2,5")
    _preset(p)
    p.add_argument("--jobs", type=int, default=1, help="trainers at a time; with --cards, on each card")
    what = "like 0,1: each run with services of its own on one of these GPUs, instead of one set of services for all"
    p.add_argument("--cards", type=_listed, default=(), metavar="N,N", help=what)
    _set(p)
    _isolation(p)
    _gpus(p)
    _runs(p)
    return p


def samples() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments samples", description=cli.docstring("experiments.launch.samples"))
    _preset(p)
    p.add_argument("--model", help="local model folder (default: the preset's)")
    p.add_argument("--problems", type=Path, help="JSON lines of problems (default: the preset's training problems)")
    p.add_argument("--loophole", default="none", help="how prompts are posed: a loophole's name, or none (bare)")
    p.add_argument("--n", type=int, default=8, help="completions a problem")
    p.add_argument("--limit", type=int, help="only the first N problems")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--max-tokens", type=int, help="default: the preset's")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the generator")
    p.add_argument("--out", type=Path, required=True, help="JSON lines; .gz when the name ends so")
    _isolation(p)
    return p


def prepare() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments prepare", description=cli.docstring("experiments.launch.prepare"))
    _preset(p)
    cli.completes(p.add_argument("--arm", default="projected", help="which arm (default: projected)"), _arms)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--settings", default="", metavar="'FIELD=VALUE ...'", help="free fields of TrainerSettings, by spaces"
    )
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
    p.add_argument("--columns", type=int, metavar="N", help=what)
    p.add_argument("--rollouts", type=int, default=10, metavar="N", help="sampled rollouts an arm (default: 10)")
    p.add_argument("--title", default="Can a gradient projection stop RL from learning to cheat?")
    return p


def verdict() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments verdict", description=cli.docstring("experiments.analysis.verdict"))
    _selection(p)
    p.add_argument("--json", action="store_true", help="machine-readable")
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
    p.add_argument("--model", metavar="DIR", help="where the run's model is now (default: its settings' model)")
    return p


def drift() -> cli.Parser:
    p = cli.Parser(prog="python -m experiments drift", description=cli.docstring("experiments.analysis.drift"))
    _selection(p)
    p.add_argument(
        "--v-hack", type=Path, metavar="FILE", help="the direction (default: the one that the runs' settings name)"
    )
    p.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="where to write (default: report)")
    return p


PARSERS = {
    "demo": demo, "run": run, "sweep": sweep, "prepare": prepare, "samples": samples, "status": status, "report": report,
    "verdict": verdict, "next-preset": next_preset, "measure-cos": measure_cos,
    "drift": drift,
}  # fmt: skip


def _preset(p: argparse.ArgumentParser) -> None:
    what = "which model, problems and length (see experiments/design/presets.py; default: demo)"
    cli.completes(p.add_argument("--preset", default="demo", help=what), _presets)


def _set(p: argparse.ArgumentParser) -> None:
    what = "any field of TrainerSettings that the arm leaves free; may be given several times"
    cli.completes(p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=what), _fields)


def _runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="run directories (default: runs)")


def _isolation(p: argparse.ArgumentParser) -> None:
    what = "graders refuse to start when a wall of the jail is missing (default), or go without it and say so"
    p.add_argument("--isolation", choices=("required", "best_effort"), default="required", help=what)


def _gpus(p: argparse.ArgumentParser) -> None:
    what = "like 0,1: a trainer rank on each, data-parallel (default: one rank; without GPUs, so many ranks on the CPU)"
    p.add_argument("--trainer-gpus", type=_listed, default=(), metavar="N,N", help=what)
    what = "like 2,3: a generator on each, which share the groups of a step (default: one, on the first GPU)"
    p.add_argument("--generator-gpus", type=_listed, default=(), metavar="N,N", help=what)


def _listed(text: str) -> tuple[str, ...]:
    """'0,1' -> ('0', '1')."""
    found = tuple(text.split(","))
    if not all(part.isdecimal() for part in found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: write different numbers of GPUs, like 0 or 0,1")
    return found


def _selection(p: argparse.ArgumentParser) -> None:
    """Which runs are compared; read by comparable.selection."""
    _runs(p)
    cli.completes(p.add_argument("--preset", help="only runs of this preset; needed when DIR holds several"), _presets)
    cli.completes(p.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms"), _arms)
    p.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="only these seeds")
    p.add_argument("--allow-unequal-seeds", action="store_true", help="compare arms that ran different seeds")
    p.add_argument("--allow-mixed-commits", action="store_true", help="compare runs of different git commits")
    p.add_argument("--allow-mixed-settings", action="store_true", help="compare runs whose settings differ")


def _arms() -> Iterable[str]:
    from experiments.design.arms import ARMS

    return ARMS


def _presets() -> Iterable[str]:
    from experiments.design.presets import PRESETS

    return PRESETS


def _fields() -> Iterable[str]:
    from common.settings import TrainerSettings
    from experiments.design.presets import NAMED

    return [f"{name}=" for name in sorted(TrainerSettings.model_fields) if name not in NAMED]
