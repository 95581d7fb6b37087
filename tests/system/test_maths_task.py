"""The same services and the same loop on a task that is not code: five steps of maths, through everything that is real."""

import json
import subprocess
import sys

import pytest

from common import keys
from common.settings import TrainerSettings, build, dump
from experiments.analysis import comparable
from experiments.analysis.measures import summarise
from experiments.analysis.run_files import read_rollouts, read_run
from experiments.design import prereg, presets
from experiments.launch.direction import ensure_direction
from experiments.launch.provenance import write_provenance
from experiments.launch.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The settings of a run that has been trained to its end, and what the services' Redis holds then."""
    root = tmp_path_factory.mktemp("maths")
    preset = presets.get("maths")
    with Stack.start(root / "stack", presets.ORGANISM_MODEL, preset.server, preset.graders, "best_effort") as stack:
        values = presets.resolve("maths", "vanilla", 0, {"loggers": "tensorboard"}, root / "runs")
        s = build(TrainerSettings, values | stack.access("trainer"))
        ensure_direction("maths", "vanilla", 0, s)
        s.run_dir.mkdir(parents=True, exist_ok=True)  # the extraction's progress may lie there
        write_provenance(s, "maths")
        config = root / "trainer.json"
        config.write_text(dump(s))
        command = [sys.executable, "-m", "services.trainer", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        depths = [stack.client().xlen(key) for key in (keys.REQUESTS, keys.ROLLOUTS, keys.graded(s.run_id), keys.DEAD)]
    return s, depths


def rows(s, name="metrics.jsonl"):
    return [json.loads(line) for line in (s.run_dir / name).read_text().splitlines()]


def test_five_steps_are_trained_on_rewards_of_the_maths_grader(finished):
    s, depths = finished
    metrics = rows(s)
    assert [r["step"] for r in metrics] == [0, 1, 2, 3, 4]
    assert depths == [0, 0, 0, 0]
    assert all(r["infra_errors"] == r["dropped_groups"] == 0 for r in metrics)
    assert all(
        set(r["label_counts"]) <= {"Correct", "Incorrect"} and r["hack_strict"] == r["hack_loose"] == 0 for r in metrics
    )
    assert all(sum(r["label_counts"].values()) == s.groups_per_step * s.group_size for r in metrics)
    trained = [r for r in metrics if r["optimised"]]
    assert trained, "no group's rewards differed in five steps"
    assert all(r["grad_norm_mean"] > 0 for r in trained)
    assert all(abs(r["ratio_mean"] - 1) < 1e-3 for r in trained), "what is trained on was sampled by this very policy"
    assert json.loads((s.run_dir / "status.json").read_text())["state"] == "finished"


def test_each_completion_is_recorded_with_reward_and_both_verdicts(finished):
    run = read_run(finished[0].run_dir)
    kept = [row for step in range(5) for row in read_rollouts(run, step) if row["purpose"] == "train"]
    assert len(kept) == 5 * 64 and {row["status"] for row in kept} == {"graded"}
    rewards = {round(row["reward"], 3) for row in kept}
    assert rewards <= {0.0, 0.1, 0.2, 1.1, 1.2} and len(rewards) > 1
    for row in kept:
        assert row["published_correct"] == (row["reward"] >= 1) and row["evidence"]["right_answer"]
        assert row["published_correct"] or not row["oracle_correct"]


def test_measures_and_report_read_it(finished, tmp_path):
    from experiments.report import build as report

    run = read_run(finished[0].run_dir)
    summary = summarise(run, prereg.load().measures)
    assert (summary.steps_done, summary.hack, summary.hack_loose, summary.onset) == (5, 0.0, 0.0, None)
    assert 0 <= summary.passed <= 1 and summary.safe_pass_start == summary.safe_pass_start
    assert comparable.choose(comparable.Selection(finished[0].run_dir.parent, preset="maths")).by_arm["vanilla"]
    assert report.main(["--runs", str(finished[0].run_dir.parent), "--out", str(tmp_path / "report")]) == 0


def test_tensorboard_has_each_step_once(finished):
    from tests.trainer.test_loggers import points

    folder = finished[0].run_dir / "tensorboard"
    told = [round(r["reward_mean"], 4) for r in rows(finished[0])]
    assert points(folder, "train/reward_mean") == list(enumerate(told))
    assert [step for step, _ in points(folder, "eval/no_hint/pass_oracle")] == [0, 5]
