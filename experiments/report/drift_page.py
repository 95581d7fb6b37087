"""python -m experiments drift: where training has taken delta_S along v_hack, and whether it hacks there.

    drift = mean over modules of  −delta_S[m]·v[m] / ‖delta_S[m]‖,   at the last checkpoint

The sign is that of a gradient: positive means that delta_S has moved to where hacks are likelier. One v_hack serves all runs,
also those that were trained against another direction or none. Writes drift.csv and drift.png. Exploratory: no
preregistered rule reads it, and in arms that project v_hack the drift is what they do, not what they show.
"""

from __future__ import annotations

from common.errors import ConfigError
from common.writable import require_directory
from experiments.analysis import comparable, drift
from experiments.analysis.run_folders import named
from experiments.design import prereg
from experiments.options import drift as parser
from experiments.report import build, csv_export
from experiments.report.tables import views


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    require_directory(options.out, "--out")
    chosen = comparable.choose(comparable.selection(options))
    from experiments.report.figures.drift import scatter
    from rankspace.run_checkpoint import checkpoints

    arms = views(chosen, prereg.load().measures)
    direction = drift.load(options.v_hack or drift.own_direction(chosen.runs))
    places, missing = [], []
    for run, summary in (pair for arm in arms for pair in zip(arm.runs, arm.summaries, strict=True)):
        if checkpoints(run.path):
            places.append(drift.place(run, summary, direction))
        else:
            missing.append(run.run_id)
    if not places:
        raise ConfigError(
            f"--runs {named(options.runs)}: no run has a checkpoint; copy their checkpoints/ beside metrics.jsonl"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "drift.csv").write_bytes(csv_export.as_csv(drift.HEAD, [drift.row(p) for p in places]))
    (options.out / "drift.png").write_bytes(build.png(scatter(arms, places)))
    print("\n".join(map(drift.line, sorted(places, key=lambda p: p.drift))))
    if missing:
        print(f"no checkpoint kept: {', '.join(comparable.short_ids(missing))}")
    print(f"drift: {options.out / 'drift.png'}, {options.out / 'drift.csv'}")
    return 0
