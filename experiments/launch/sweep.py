"""python -m experiments sweep --arms a,b --seeds 0-4 --preset P: every combination, resumable, complete ones skipped.

One set of services serves all runs; `--jobs N` lets N trainers share them side by side. With `--cards 0,1` each run has
services of its own on one of these GPUs, N on each. An interrupted sweep is started again with the same command: finished
runs are skipped and unfinished ones resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError
from common.settings import TrainerSettings, build, parse_assignments
from experiments.design import arms, presets
from experiments.launch.run import ensure_direction, finished, status, train
from experiments.launch.stack import Stack
from experiments.options import sweep as parser

if TYPE_CHECKING:
    from rich.table import Table

STARTING, DONE, FAILED = "waiting", "finished", "failed"


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _sweep(args)


def _sweep(args: argparse.Namespace) -> int:
    names = list(arms.ARMS) if args.arms == "all" else args.arms.split(",")
    free = parse_assignments(args.set)
    if args.cards and (args.trainer_gpus or args.generator_gpus):
        raise ConfigError(
            "--cards puts trainer and generator of a run on one card: leave out --trainer-gpus, --generator-gpus"
        )
    planned = [
        build(TrainerSettings, presets.resolve(args.preset, arm, seed, free, args.runs), f"sweep {arm} seed {seed}")
        for seed in seeds(args.seeds)
        for arm in names
    ]
    todo = [s for s in planned if not finished(s.run_dir)]
    print(f"{len(planned)} runs, {len(planned) - len(todo)} complete, {len(todo)} to do")
    if not todo:
        return 0
    presets.prepare(args.preset, *todo)
    for s in todo:
        ensure_direction(args.preset, s.arm, s.seed, s)
    with _places(args, todo[0].model) as places:
        failed = _run_all(todo, args.preset, places)
    if failed:
        print(f"{len(failed)} of {len(planned)} runs failed; once the cause is gone the same command resumes them")
    return 1 if failed else 0


@dataclass(frozen=True)
class Place:
    """Where one run at a time is made: services (its own, started in the thread that uses them, because they die with
    it; or shared with other places) and its trainer's GPUs."""

    services: Callable[[], AbstractContextManager[Stack]]
    trainer_gpus: Sequence[str]


@contextmanager
def _places(args: argparse.Namespace, model: str) -> Iterator[list[Place]]:
    """--jobs places on one set of services; with --cards so many on each card, each with services of its own there."""
    preset, root = presets.get(args.preset), args.runs / ".stack"

    def services(name: str, gpus: Sequence[str]) -> Stack:
        return Stack.start(root / name, model, preset.server, preset.graders, args.isolation, gpus=gpus)

    if args.cards:
        pairs = [(card, i) for i in range(args.jobs) for card in args.cards]
        yield [Place(partial(services, f"sweep-{card}-{i}", [card]), [card]) for card, i in pairs]
    else:
        with services("sweep", args.generator_gpus) as stack:
            yield [Place(lambda: nullcontext(stack), args.trainer_gpus)] * args.jobs


def seeds(text: str) -> list[int]:
    """'0-2,7' -> [0, 1, 2, 7]. ConfigError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            found.extend(range(int(first), int(last) + 1) if dash else [int(first)])
        except ValueError:
            raise ConfigError(f"--seeds {text!r}: write numbers and ranges, like 0-4 or 0,2,5") from None
    return found


def _run_all(todo: list[TrainerSettings], preset: str, places: list[Place]) -> list[TrainerSettings]:
    """Make the runs, each at the next free place, showing a live table; returns those that did not finish.

    ConfigError when the services of every place have failed; those of some places only leave their runs to the others.
    """
    from rich.console import Console
    from rich.live import Live

    codes: dict[str, int] = {}
    waiting, errors, halted = deque(todo), [], threading.Event()

    def work(place: Place) -> None:
        try:
            with place.services() as stack:

                def check() -> None:
                    stack.check()
                    if halted.is_set():
                        raise KeyboardInterrupt  # train() passes it on to its process, which stops at a step's end

                while waiting and not halted.is_set():
                    s = waiting.popleft()
                    own = s.model_copy(update=stack.access("trainer"))
                    codes[s.run_id] = train(own, preset, quiet=True, check=check, gpus=place.trainer_gpus)
                    if codes[s.run_id] and not halted.is_set():
                        print(failure(s), file=sys.stderr, flush=True)
        except ConfigError as error:
            errors.append(error)
            print(f"warning: {error}", file=sys.stderr)

    console = Console(stderr=True)
    with ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(work, place) for place in places]
        try:
            with Live(console=console, refresh_per_second=1, transient=not console.is_terminal) as live:
                while not all(f.done() for f in futures):
                    if console.is_terminal:
                        live.update(_table(todo, codes))
                    time.sleep(1.0)
        except BaseException:
            halted.set()
            raise
    if len(errors) == len(places):
        raise errors[0]
    return [s for s in todo if codes.get(s.run_id) != 0]


def failure(s: TrainerSettings) -> str:
    """One line: the run, where it stopped and why, and where more is said."""
    said, log = status(s.run_dir), s.run_dir / "trainer.log"
    if (
        said is None or said["state"] != "failed"
    ):  # it ended without a word of its own: killed, or before its first step
        return f"failed: {s.run_id}; see {log}"
    return f"failed: {s.run_id} after {said['step']} of {said['steps']} steps: {said['reason']}; see {log}"


def _table(todo: list[TrainerSettings], codes: dict[str, int]) -> Table:
    from rich.table import Table

    table = Table("run", "state", "step", "hack %", "pass %", "cos")
    for s in todo:
        path, rows = s.run_dir / "metrics.jsonl", []
        if path.is_file():
            rows = path.read_text().splitlines()[-2:]
        last = json.loads(rows[0]) if rows else {}
        state = (
            STARTING if not rows else "running" if s.run_id not in codes else DONE if codes[s.run_id] == 0 else FAILED
        )
        cells = [f"{100 * last[k]:.0f}" if last.get(k) is not None else "" for k in ("hack_strict", "pass_oracle")]
        cos = f"{last['cos_mean']:+.3f}" if last.get("cos_mean") is not None else ""
        table.add_row(s.run_id, state, f"{last.get('step', -1) + 1}/{s.steps}", *cells, cos)
    return table
