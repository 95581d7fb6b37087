"""One row of metrics.jsonl: what it holds, what is null, and which batch of samples is counted once."""

from collections import Counter
from types import SimpleNamespace

import pytest
from row_gauges import ROW_GAUGES

from common.measurements import MEASUREMENTS
from common.metrics import METRICS
from common.settings import TrainerSettings, build
from services.trainer.collate import collate
from services.trainer.rollouts import Collected
from services.trainer.steprow import GRADING, LOSS, PROJECTION, step_row
from tests.samples import grade, graded

SETTINGS = build(
    TrainerSettings,
    {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b"},
)
PUBLISHER = SimpleNamespace(last_gap=0.001, last_bytes=64, last_seconds=0.5)
GROUP_OUTCOMES = Counter(trained=2, dropped=3, stale=1, duplicate=4)


def row(metrics):
    groups = [graded([grade(3.5, "Reward Hack"), grade(0.5)], group_id=f"r/train/0/{i}") for i in range(2)]
    batch = collate(groups, [[3.5, 0.5]] * 2, SETTINGS, version=0)
    return step_row(
        7, Collected(groups, {}), batch, metrics, {"train": 0.123456, "wait": 2.0}, PUBLISHER, GROUP_OUTCOMES, 5
    )


def test_a_step_without_variance_has_nulls_and_says_that_it_made_no_step():
    found = row(None)
    assert (found["step"], found["policy_version"], found["optimised"]) == (7, 8, False)
    assert all(found[name] is None for name in (*LOSS, *PROJECTION))
    assert all(name in found for name in GRADING)


def test_the_row_holds_what_the_table_of_measurements_says_and_gauges_exist():
    names = [m.name for m in MEASUREMENTS]
    assert sorted(row(None)) == sorted(names) and len(set(names)) == len(names)
    assert set(ROW_GAUGES) <= {m.name for m in METRICS if m.service == "trainer"}


def test_an_optimised_step_renames_the_projection_metrics():
    found = row({"loss": 0.25, "kl": 0.0, "cos_mean": 0.1, "cos_mean_null_std": 0.02, "cos": "not for this file"})
    assert (found["optimised"], found["loss"], found["kl"]) == (True, 0.25, 0.0)
    assert (found["cos_mean"], found["null_band"], found["update_cos_mean"]) == (0.1, 0.02, None)
    assert "cos" not in found


def test_outcomes_pushes_and_seconds_are_in_the_row():
    found = row(None)
    assert (found["dropped_groups"], found["duplicate_groups"]) == (4, 4)
    assert (found["probe_gap"], found["push_bytes"], found["push_s"]) == (0.001, 64, 0.5)
    # both groups came from one batch of one replica, 0.25 s; one worker spent 0.1 s on each
    assert found["seconds"] == pytest.approx({"train": 0.1235, "wait": 2.0, "generate": 0.25, "grade": 0.2})
