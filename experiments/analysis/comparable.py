"""Which runs may be compared. A guard against fooling oneself.

Covers: two finished runs of one arm and seed (which one was kept?), several presets at once, runs whose settings are
not those of the arm they are named after, arms with different seeds, different git commits, settings that differ beyond
what the arms fix, directions from different pairs. Each refusal is one line that names runs and the flag that overrides
it (a mislabelled run has none); an override leaves a warning on every page made. Warns without refusing: uncommitted
changes, different package versions, different problems at the first step for the same seed. Lists runs that failed or
were stopped, since what is left may be a biased selection.
Does not cover: edits of the files a run wrote, data files that changed under the same path, a machine that computes
wrongly, and choosing among many `--runs` directories.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from common.errors import ConfigError
from common.scopes import Scope, fields
from common.settings import TrainerSettings
from experiments.analysis.run_files import Run, read_rollouts
from experiments.analysis.run_folders import Roots, named, read_runs
from experiments.design import arms as arm_table
from experiments.design.registration import Design

# No bearing on the result. `steps` has: the final window of a longer run lies elsewhere. `eval_every` has none, since the
# first and the last evaluation are always made, except where an alarm reads the evaluations between (`_counts`).
INCIDENTAL = fields(TrainerSettings, Scope.NAME, Scope.INPUT, Scope.PLACE, Scope.MACHINE, Scope.BOOKKEEPING)
OF_PAIRS = {"pairs", "pairs_mechanism"}


@dataclass(frozen=True)
class Selection:
    """What the user asked for on the command line."""

    root: Roots
    preset: str | None = None
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    allow_unequal_seeds: bool = False
    allow_mixed_commits: bool = False
    allow_mixed_settings: bool = False
    name: str | None = None
    up_to: int | None = None


@dataclass(frozen=True)
class Chosen:
    """Runs that are compared, by arm in table order; `left_out` and `warnings` are lines for the reader."""

    preset: str
    by_arm: dict[str, tuple[Run, ...]]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.by_arm.values() for run in group]


def selection(options: argparse.Namespace) -> Selection:
    names = tuple(name for item in options.arms for name in item.split(",") if name)
    for name in names:
        arm_table.get(name)
    return Selection(
        options.runs, options.preset, names, tuple(options.seeds),
        options.allow_unequal_seeds, options.allow_mixed_commits, options.allow_mixed_settings, options.name,
        options.up_to,
    )  # fmt: skip


def choose(wanted: Selection) -> Chosen:
    """Read, select and check. ConfigError for every refusal in the module's docstring."""
    runs = _of_one_name(_of_one_preset(read_runs(wanted.root, wanted.up_to), wanted), wanted)
    runs = [run for run in runs if not wanted.seeds or run.seed in wanted.seeds]
    runs = [run for run in runs if not wanted.arms or run.arm in wanted.arms]
    missing = [name for name in wanted.arms if name not in {run.arm for run in runs}]
    if missing or not runs:
        what = f"no run of arm {', '.join(missing)}" if missing else "no run is left after the selection"
        raise ConfigError(f"--runs {named(wanted.root)}: {what}; `python -m experiments status` lists what is there")
    kept, left_out = _one_per_arm_and_seed(runs)
    if not kept:
        raise ConfigError(f"--runs {named(wanted.root)}: no run has finished a step yet; try again in a minute")
    by_arm = {name: tuple(run for run in kept if run.arm == name) for name in arm_table.order([r.arm for r in kept])}
    return Chosen(kept[0].preset, by_arm, tuple(left_out), tuple(_checked(by_arm, wanted)))


def choose_registered(wanted: Selection, design: Design) -> Chosen:
    """The runs that a design names, by arm or cell in its order, whatever --name they have; checked as by `choose`."""
    runs = _of_one_preset(read_runs(wanted.root, wanted.up_to), replace(wanted, preset=design.preset))
    by_name: dict[str, tuple[Run, ...]] = {}
    left_out: list[str] = []
    for name, seeds in design.arms.items():
        arm, settings = design.arm_of(name), design.settings_of(name)
        own = [run for run in runs if run.arm == arm and run.seed in seeds and _has(run, settings)]
        kept, lines = _one_per_arm_and_seed(own)
        left_out += lines
        if kept:
            by_name[name] = tuple(kept)
    if not by_name:
        raise ConfigError(
            f"--runs {named(wanted.root)}: no registered run has finished a step; registered: {', '.join(design.arms)}"
        )
    known = {run.path for own in by_name.values() for run in own}
    arms = {design.arm_of(name) for name in design.arms}
    told = {line.partition(" ")[0] for line in left_out}
    left_out += [
        f"{run.run_id} has a seed or settings that are not registered for its arm"
        for run in runs
        if run.arm in arms and run.path not in known and run.run_id not in told
    ]
    uneven = len({frozenset(own) for own in design.arms.values()}) > 1
    checks = replace(wanted, allow_unequal_seeds=wanted.allow_unequal_seeds or uneven)
    doses = {name: frozenset(cell.settings) for name, cell in design.cells.items()}
    return Chosen(design.preset, by_name, tuple(left_out), tuple(_checked(by_name, checks, doses)))


def _place(run: Run) -> tuple[str, int]:
    return run.arm, run.seed


def _has(run: Run, settings: Mapping[str, Any]) -> bool:
    return all(run.config.get(name) == value for name, value in settings.items())


def _checked(
    by_arm: dict[str, tuple[Run, ...]], wanted: Selection, doses: Mapping[str, frozenset[str]] = MappingProxyType({})
) -> list[str]:
    """Warnings. ConfigError for every refusal. doses: fields that a name of `by_arm` has values of its own for."""
    kept = sorted((run for own in by_arm.values() for run in own), key=_place)
    return [
        *_check_labels(kept),
        *check_seeds(by_arm, wanted.allow_unequal_seeds),
        *_check_commits(kept, wanted.allow_mixed_commits),
        *_check_settings(by_arm, wanted.allow_mixed_settings, doses),
        *_check_pairs(by_arm, wanted.allow_mixed_settings, doses),
        *_check_lengths(kept, wanted.up_to),
        *_compare_packages(kept),
        *_compare_problems(kept),
    ]


def _of_one_preset(runs: list[Run], wanted: Selection) -> list[Run]:
    presets = sorted({run.preset for run in runs})
    if wanted.preset is None and len(presets) > 1:
        raise ConfigError(f"--runs {named(wanted.root)}: holds presets {', '.join(presets)}; choose one with --preset")
    if wanted.preset is not None and wanted.preset not in presets:
        raise ConfigError(
            f"--preset {wanted.preset}: no run of it in {named(wanted.root)}; presets there: {', '.join(presets)}"
        )
    return [run for run in runs if wanted.preset in (None, run.preset)]


def _of_one_name(runs: list[Run], wanted: Selection) -> list[Run]:
    """Runs of one --name: those of several are different experiments."""
    called = {id(run): run.provenance.name or run.preset for run in runs}
    names = sorted(set(called.values()))
    if wanted.name is None and len(names) > 1:
        raise ConfigError(f"--runs {named(wanted.root)}: holds runs named {', '.join(names)}; choose one with --name")
    if wanted.name is not None and wanted.name not in names:
        raise ConfigError(f"--name {wanted.name}: no such run in {named(wanted.root)}; names there: {', '.join(names)}")
    return [run for run in runs if wanted.name in (None, called[id(run)])]


def _one_per_arm_and_seed(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The finished run of each arm and seed, else the one that got furthest; a line for each run left out."""
    kept, left_out = [], []
    for key in sorted({(run.arm, run.seed) for run in runs}):
        same = [run for run in runs if (run.arm, run.seed) == key]
        finished = [run for run in same if run.finished]
        if len(finished) > 1:
            names = ", ".join(str(run.path) for run in finished)
            raise ConfigError(f"arm {key[0]} seed {key[1]} finished more than once ({names}); move all but one away")
        best = finished[0] if finished else max(same, key=lambda run: run.steps_done)
        left_out += [_why_left_out(run) for run in same if run is not best]
        if best.steps_done:
            kept.append(best)
        else:
            left_out.append(_why_left_out(best))
    return kept, left_out


def _why_left_out(run: Run) -> str:
    reason = f": {run.status.reason}" if run.status.reason else ""
    done = f"{run.steps_done} of {run.status.steps} steps"
    return f"{run.run_id} ({run.folder}) is {run.status.state} after {done}{reason}"


def _check_labels(runs: list[Run]) -> list[str]:
    """The settings of a run must be those that its arm stands for. No flag overrides this."""
    warnings = []
    for run in runs:
        arm = arm_table.ARMS.get(run.arm)
        if arm is None:
            warnings.append(f"{run.run_id}: arm '{run.arm}' is not in the table of arms; its settings are not checked")
            continue
        for name, value in arm.overrides.items():
            if run.config.get(name) != value:
                raise ConfigError(
                    f"{run.path / 'config.json'}: arm {run.arm} means {name} = {value!r}, the run has "
                    f"{run.config.get(name)!r}; it is not a run of this arm, move it away"
                )
    return warnings


def check_seeds(by_arm: dict[str, tuple[Run, ...]], allow: bool) -> list[str]:
    seeds = {name: tuple(run.seed for run in runs) for name, runs in by_arm.items()}
    if len(set(seeds.values())) <= 1:
        return []
    listing = "; ".join(f"{name}: {', '.join(map(str, own))}" for name, own in seeds.items())
    if not allow:
        raise ConfigError(
            f"arms ran different seeds ({listing}); finish the sweep, select with --seeds or --arms, "
            "or pass --allow-unequal-seeds"
        )
    return [f"Arms ran different seeds ({listing}); paired differences use only the seeds that both have."]


def _check_commits(runs: list[Run], allow: bool) -> list[str]:
    groups = _ids_by([(run.provenance.git_commit or "no commit")[:12] for run in runs], runs)
    warnings = []
    if len(groups) > 1:
        listing = "; ".join(f"{commit}: {ids}" for commit, ids in groups.items())
        if not allow:
            raise ConfigError(
                f"runs come from different git commits ({listing}); run them again from one commit "
                "or pass --allow-mixed-commits"
            )
        warnings.append(f"Runs come from different git commits ({listing}).")
    dirty = [run.run_id for run in runs if run.provenance.git_dirty]
    if dirty:
        warnings.append(f"Started with uncommitted changes, so the commit does not pin the code: {', '.join(dirty)}.")
    return warnings


def _check_settings(by_arm: dict[str, tuple[Run, ...]], allow: bool, doses: Mapping[str, frozenset[str]]) -> list[str]:
    """Settings must be equal over the runs whose own arm does not fix them, and a dose over the runs of its arm.

    Run by run: were a field left out wherever some arm at hand fixes it, adding an arm would open the guard for others.
    """
    lines = []
    names = {name for own in by_arm.values() for run in own for name in run.config if _counts(name, run)}
    for name in sorted(names):
        shared: list[Run] = []
        dosed: list[list[Run]] = []
        for arm, own in by_arm.items():
            free = [run for run in own if name not in _fixed(run) and _counts(name, run)]
            mine = [run for run in free if name in _dose(run) | doses.get(arm, frozenset())]
            shared += [run for run in free if not any(run is one for one in mine)]
            dosed.append(mine)
        for compared in (sorted(shared, key=_place), *dosed):
            groups = _ids_by([repr(run.config.get(name)) for run in compared], compared)
            if len(groups) > 1:
                lines.append(f"{name} is " + ", but ".join(f"{value} in {ids}" for value, ids in groups.items()))
    if lines and not allow:
        shorter = ", compare them as if all had ended at one step with --up-to" if "steps is" in "".join(lines) else ""
        raise ConfigError(
            f"settings differ beyond the arms: {'; '.join(lines)}; run again with equal settings{shorter} "
            "or pass --allow-mixed-settings"
        )
    return [f"Settings differ beyond the arms: {'; '.join(lines)}."] if lines else []


def _counts(name: str, run: Run) -> bool:
    """Whether a setting bears on the run's result."""
    return name not in INCIDENTAL or (name == "eval_every" and run.config.get("alarm_clean") is not None)


def _check_pairs(by_arm: dict[str, tuple[Run, ...]], allow: bool, doses: Mapping[str, frozenset[str]]) -> list[str]:
    """Directions of one seed must come from the same pairs (pairs_hash of v_hack.json), but where the arm chooses them.

    The path v_hack says nothing of what is in the file. Seeds with pairs of their own, the same in each arm, are a design
    that contains the variance of the direction: told, not refused.
    """
    by_seed: dict[int, dict[str, list[Run]]] = {}
    for arm, own in by_arm.items():
        for run in own:
            chosen = _fixed(run) | _dose(run) | doses.get(arm, frozenset())
            found = (run.direction or {}).get("pairs_hash")
            if found and not chosen & OF_PAIRS:
                by_seed.setdefault(run.seed, {}).setdefault(found, []).append(run)
    for seed, groups in sorted(by_seed.items()):
        if len(groups) > 1:
            told = ", but ".join(f"{found[:8]} for {', '.join(r.run_id for r in own)}" for found, own in groups.items())
            line = f"seed {seed}: directions come from different pairs ({told})"
            if not allow:
                raise ConfigError(f"{line}; run again with one pairs file or pass --allow-mixed-settings")
            return [f"{line[0].upper()}{line[1:]}."]
    if len({found for groups in by_seed.values() for found in groups}) > 1:
        return ["Each seed has a direction from pairs of its own, the same in its arms."]
    return []


def _check_lengths(runs: list[Run], up_to: int | None) -> list[str]:
    """Under --up-to: the rate of no run may depend on how long the run was planned."""
    if up_to is None:
        return []
    for run in runs:
        if run.config.get("lr_schedule", "constant") != "constant":
            raise ConfigError(
                f"--up-to {up_to}: {run.run_id} has lr_schedule {run.config['lr_schedule']!r}, so its rates depend on its "
                "number of steps; compare runs of equal steps"
            )
    last = sorted({max(row.step for row in run.evals) for run in runs if run.evals})
    at = f" Last evaluations: at step {', '.join(map(str, last))}." if last else ""
    return [f"Every run is read as if it had ended at step {up_to}, which is not what was registered.{at}"]


def _fixed(run: Run) -> frozenset[str]:
    """The fields that the run's own arm fixes, and where it starts, if the arm says so."""
    arm = arm_table.ARMS.get(run.arm)
    if arm is None:
        return frozenset()
    return frozenset(arm.overrides) | (frozenset({"start_from"}) if arm.starts_from else frozenset())


def _dose(run: Run) -> frozenset[str]:
    """The fields that the run's own arm starts from a value of its own, and --set may change."""
    arm = arm_table.ARMS.get(run.arm)
    return frozenset(arm.defaults) if arm else frozenset()


def _ids_by(values: list[str], runs: list[Run]) -> dict[str, str]:
    """{value: the runs that have it, in short}, in order of appearance; a value a run."""
    groups: dict[str, list[str]] = {}
    for value, run in zip(values, runs, strict=True):
        groups.setdefault(value, []).append(run.run_id)
    return {value: ", ".join(short_ids(ids)) for value, ids in groups.items()}


def _compare_packages(runs: list[Run]) -> list[str]:
    versions: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.provenance.packages.items():
            versions.setdefault(name, set()).add(version)
    mixed = [f"{name} {' / '.join(sorted(found))}" for name, found in sorted(versions.items()) if len(found) > 1]
    return [f"Package versions differ between runs: {', '.join(mixed)}."] if mixed else []


def _compare_problems(runs: list[Run]) -> list[str]:
    """Same seed = same problems in the same order; checked on the first step's rollouts where they are kept."""
    first: dict[int, tuple[str, dict[str, Any]]] = {}
    warnings = []
    for run in runs:
        problems = _first_problems(run)
        if not problems:
            continue
        name, expected = first.setdefault(run.seed, (run.run_id, problems))
        # A group may be missing because it was dropped; those that both have must agree.
        if any(problems[place] != expected[place] for place in problems.keys() & expected.keys()):
            warnings.append(
                f"Seed {run.seed}: {run.run_id} began with other problems than {name}; the pairing is broken."
            )
    return warnings


def _first_problems(run: Run) -> dict[str, Any]:
    """Problem id by the group's place in the first step."""
    return {
        row["group_id"].rsplit("/", 1)[-1]: row["problem_id"]
        for row in read_rollouts(run, 0)
        if row.get("purpose") == "train"
    }


def short_ids(run_ids: Iterable[str]) -> list[str]:
    """['demo-vanilla-s0', 'demo-vanilla-s1'] -> ['demo-vanilla-s0,1']; other names stay as they are."""
    groups: dict[str, list[str]] = {}
    for run_id in run_ids:
        stem, mark, seed = run_id.rpartition("-s")
        groups.setdefault(stem + mark if seed.isdigit() and mark else run_id, []).append(seed if mark else "")
    return [stem + ",".join(own) if stem.endswith("-s") else stem for stem, own in groups.items()]
