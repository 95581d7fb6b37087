"""Which rollouts a report shows: drawn without looking, rare hacks apart."""

from __future__ import annotations

import gzip
import json

from synthetic_runs import Plan, read_gz, write

from experiments.analysis.comparable import Selection, choose
from experiments.design import prereg
from experiments.report import captions, tables


def test_sampling_is_blind_and_repeatable(tmp_path):
    write(tmp_path, Plan(hack=[0.0] * 4, passed=[1.0] * 4, groups=8))
    arm = tables.views(choose(Selection(tmp_path)), prereg.load().measures)[0]
    drawn, further = tables.sample_rollouts(arm)
    assert len(drawn) == 10 and further == [] and {row["step"] for row in drawn} == {3}
    assert drawn == tables.sample_rollouts(arm)[0]
    assert {row["run_id"] for row in drawn} == {"demo-vanilla-s0"}
    assert "10 completions an arm" in captions.rollout_note([arm], 10)


def test_rare_hacks_are_shown_apart(tmp_path):
    path = write(tmp_path, Plan(hack=[0.0] * 4, passed=[1.0] * 4, groups=50))
    arm = tables.views(choose(Selection(tmp_path)), prereg.load().measures)[0]
    drawn = {(row["group_id"], row["index"]) for row in tables.sample_rollouts(arm)[0]}
    file = path / "rollouts/step_000003.jsonl.gz"
    rows = read_gz(file)
    undrawn = [row for row in rows if (row["group_id"], row["index"]) not in drawn]
    for row in undrawn[:3]:
        row["label"] = "Reward Hack"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    again, further = tables.sample_rollouts(arm)
    assert all(row["label"] == "Correct" for row in again)
    assert [row["label"] for row in further] == ["Reward Hack"] * 2


def test_evaluation_rollouts_and_infra_errors_are_not_sampled(tmp_path):
    path = write(tmp_path, Plan(hack=[0.0], passed=[1.0]))
    file = path / "rollouts/step_000000.jsonl.gz"
    rows = read_gz(file)
    rows[0]["purpose"], rows[1]["status"] = "eval", "infra_error"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    drawn, _ = tables.sample_rollouts(tables.views(choose(Selection(tmp_path)), prereg.load().measures)[0], count=99)
    assert len(drawn) == 14
