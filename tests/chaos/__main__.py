"""python -m tests.chaos --faults N [--seed S]: inject N faults into real runs and check every run. `make chaos` runs it.

Each round is one training run with a few faults at random moments. After it: the run has finished, every group was
trained once or dropped and counted, delta_S is bit for bit the uninterrupted run's, nothing is left behind. The seed is
printed; the same seed gives the same faults in the same order (moments depend on the machine).

--like-gpu: with the GPU presets' checkpoint_every 5, max_staleness 1 and bfloat16, and gradients that no restart repeats. A
resumed run then pushes other weights under numbers that were pushed before. No bits are compared; all else must hold, and
no restart may end in a refusal.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.chaos import accounting
from tests.chaos.clock import shim
from tests.chaos.faults import FAULTS, Fault, Missed, available
from tests.chaos.world import STEPS, World

PER_ROUND = 5
TMPFS_BYTES = 48 << 20


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    p.add_argument("--faults", type=int, default=22, help="how many to inject (default: 22; nightly: 200)")
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--only", help="comma-separated names of faults")
    p.add_argument("--per-round", type=int, default=PER_ROUND, help="faults in one training run")
    p.add_argument(
        "--like-gpu", action="store_true", help="checkpoints every 5 steps, staleness 1, other bits each time"
    )
    p.add_argument("--keep", type=Path, help="work here and keep it, instead of a temporary folder")
    args = p.parse_args(argv)
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    rng = random.Random(seed)
    chosen = plan(args.faults, rng, args.only.split(",") if args.only else None, args.like_gpu)
    again = f"python -m tests.chaos --faults {args.faults} --seed {seed}{' --like-gpu' if args.like_gpu else ''}"
    print(f"chaos: {len(chosen)} faults, seed {seed}; again: {again}", flush=True)
    with contextlib.ExitStack() as stack:
        root = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        return run(root, chosen, args.per_round, rng, args.like_gpu)


def plan(number: int, rng: random.Random, only: list[str] | None, like_gpu: bool = False) -> list[Fault]:
    """Every kind once before any kind twice, in random order; kinds this machine cannot inject are named and left out."""
    kinds = [FAULTS[name] for name in only] if only else available(like_gpu)
    for missing in () if only else sorted(set(FAULTS) - {f.name for f in kinds}):
        print(f"chaos: {missing} left out: needs {FAULTS[missing].needs}", flush=True)
    chosen: list[Fault] = []
    while len(chosen) < number:
        deck = list(kinds)
        rng.shuffle(deck)
        if len(chosen) + len(deck) > number:  # a part of a deck: the cheap ones
            deck = sorted(deck, key=lambda f: f.cost)[: number - len(chosen)]
            rng.shuffle(deck)
        chosen += deck
    return chosen


def run(root: Path, chosen: list[Fault], per_round: int, rng: random.Random, like_gpu: bool = False) -> int:
    started = time.monotonic()
    world = World(root, _clocks(root), like_gpu)
    try:
        calm = None if like_gpu else _calm(world)
        recovery: dict[str, list[float]] = defaultdict(list)
        waiting, number = list(chosen), 0
        while waiting:
            number += 1
            assert number <= 3 * len(chosen) + 3, f"these faults find no moment to strike: {[f.name for f in waiting]}"
            faults, waiting = waiting[:per_round], waiting[per_round:]
            waiting = _round(world, f"round-{number}", faults, rng, calm, recovery) + waiting
    finally:
        world.close()
    print(f"\n{'fault':44}{'times':>6}{'median s':>10}{'worst s':>9}   to the next finished step")
    for name in sorted(recovery):
        times = recovery[name]
        print(f"{name:44}{len(times):6}{statistics.median(times):10.1f}{max(times):9.1f}")
    total = sum(map(len, recovery.values()))
    print(f"chaos: {total} faults in {number} runs, none lost or doubled a group; {time.monotonic() - started:.0f} s")
    return 0


def _calm(world: World) -> bytes:
    """delta_S of the uninterrupted run; twice, because bits can be compared only if an undisturbed run repeats them."""
    found = []
    for name in ("calm-0", "calm-1"):
        world.begin(name)
        took = world.wait(world.finished, 300, "an undisturbed run")
        accounting.everything(world, None)
        found.append(world.delta(world.settings.run_dir))
        print(f"chaos: {name}: {STEPS} steps in {took:.0f} s, delta_S of {len(found[-1])} bytes", flush=True)
    assert found[0] == found[1], "two undisturbed runs differ: generation does not repeat itself"
    assert any(found[0]), "the undisturbed run has not moved delta_S"
    return found[0]


def _round(
    world: World, name: str, faults: list[Fault], rng: random.Random, calm: bytes | None, recovery: dict
) -> list[Fault]:
    """One run with these faults in it, and all checks after it; returns the faults for which the run was too short."""
    left = list(faults)
    with _run_dir(world, name, any(f.needs == "tmpfs" for f in faults)) as run_dir:
        world.begin(name, run_dir)
        for number in range(len(faults)):
            due = number * STEPS // len(faults)
            world.wait(lambda due=due: world.finished() or world.step() >= due, 300, f"step {due}")
            world.pause_for(rng.uniform(0, 0.7))
            if world.finished() or not _strike(world, name, left[0], rng, recovery):
                break
            left.pop(0)
        world.wait(world.finished, 300, "the end of the run")
        remarks = accounting.everything(world, calm)
        print(
            f"{name:9} finished; outcomes {world.outcomes()}; restarted {world.restarts} {' '.join(remarks)}",
            flush=True,
        )
    return left


def _strike(world: World, name: str, fault: Fault, rng: random.Random, recovery: dict) -> bool:
    """Inject one fault and wait until the run is one step further; False when it missed."""
    step = world.step()
    try:
        did = fault.inject(world, rng)
    except Missed:
        return False
    now = world.step()
    took = world.wait(lambda: world.finished() or world.step() > now, 300, f"recovery from {fault.name}")
    recovery[fault.name].append(took)
    print(f"{name:9} step {step:2}  {fault.name:40} {did:40} recovered in {took:5.1f} s", flush=True)
    return True


@contextlib.contextmanager
def _run_dir(world: World, name: str, small: bool):
    """The run directory; on a small file system of its own when the disk is to be filled."""
    path = world.root / name
    path.mkdir(parents=True, exist_ok=True)
    if small:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "chaos", str(path)], check=True)
    try:
        yield path
    finally:
        if small:
            subprocess.run(["umount", "-l", str(path)], check=True)


def _clocks(root: Path) -> dict[str, dict[str, str]]:
    """Redis and one grader run on a wall clock that the tests can set."""
    root.mkdir(parents=True, exist_ok=True)
    library, clock = shim(root), (root / "clock").resolve()
    clock.write_bytes(bytes(8))
    moved = {} if library is None else {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
    return {"redis": moved, "sandbox-1": moved}


if __name__ == "__main__":
    sys.exit(main())
