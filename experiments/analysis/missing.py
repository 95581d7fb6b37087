"""python -m experiments missing --registration FILE --runs DIR...: which registered runs are still to be made, as sweeps.

    python -m experiments missing --registration experiments/design/registrations/alarm.yaml --preset demo \\
        --runs docs/results/alarm/runs runs --with '--stacks 28' > todo.sh

Counts stand in the lines that begin with #. A run that is kept or has finished is made; one that was stopped is resumed by the
same sweep. What a registration says in prose alone (eval_every, the order of runs) is not in the commands: add it by --with.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import ConfigError
from experiments.analysis.keep import part_of
from experiments.analysis.run_files import Run
from experiments.analysis.run_folders import read_runs
from experiments.design import series
from experiments.design.series import Part
from experiments.options import missing as parser
from rankspace.run_source import is_kept


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    parts = series.parts(options.registration)
    if options.preset is not None:
        known = sorted({part.preset for part in parts})
        parts = [part for part in parts if part.preset == options.preset]
        if not parts:
            raise ConfigError(f"--preset {options.preset}: {options.registration.name} has {', '.join(known)}")
    todo = missing(parts, read_runs(options.runs, may_be_empty=True))
    for part, seeds in todo:
        print(f"# {part.label}: {len(part.seeds) - len(seeds)} of {len(part.seeds)} made")
    whole, left = (sum(map(len, lists)) for lists in ([p.seeds for p in parts], [seeds for _, seeds in todo]))
    print(f"# {options.registration.name}: {whole - left} of {whole} made, {left} to make")
    for line in series.sweeps(todo, options.more):
        print(line)
    return 0


def missing(parts: Sequence[Part], runs: Sequence[Run]) -> list[tuple[Part, list[int]]]:
    """Each part with the seeds that no run has made."""
    made: dict[str, set[int]] = {part.label: set() for part in parts}
    for run in runs:
        part = part_of(run, parts)
        if part is None or part.fault(run.config):
            continue
        # a failed run may be resumed where its checkpoints are; one that is kept was given up
        if run.finished or (part.failed_count and run.status.state == "failed" and is_kept(run.path)):
            made[part.label].add(run.seed)
    return [(part, [seed for seed in part.seeds if seed not in made[part.label]]) for part in parts]
