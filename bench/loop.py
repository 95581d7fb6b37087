"""Seconds a training step on the organism, 16 x 8 rollouts through the real services, by phase.

Baseline: max_staleness 0, where trainer and generator take turns. Against it: max_staleness 1, where the next step's
rollouts are made while this one is trained on. Same problems and seeds, one after the other on the same services.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import cli
from common.errors import ConfigError
from common.settings import TrainerSettings, build
from experiments.analysis import run_files
from experiments.design import presets
from experiments.launch.direction import ensure_direction
from experiments.launch.run import train
from experiments.launch.stack import Stack

PHASES = (*run_files.PHASES, "total")


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m bench.loop", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args(argv)
    preset = presets.get("demo")
    found = {}
    with (
        tempfile.TemporaryDirectory() as root,
        Stack.start(Path(root) / "stack", presets.ORGANISM_MODEL, preset.server, preset.graders) as stack,
    ):
        for ahead in (0, 1):
            free = {"steps": args.steps, "max_staleness": ahead, "eval_every": 0, "eval_problems": 1}
            values = presets.resolve("demo", "projected", 0, free, Path(root), Path(root) / f"ahead{ahead}")
            s = build(TrainerSettings, values | stack.access("trainer") | {"run_id": f"bench-{ahead}"})
            ensure_direction("demo", "projected", 0, s)
            if train(s, "demo", quiet=True, check=stack.check):
                raise ConfigError(f"the run failed: {(s.run_dir / 'trainer.log').read_text()[-500:]}")
            found[ahead] = phase_medians(s.run_dir)
    _print(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return 0


def phase_medians(run_dir: Path) -> dict[str, float]:
    """Median seconds of each phase over the steps of a run. generate and grade overlap with wait."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {phase: statistics.median(row["seconds"][phase] for row in rows) for phase in PHASES}


def _print(found: dict[int, dict[str, float]]) -> None:
    print(f"{'':24}" + "".join(f"{phase:>10}" for phase in PHASES))
    for ahead, name in ((0, "taking turns (baseline)"), (1, "one step ahead")):
        print(f"{name:24}" + "".join(f"{found[ahead][phase]:10.2f}" for phase in PHASES))
    print(f"{'ratio':24}" + "".join(f"{found[0][p] / max(found[1][p], 1e-9):10.2f}" for p in PHASES))
    print("median seconds a step; generate and grade are the services' own time and overlap with wait")


if __name__ == "__main__":
    sys.exit(cli.run(main))
