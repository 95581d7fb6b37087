"""Every promise of comparable.py, attacked once."""

from __future__ import annotations

import gzip
import json

import pytest
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments.analysis.comparable import Selection, choose, short_ids


def runs(root, *plans):
    for plan in plans:
        write(root, plan)
    return Selection(root)


def test_equal_runs_pass_without_a_word(tmp_path):
    chosen = choose(runs(tmp_path, *(Plan(arm=a, seed=s) for a in ("projected", "vanilla") for s in (0, 1))))
    assert list(chosen.by_arm) == ["vanilla", "projected"]  # table order
    assert [run.seed for run in chosen.by_arm["projected"]] == [0, 1]
    assert chosen.warnings == () and chosen.left_out == () and chosen.preset == "demo"


def test_unequal_seeds(tmp_path):
    wanted = runs(tmp_path, Plan(seed=0), Plan(seed=1), Plan(arm="projected", seed=0))
    with pytest.raises(ConfigError, match=r"different seeds \(vanilla: 0, 1; projected: 0\).*--allow-unequal-seeds"):
        choose(wanted)
    assert "only the seeds that both have" in choose(Selection(tmp_path, allow_unequal_seeds=True)).warnings[0]
    assert choose(Selection(tmp_path, seeds=(0,))).warnings == ()
    assert choose(Selection(tmp_path, arms=("vanilla",))).warnings == ()


def test_mixed_commits(tmp_path):
    wanted = runs(tmp_path, Plan(commit="a" * 40), Plan(arm="projected", commit="b" * 40))
    with pytest.raises(ConfigError, match=r"b{12}: demo-projected-s0; a{12}: demo-vanilla-s0.*--allow-mixed-commits"):
        choose(wanted)
    assert "different git commits" in choose(Selection(tmp_path, allow_mixed_commits=True)).warnings[0]


def test_no_commit_is_a_commit_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match="no commit: demo-projected-s0"):
        choose(runs(tmp_path, Plan(), Plan(arm="projected", commit=None)))


def test_mixed_settings(tmp_path):
    wanted = runs(tmp_path, Plan(), Plan(arm="projected", settings={"lr": 0.5}))
    with pytest.raises(ConfigError, match=r"lr is 0\.5 in demo-projected-s0, but 0\.02 in demo-vanilla-s0; run again"):
        choose(wanted)
    assert "lr is 0.5" in choose(Selection(tmp_path, allow_mixed_settings=True)).warnings[0]


def test_settings_that_arms_fix_or_that_do_not_matter_may_differ(tmp_path):
    chosen = choose(runs(tmp_path, Plan(), Plan(arm="projected", settings={"metrics_port": 9100})))
    assert chosen.warnings == ()


def test_an_arm_that_fixes_a_field_opens_the_guard_for_no_other(tmp_path):
    wanted = runs(
        tmp_path,
        Plan(),
        Plan(arm="projected", settings={"loophole": "sentinel_attribute"}),
        Plan(arm="no_loophole"),
    )
    with pytest.raises(ConfigError, match=r"loophole is 'sentinel_attribute' in demo-projected-s0, but .* in demo-van"):
        choose(wanted)


def test_mislabelled_run_has_no_override(tmp_path):
    path = write(tmp_path, Plan(arm="projected"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"projection": "off"}))
    everything = Selection(tmp_path, allow_unequal_seeds=True, allow_mixed_commits=True, allow_mixed_settings=True)
    with pytest.raises(ConfigError, match="arm projected means projection = 'one_sided', the run has 'off'"):
        choose(everything)


def test_two_finished_runs_of_one_arm_and_seed(tmp_path):
    path = write(tmp_path, Plan())
    path.rename(tmp_path / "first-try")
    with pytest.raises(ConfigError, match="arm vanilla seed 0 finished more than once"):
        choose(runs(tmp_path, Plan()))


def test_finished_run_wins_over_a_failed_one_which_is_listed(tmp_path):
    path = write(tmp_path, Plan(state="failed", planned=80))
    path.rename(tmp_path / "first-try")
    chosen = choose(runs(tmp_path, Plan()))
    assert [run.path.name for run in chosen.runs] == ["demo-vanilla-s0"]
    assert chosen.left_out == ("demo-vanilla-s0 (first-try) is failed after 4 of 80 steps",)


def test_several_presets(tmp_path):
    wanted = runs(tmp_path, Plan(), Plan(preset="smoke"))
    with pytest.raises(ConfigError, match="holds presets demo, smoke; choose one with --preset"):
        choose(wanted)
    assert choose(Selection(tmp_path, "smoke")).preset == "smoke"
    with pytest.raises(ConfigError, match="--preset qwen3-4b: no run of it"):
        choose(Selection(tmp_path, "qwen3-4b"))


def test_absent_arm_and_empty_selection(tmp_path):
    runs(tmp_path, Plan())
    with pytest.raises(ConfigError, match="no run of arm rebound"):
        choose(Selection(tmp_path, arms=("vanilla", "rebound")))
    with pytest.raises(ConfigError, match="no run is left"):
        choose(Selection(tmp_path, seeds=(7,)))


def test_run_without_a_step_is_left_out(tmp_path):
    runs(tmp_path, Plan(), Plan(arm="projected", hack=[], passed=[], safe_pass=[(0, 0.1)], state="running", planned=4))
    chosen = choose(Selection(tmp_path))
    assert list(chosen.by_arm) == ["vanilla"] and "is running after 0 of 4 steps" in chosen.left_out[0]


def test_warnings_for_dirt_packages_and_other_problems(tmp_path):
    wanted = runs(
        tmp_path,
        Plan(dirty=True),
        Plan(arm="projected", packages={"torch": "2.12.0", "vllm": "0.32.0"}),
        Plan(arm="rebound", problem_shift=1),
    )
    dirty, packages, problems = choose(wanted).warnings
    assert "uncommitted changes" in dirty and "demo-vanilla-s0" in dirty
    assert packages == "Package versions differ between runs: torch 2.12.0 / 2.13.0."
    assert problems.startswith("Seed 0: demo-rebound-s0 began with other problems than demo-")


def test_a_dropped_group_is_not_another_problem(tmp_path):
    runs(tmp_path, Plan(), Plan(arm="projected"))
    file = tmp_path / "demo-projected-s0/rollouts/step_000000.jsonl.gz"
    rows = [line for line in gzip.decompress(file.read_bytes()).decode().splitlines(True) if "/train/0/2" not in line]
    assert len(rows) == 12
    with gzip.open(file, "wt") as out:
        out.writelines(rows)
    assert choose(Selection(tmp_path)).warnings == ()


def test_short_ids():
    assert short_ids(["d-a-s0", "d-a-s1", "x", "d-b-s10"]) == ["d-a-s0,1", "x", "d-b-s10"]


def test_arms_keep_their_own_dose_and_one_arm_has_one(tmp_path):
    wanted = runs(tmp_path, Plan(), Plan(arm="leash"), Plan(arm="setpoint", settings={"dose": 0.5}))
    assert list(choose(wanted).by_arm) == ["vanilla", "leash", "setpoint"]
    for arm, dose in (("setpoint", 0.25), ("vanilla", 0.25)):  # another dose of the arm; a dose where the arm has none
        other = Plan(arm=arm, seed=1, settings={"dose": dose})
        root = runs(tmp_path / arm, Plan(), other, Plan(arm="setpoint")).root
        with pytest.raises(ConfigError, match=r"dose is .* but "):
            choose(Selection(root, allow_unequal_seeds=True))


def directed(root, pairs_hash, **plan):
    path = write(root, Plan(cos=[0.1] * 4, **plan))
    made = json.loads((path / "v_hack.json").read_text())
    (path / "v_hack.json").write_text(json.dumps(made | {"pairs_hash": pairs_hash}))
    return Selection(root)


def test_directions_of_one_seed_from_different_pairs(tmp_path):
    directed(tmp_path, "a" * 64)
    wanted = directed(tmp_path, "b" * 64, arm="projected")
    with pytest.raises(
        ConfigError,
        match=r"seed 0: directions come from different pairs \(a{8} for demo-vanilla-s0, but b{8} for demo-p",
    ):
        choose(wanted)
    told = choose(Selection(tmp_path, allow_mixed_settings=True)).warnings
    assert len(told) == 1 and told[0].startswith("Seed 0: directions come from different pairs")


def test_a_direction_per_seed_is_told_and_not_refused(tmp_path):
    for seed, pairs in enumerate(("a" * 64, "b" * 64)):
        for arm in ("vanilla", "projected"):
            directed(tmp_path, pairs, arm=arm, seed=seed)
    assert choose(Selection(tmp_path)).warnings == (
        "Each seed has a direction from pairs of its own, the same in its arms.",
    )


def test_runs_without_pairs_have_nothing_to_compare(tmp_path):
    """Old runs do not say their pairs; a random direction has none."""
    directed(tmp_path, "a" * 64)
    assert choose(runs(tmp_path, Plan(arm="random_direction", cos=[0.1] * 4))).warnings == ()


def test_unequal_steps_are_refused_by_name_and_can_be_cut(tmp_path):
    short = Plan(hack=[0.0, 0.1, 0.2, 0.4], passed=[0.1, 0.2, 0.3, 0.3], safe_pass=[(0, 0.1), (4, 0.3)])
    longer = Plan(
        arm="projected", hack=[0.0, 0.2, 0.4, 0.6, 1.0, 1.0], passed=[0.1, 0.2, 0.3, 0.4, 0.5, 0.5],
        safe_pass=[(0, 0.1), (3, 0.25), (6, 0.5)], cos=[0.1] * 6,
    )  # fmt: skip
    wanted = runs(tmp_path, short, longer)
    with pytest.raises(ConfigError, match=r"steps is 6 in demo-projected-s0, but 4 in demo-vanilla-s0.*--up-to"):
        choose(wanted)
    chosen = choose(Selection(tmp_path, up_to=4))
    (cut,) = chosen.by_arm["projected"]
    assert (cut.steps_done, cut.status.steps, cut.finished, cut.cos.shape[0]) == (4, 4, True, 4)
    assert cut.series["hack_strict"].tolist() == [0.0, 0.2, 0.4, 0.6] and sum(cut.label_counts.values()) == 64
    assert {row.step for row in cut.evals} == {0, 3}
    assert "as if it had ended at step 4" in chosen.warnings[0] and "at step 3, 4" in chosen.warnings[0]
    with pytest.raises(ConfigError, match="steps is 5"):  # the short run has no step 5 to be read up to
        choose(Selection(tmp_path, up_to=5))


def test_a_rate_that_depends_on_the_number_of_steps_cannot_be_cut(tmp_path):
    wanted = runs(tmp_path, Plan(settings={"lr_schedule": "cosine"}))
    assert choose(wanted)
    with pytest.raises(ConfigError, match="--up-to 2: demo-vanilla-s0 has lr_schedule 'cosine'"):
        choose(Selection(tmp_path, up_to=2))


def test_how_often_is_evaluated_matters_only_to_an_alarm(tmp_path):
    assert choose(runs(tmp_path, Plan(), Plan(arm="projected", settings={"eval_every": 7}))).warnings == ()
    for run in tmp_path.iterdir():
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"alarm_clean": "clean.json"}))
    with pytest.raises(ConfigError, match="eval_every is 7 in demo-projected-s0, but 25 in demo-vanilla-s0"):
        choose(Selection(tmp_path))
