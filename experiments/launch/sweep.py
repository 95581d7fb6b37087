"""python -m experiments sweep --arms a,b --seeds 0-4 --preset P: every combination, resumable, complete ones skipped.

One set of services serves all runs; `--jobs N` lets N trainers share them side by side. With `--cards 0,1` each run has
services of its own on one of these GPUs, N on each; with `--stacks N` N runs at a time have services of their own, for a
machine of many cores without a GPU, where one generator for all of them would be the bottleneck. An interrupted sweep is
started again with the same command: finished runs are skipped and unfinished ones resumed. A run there with other settings
is refused: `--name X` makes other runs, `--grid lr=1e-3,3e-3` a run for each value, named after it.
`--kept DIR` skips what another machine has made and `python -m experiments keep` has kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from common import cli
from common.errors import ConfigError
from common.settings import TrainerSettings
from experiments.design import arms, presets
from experiments.design.plan import Plan
from experiments.launch.check import check_model
from experiments.launch.describe import describe
from experiments.launch.direction import ensure_direction
from experiments.launch.given import check_same, given, grid, save
from experiments.launch.kept import kept
from experiments.launch.run import finished, services, status, train
from experiments.launch.stack import Stack, lanes
from experiments.options import sweep as parser

if TYPE_CHECKING:
    from rich.table import Table

STARTING, DONE, FAILED = "waiting", "finished", "failed"


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with cli.Resumable():
        return _sweep(args)


def _sweep(args: argparse.Namespace) -> int:
    if args.cards and (args.trainer_gpus or args.generator_gpus):
        raise ConfigError(
            "--cards puts trainer and generator of a run on one card: leave out --trainer-gpus, --generator-gpus"
        )
    if args.stacks and (args.cards or args.jobs != 1 or args.trainer_gpus or args.generator_gpus):
        raise ConfigError(
            "--stacks gives each run services of its own without a GPU: leave out --cards, --jobs, --*-gpus"
        )
    planned = plans(args)
    done = {p.trainer.run_id for p in planned if finished(p.trainer.run_dir)}
    for p in planned:
        check_same(p, p.trainer.run_id in done)
    done |= kept(planned, args.kept)
    todo = [p for p in planned if p.trainer.run_id not in done]
    print(f"{len(planned)} runs, {len(done)} complete, {len(todo)} to do")
    if args.dry_run:
        print("\n".join(describe(p) for p in todo), end="")
    if not todo or args.dry_run:
        return 0
    presets.prepare(todo[0].preset, *[p.trainer for p in todo])
    for p in (group[0] for group in _alike(todo)):
        check_model(p)
    for p in todo:
        ensure_direction(p.preset, p.trainer.arm, p.trainer.seed, p.trainer)
    failed = [s for group in _alike(todo) for s in _made(group, args)]
    if failed:
        print(f"{len(failed)} of {len(planned)} runs failed; once the cause is gone the same command resumes them")
    return 1 if failed else 0


def plans(args: argparse.Namespace) -> list[Plan]:
    """Every run of the sweep: cells of the grid x seeds x arms."""
    said = given(args)
    names = args.arms or ([said.arm] if said.arm else [])
    if not names:
        raise ConfigError(
            "the following arguments are required: --arms; `python -m experiments sweep --help` explains, "
            "`python -m experiments arms` lists them"
        )
    names = list(arms.ARMS) if names == ["all"] else list(dict.fromkeys(names))  # each once: a run has one directory
    seeds = args.seeds or ([0, 1, 2, 3, 4] if said.seed is None else [said.seed])
    return [
        cell.plan(arm, seed, args, f"sweep {arm} seed {seed}")
        for cell in grid(said, args.grid)
        for seed in seeds
        for arm in names
    ]


def _alike(todo: list[Plan]) -> list[list[Plan]]:
    """The plans in groups that the same services serve, in order."""
    groups: dict[tuple[str, str], list[Plan]] = {}
    for p in todo:
        groups.setdefault(p.services, []).append(p)
    return list(groups.values())


def _made(group: list[Plan], args: argparse.Namespace) -> list[TrainerSettings]:
    """Make the runs of one group; returns those that failed."""
    by_id = {p.trainer.run_id: p for p in group}
    with _places(args, group[0]) as places:
        return _run_all([p.trainer for p in group], group[0].preset, places, lambda s: save(by_id[s.run_id]))


@dataclass(frozen=True)
class Place:
    """Where one run at a time is made: services (its own, started in the thread that uses them, because they die with
    it; or shared with other places) and its trainer's GPUs."""

    services: Callable[[], AbstractContextManager[Stack]]
    trainer_gpus: Sequence[str]


@contextmanager
def _places(args: argparse.Namespace, planned: Plan) -> Iterator[list[Place]]:
    """--jobs places on one set of services; with --cards so many on each card, or --stacks, each with its own services."""
    root = args.runs / ".stack"
    pairs = [(card, i) for i in range(args.jobs) for card in args.cards]
    if args.stacks or pairs:
        planned = replace(planned, sandbox=lanes(planned.graders, args.stacks or len(pairs)) | planned.sandbox)

    def started(name: str, gpus: Sequence[str]) -> Stack:
        return services(planned, root / name, args.isolation, gpus)

    if args.stacks:
        yield [Place(partial(started, f"sweep-{i}", []), []) for i in range(args.stacks)]
    elif pairs:
        yield [Place(partial(started, f"sweep-{card}-{i}", [card]), [card]) for card, i in pairs]
    else:
        with started("sweep", args.generator_gpus) as stack:
            yield [Place(lambda: nullcontext(stack), args.trainer_gpus)] * args.jobs


def _run_all(
    todo: list[TrainerSettings], preset: str, places: list[Place], before: Callable[[TrainerSettings], object] = id
) -> list[TrainerSettings]:
    """Make the runs, each at the next free place, showing a live table; returns those that did not finish.

    before(run): called when its turn comes.
    ConfigError when the services of every place have failed; those of some places only leave their runs to the others.
    """
    shared = _Shared(deque(todo), preset, before)
    with ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(shared.work, place) for place in places]
        try:
            _show(todo, shared.codes, futures)
        except BaseException:
            shared.halted.set()
            raise
    if len(shared.errors) == len(places):
        raise shared.errors[0]
    return [s for s in todo if shared.codes.get(s.run_id) != 0]


@dataclass
class _Shared:
    """What the places of a sweep share: runs that wait, exit codes by run, services that failed, whether to end."""

    waiting: deque[TrainerSettings]
    preset: str
    before: Callable[[TrainerSettings], object]
    codes: dict[str, int] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)
    halted: threading.Event = field(default_factory=threading.Event)

    def work(self, place: Place) -> None:
        """At one place, in a thread: run after run, until none waits."""
        try:
            with place.services() as stack:
                while self.waiting and not self.halted.is_set():
                    self._train(self.waiting.popleft(), stack, place)
        except ConfigError as error:
            self.errors.append(error)
            print(f"warning: {error}", file=sys.stderr)

    def _train(self, s: TrainerSettings, stack: Stack, place: Place) -> None:
        def check() -> None:
            stack.check()
            if self.halted.is_set():
                raise KeyboardInterrupt  # train() passes it on to its process, which stops at a step's end

        self.before(s)
        own = s.model_copy(update=stack.access("trainer"))
        self.codes[s.run_id] = train(own, self.preset, quiet=True, check=check, gpus=place.trainer_gpus)
        if self.codes[s.run_id] and not self.halted.is_set():
            print(failure(s), file=sys.stderr, flush=True)


def _show(todo: list[TrainerSettings], codes: Mapping[str, int], futures: Sequence[Future[None]]) -> None:
    """A live table on a terminal, until every place is done."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=1, transient=not console.is_terminal) as live:
        while not all(f.done() for f in futures):
            if console.is_terminal:
                live.update(_table(todo, codes))
            time.sleep(1.0)


def failure(s: TrainerSettings) -> str:
    """One line: the run, where it stopped and why, and where more is said."""
    said, log = status(s.run_dir), s.run_dir / "trainer.log"
    if (
        said is None or said["state"] != "failed"
    ):  # it ended without a word of its own: killed, or before its first step
        return f"failed: {s.run_id}; see {log}"
    return f"failed: {s.run_id} after {said['step']} of {said['steps']} steps: {said['reason']}; see {log}"


def _table(todo: list[TrainerSettings], codes: Mapping[str, int]) -> Table:
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
