"""python -m experiments run --arm A --seed N --preset P: one arm, one seed, from direction to finished run directory.

Started again with the same settings it goes on, or says that it is finished; other settings are refused: give them a
--name. The run's own run.yaml, given back with --config, plans the same run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import cli
from common.errors import ConfigError
from common.settings import TrainerSettings
from experiments.design import presets
from experiments.design.plan import Plan
from experiments.launch.check import check_model
from experiments.launch.describe import describe
from experiments.launch.direction import ensure_direction
from experiments.launch.dirlock import hold
from experiments.launch.given import check_same, given, save
from experiments.launch.provenance import write_provenance
from experiments.launch.stack import Stack, environment
from experiments.options import run as parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    said = given(args)
    if said.arm is None:
        raise ConfigError(
            "the following arguments are required: --arm; `python -m experiments run --help` explains, "
            "`python -m experiments arms` lists them"
        )
    planned = said.plan(said.arm, said.seed or 0, args, "run")
    settings = planned.trainer
    done = finished(settings.run_dir)
    check_same(planned, done)
    if args.dry_run:
        print(describe(planned), end="")
        return 0
    if done:
        print(f"{settings.run_id} is already finished: {settings.run_dir}")
        return 0
    presets.prepare(planned.preset, settings)
    check_model(planned)
    ensure_direction(planned.preset, settings.arm, settings.seed, settings)
    own = (
        nullcontext()
        if args.redis_url
        else services(planned, args.runs / ".stack" / settings.run_id, args.isolation, args.generator_gpus)
    )
    with own as stack:
        save(planned)
        if stack is None:
            return train(settings, planned.preset, gpus=args.trainer_gpus)
        own_access = settings.model_copy(update=stack.access("trainer"))
        return train(own_access, planned.preset, check=stack.check, gpus=args.trainer_gpus)


def services(planned: Plan, root: Path, isolation: str, gpus: Sequence[str] = ()) -> Stack:
    """The services that this run asks for, started. Use as a context manager."""
    return Stack.start(
        root, planned.trainer.model, planned.server, planned.graders, isolation, sandbox=planned.sandbox, gpus=gpus
    )


def status(run_dir: Path) -> dict[str, Any] | None:
    """What a run directory says of its run; None before the first word."""
    path = Path(run_dir) / "status.json"
    return json.loads(path.read_text()) if path.is_file() else None


def finished(run_dir: Path) -> bool:
    """Whether a run directory says that all its steps are done."""
    said = status(run_dir)
    return said is not None and said["state"] == "finished"


def train(
    settings: TrainerSettings, preset: str, quiet: bool = False, check: Callable[[], None] | None = None,
    gpus: Sequence[str] = (), module: str = "services.trainer",
) -> int:  # fmt: skip
    """One trainer on running services; its exit code. Ctrl-C lets it stop at a step's end, then is raised.

    `check` is called every second and raises when a service has died, so that nobody waits for a dead generator.
    gpus: a rank on each, under torchrun where they are several (without GPUs: so many ranks); none: one, anywhere.
    module: what is run in place of the trainer, with its options.
    """
    with hold(settings.run_dir, "run"):
        return _train(settings, preset, quiet, check, gpus, module)


def _train(
    settings: TrainerSettings,
    preset: str,
    quiet: bool,
    check: Callable[[], None] | None,
    gpus: Sequence[str],
    module: str,
) -> int:
    config = settings.run_dir / "trainer.json"
    config.write_text(settings.model_dump_json(indent=1))
    command = [sys.executable, *launcher(len(gpus)), "-m", module, "--config", str(config)]
    write_provenance(settings, preset)
    out = open(settings.run_dir / "trainer.log", "ab") if quiet else None  # noqa: SIM115 - closed below
    errors = subprocess.STDOUT if quiet else None
    env = environment(",".join(gpus) or None) | {cli.STARTED_BY: "experiments"}
    process = subprocess.Popen(command, stdout=out, stderr=errors, env=env)
    try:
        return _watch(process, check)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if out is not None:
            out.close()


def launcher(ranks: int) -> list[str]:
    """What stands between `python` and the trainer's module: torchrun for several ranks of this machine, nothing for one."""
    return [] if ranks < 2 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def _watch(process: subprocess.Popen[bytes], check: Callable[[], None] | None) -> int:
    while True:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            if check is not None:
                check()
