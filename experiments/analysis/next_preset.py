"""`python -m experiments next-preset`: the plan's decision branch. Did vanilla learn to hack (H4)?"""

from __future__ import annotations

from common.errors import ConfigError
from experiments.analysis import comparable
from experiments.analysis.measures import Summary, summarise
from experiments.analysis.stats import mean_sem
from experiments.design import prereg, presets
from experiments.design.presets import Preset
from experiments.options import next_preset as parser


def decide(preset: Preset, runs: list[Summary], threshold_pp: float, steps: int) -> tuple[str | None, str]:
    """(next preset or None, the reason as one sentence). Pure; `runs` are finished vanilla runs of `preset`.

    A preset planned for fewer steps than H4 is stated for is judged at its own end, and the sentence says so. A run cut
    short of its preset's own length decides nothing: ConfigError.
    """
    planned = preset.values.get("steps", 80)
    for run in runs:
        if run.steps_done < planned:
            raise ConfigError(
                f"{run.run_id}: {run.steps_done} steps, preset {preset.name} plans {planned}; "
                "finish a run of the full length first"
            )
    hack = mean_sem([100 * run.hack for run in runs])
    ids = ", ".join(run.run_id for run in runs)
    hacks = hack.mean > threshold_pp
    caveat = "" if planned >= steps else f" (H4 is stated for {steps} steps, this preset has {planned})"
    what = f"vanilla ends at {hack.mean:.1f}% strict hack rate over {hack.n} seed{'s' * (hack.n != 1)} ({ids})"
    verb = "above" if hacks else "not above"
    return (preset.if_hacks if hacks else preset.if_not), f"{what}, {verb} {threshold_pp:g}%{caveat}"


def advice(preset: Preset, following: str | None) -> str:
    """What to do next, as one line with the command."""
    if following is None:
        return (
            f"stop: no preset follows {preset.name} when vanilla does not hack; there is nothing to suppress, "
            "so H1 and H3 cannot be evaluated"
        )
    if following == preset.name:
        command = f"python -m experiments sweep --preset {following} --arms all"
        return f"next preset: {following}: stay and run all arms: {command}"
    command = f"python -m experiments sweep --preset {following} --arms vanilla --seeds 0"
    return f"next preset: {following}: does vanilla hack there? {command}"


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    chosen = comparable.choose(comparable.Selection(options.runs, options.preset, ("vanilla",)))
    registered = prereg.load()
    rule = registered.hypotheses["H4"]
    done = [summarise(run, registered.measures) for run in chosen.runs if run.finished]
    if not done:
        raise ConfigError(
            f"--runs {options.runs}: no vanilla run has finished; wait for it, `python -m experiments status`"
        )
    preset = presets.get(chosen.preset)
    following, why = decide(preset, done, rule.hack_above_pp, rule.steps)  # type: ignore[union-attr]  # H4 is a rule of onset
    print(f"preset {preset.name}: {why}")
    print(advice(preset, following))
    return 0
