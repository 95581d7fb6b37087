"""Reading run directories: exact values, live runs, and damage that must not pass."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from synthetic_runs import MODULES, Plan, write

from common.errors import ConfigError
from common.measurements import MEASUREMENTS
from experiments.analysis.run_files import MetricsRow, read_rollouts, read_run, rollout_steps
from experiments.analysis.run_folders import find_runs, read_runs


def edit(path, change):
    """Apply `change` to the list of lines of a file."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))


def set_state(path, state):
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps(status | {"state": state}))


def test_generator_and_reader_agree(tmp_path):
    plan = Plan(arm="projected", seed=2, hack=[0.0, 0.25, 0.5], passed=[0.5, 0.25, 0.0], cos=[0.3, 0.2, 0.1])
    run = read_run(write(tmp_path, plan))
    assert (run.run_id, run.arm, run.seed, run.preset) == ("demo-projected-s2", "projected", 2, "demo")
    assert run.finished and run.steps_done == 3 and run.notes == ()
    assert run.series["hack_strict"].tolist() == [0.0, 0.25, 0.5]
    assert run.series["pass_oracle"].tolist() == [0.5, 0.25, 0.0]
    assert run.series["cos_mean"].tolist() == [0.3, 0.2, 0.1]
    assert run.series["seconds_total"].tolist() == [4.6] * 3
    assert run.module_names == tuple(MODULES) and run.cos.shape == (3, len(MODULES)) == run.update_cos.shape
    assert run.label_counts == {"Reward Hack": 12, "Correct": 12, "Incorrect": 24}
    assert [(row.mode, row.step) for row in run.evals[:2]] == [("hint", 0), ("hint", 3)]
    assert run.direction["validation"]["n_modules"] == len(MODULES)
    assert len(read_rollouts(run, 1)) == 16 and rollout_steps(run) == [0, 1, 2]
    assert run.config["projection"] == "one_sided"


def test_no_direction_is_nan_not_zero(tmp_path):
    run = read_run(write(tmp_path, Plan(cos=None)))
    assert np.isnan(run.series["cos_mean"]).all() and np.isnan(run.series["frac_fired"]).all()
    assert run.module_names == () and run.direction is None


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_half_written_last_line_of_an_unfinished_run(tmp_path, state):
    path = write(tmp_path, Plan(state=state, planned=9))
    edit(path / "metrics.jsonl", lambda lines: [*lines[:-1], lines[-1][:50]])
    run = read_run(path)
    assert run.steps_done == 3
    assert run.notes == ("metrics.jsonl: line 4 is half-written and left out",)


def test_half_written_last_line_of_a_finished_run(tmp_path):
    path = write(tmp_path, Plan())
    edit(path / "metrics.jsonl", lambda lines: [*lines[:-1], lines[-1][:50]])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:4: "):
        read_run(path)


def test_whole_last_line_without_newline_counts(tmp_path):
    path = write(tmp_path, Plan(state="running", planned=9))
    edit(path / "metrics.jsonl", lambda lines: [*lines[:-1], lines[-1].rstrip("\n")])
    assert read_run(path).steps_done == 4


def test_malformed_line_in_the_middle_is_never_dropped(tmp_path):
    path = write(tmp_path, Plan(state="running", planned=9))
    edit(path / "metrics.jsonl", lambda lines: [lines[0], "{broken\n", *lines[2:]])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: "):
        read_run(path)
    edit(path / "metrics.jsonl", lambda lines: [lines[0], "\n", *lines[2:]])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: "):
        read_run(path)


def test_missing_field_is_named_even_at_the_end_of_a_live_run(tmp_path):
    path = write(tmp_path, Plan(state="running", planned=9))

    def without_kl(lines):
        row = json.loads(lines[-1])
        del row["kl"]
        return [*lines[:-1], json.dumps(row)]

    edit(path / "metrics.jsonl", without_kl)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:4: field 'kl' is missing"):
        read_run(path)


def test_resumed_step_counts_once_and_is_said(tmp_path):
    path = write(tmp_path, Plan())
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[3]) | {"hack_strict": 0.75}
    edit(path / "metrics.jsonl", lambda lines: [*lines, json.dumps(row) + "\n"])
    run = read_run(path)
    assert run.series["hack_strict"].tolist() == [0.02, 0.1, 0.4, 0.75]
    assert run.notes == ("metrics.jsonl: 1 steps were written twice (resume); the later row counts",)


def test_hole_in_the_steps(tmp_path):
    path = write(tmp_path, Plan(state="running", planned=9))
    edit(path / "metrics.jsonl", lambda lines: [lines[0], *lines[2:]])
    with pytest.raises(ConfigError, match="step 1 is missing but step 3 is there"):
        read_run(path)


def test_finished_run_has_all_its_steps(tmp_path):
    path = write(tmp_path, Plan(state="running", planned=9))
    set_state(path, "finished")
    with pytest.raises(ConfigError, match="4 steps in a finished run of 9"):
        read_run(path)


def test_step_without_an_optimizer_step(tmp_path):
    """When no group had variance there is no gradient: nulls in metrics, no row in modules."""
    path = write(tmp_path, Plan(cos=[0.1, 0.2, 0.3, 0.4]))

    def hollow(lines):
        row = json.loads(lines[1]) | {"cos_mean": None, "kl": None, "loss": None}
        return [lines[0], json.dumps(row) + "\n", *lines[2:]]

    edit(path / "metrics.jsonl", hollow)
    edit(path / "modules.jsonl", lambda lines: [lines[0], *lines[2:]])
    run = read_run(path)
    assert np.isnan(run.series["cos_mean"][1]) and run.module_steps.tolist() == [0, 2, 3]


def test_cosines_that_do_not_fit_the_modules(tmp_path):
    path = write(tmp_path, Plan(cos=[0.1] * 4))
    names = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps(names | {"names": names["names"][:-1]}))
    with pytest.raises(ConfigError, match=r"a row has 28 cosines, modules\.json names 27 modules"):
        read_run(path)


def test_two_runs_in_one_directory(tmp_path):
    path = write(tmp_path, Plan())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"seed": 5}))
    with pytest.raises(ConfigError, match=r"config\.json says seed 5, provenance.json 0"):
        read_run(path)


@pytest.mark.parametrize("name", ["status.json", "provenance.json", "config.json"])
def test_damaged_object_files(tmp_path, name):
    path = write(tmp_path, Plan())
    (path / name).write_text('{"state": ')
    with pytest.raises(ConfigError, match=rf"{name}: not JSON"):
        read_run(path)
    (path / name).write_text("[]")
    with pytest.raises(ConfigError, match=rf"{name}: must hold an object"):
        read_run(path)


def test_rollouts_in_several_gzip_members_and_surrogates(tmp_path):
    run = read_run(write(tmp_path, Plan()))
    file = run.path / "rollouts" / "step_000001.jsonl.gz"
    with open(file, "ab") as out:
        out.write(gzip.compress(json.dumps({"text": "\ud800"}).encode() + b"\n"))
    assert len(read_rollouts(run, 1)) == 17 and read_rollouts(run, 1)[-1]["text"] == "\ud800"
    assert read_rollouts(run, 77) == []


def test_damaged_rollouts(tmp_path):
    run = read_run(write(tmp_path / "a", Plan()))
    file = run.path / "rollouts" / "step_000003.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"step_000003\.jsonl\.gz: damaged"):
        read_rollouts(run, 3)
    live = read_run(write(tmp_path / "b", Plan(state="running", planned=9)))
    file = live.path / "rollouts" / "step_000003.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    assert read_rollouts(live, 3) == []  # being written now
    file = live.path / "rollouts" / "step_000001.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="damaged"):
        read_rollouts(live, 1)


def test_finding_runs(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no run in it"):
        find_runs(tmp_path)
    a, b = write(tmp_path, Plan()), write(tmp_path, Plan(seed=1))
    (tmp_path / ".stack").mkdir()
    assert find_runs(tmp_path) == [a, b] and find_runs(a) == [a]
    assert [run.seed for run in read_runs(tmp_path)] == [0, 1]


def test_a_run_without_a_word_yet_is_passed_over_and_one_that_lost_its_status_is_not(tmp_path):
    """A sweep under way has a directory before its trainer runs; a run with rows and no status.json is damaged."""
    write(tmp_path, Plan(seed=0))
    begun = write(tmp_path, Plan(seed=1))
    for name in ("status.json", "metrics.jsonl", "config.json"):
        (begun / name).unlink()
    assert [run.seed for run in read_runs(tmp_path)] == [0]
    with pytest.raises(ConfigError, match="none of its 1 runs has said a word yet"):
        find_runs(begun)
    lost = write(tmp_path, Plan(seed=2))
    (lost / "status.json").unlink()
    with pytest.raises(ConfigError, match="is this a run directory"):
        read_runs(tmp_path)


def test_rows_of_a_newer_trainer_are_read_and_older_ones_too(tmp_path):
    path = write(tmp_path, Plan())
    old = read_run(path)
    assert np.isnan(old.series["kl_all"]).all() and np.isnan(old.series["drift_ref_cos_mean"]).all()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    newer = {"kl_all": 0.25, "groups": 4, "trained_groups": 1, "updates": 3, "intervened": True, "not_known_yet": 1}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row | newer) + "\n" for row in rows))
    evals = (path / "eval.jsonl").read_text().replace('"random_test_name"', '"asked_for_tests"')
    (path / "eval.jsonl").write_text(evals)
    found = read_run(path)
    assert found.series["kl_all"].tolist() == [0.25] * 4 and found.series["intervened"].tolist() == [1.0] * 4
    assert "asked_for_tests" in {row.mode for row in found.evals}


def test_a_row_of_another_version_misses_only_what_came_later():
    assert list(MetricsRow.model_fields) == [m.name for m in MEASUREMENTS]
    needed = {name for name, field in MetricsRow.model_fields.items() if field.is_required()}
    assert needed == {m.name for m in MEASUREMENTS if not m.later}
