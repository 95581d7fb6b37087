"""The run table and the decision branch."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from synthetic_runs import Plan, write

from common.errors import ConfigError
from experiments import preparing, status
from experiments.analysis import next_preset
from experiments.design import presets

RUNS = ("projected-s0", "vanilla-s1", "vanilla-s0")
NOW = datetime(2026, 1, 2, 10, 5, tzinfo=UTC)


def test_rows(tmp_path):
    write(tmp_path, Plan())
    write(tmp_path, Plan(arm="projected", state="running", planned=80))
    broken = write(tmp_path, Plan(seed=1))
    (broken / "status.json").write_text("{")
    projected, vanilla, unreadable = status.rows(tmp_path, NOW)
    assert (vanilla["state"], vanilla["step"], vanilla["steps"], vanilla["hack"]) == ("finished", 4, 4, 0.6)
    assert (projected["state"], projected["steps"], projected["age_s"]) == ("running", 80, 300.0)
    assert unreadable["state"] == "unreadable" and "status.json: not JSON" in unreadable["reason"]


def test_a_run_that_says_nothing_any_more(tmp_path):
    write(tmp_path, Plan(state="running", planned=80, updated="2026-01-02T09:54:59+00:00"))
    assert status.rows(tmp_path, NOW)[0]["state"] == "silent"


def test_the_time_that_is_left(tmp_path):
    """By the median of the last ten steps, so that one slow step does not decide; nothing for a run that has ended."""
    path = write(tmp_path, Plan(state="running", planned=80, hack=[0.1] * 14, passed=[0.4] * 14, rollouts=False))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row, took in zip(rows, [900.0] * 4 + [2.0] * 8 + [50.0] * 2, strict=True):
        row["seconds"] = {"total": took}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status.rows(tmp_path, NOW)[0]["left_s"] == 2.0 * 66
    write(tmp_path, Plan(arm="projected"))
    assert [row["left_s"] for row in status.rows(tmp_path, NOW)] == [None, 132.0]


def test_a_run_before_its_first_step_says_how_far_it_is(tmp_path, capsys):
    """Extraction comes before any run exists: only its progress.log is there."""
    extracting = tmp_path / "demo-projected-s0"
    extracting.mkdir()
    (extracting / "progress.log").write_text("10:00:01 SVD: 3 of 28 a, about 9 min left\n10:00:16 SVD: 4 of 28 b\n")
    assert status.main(["--runs", str(tmp_path)]) == 0
    assert "preparing" in (said := capsys.readouterr().out) and "SVD: 4 of 28 b" in said and "no runs yet" not in said
    write(tmp_path, Plan())
    starting = write(tmp_path, Plan(seed=1))
    (starting / "status.json").unlink()
    rows = {row["run"]: row for row in status.rows(tmp_path, datetime.now(UTC))}
    assert [(rows[f"demo-{name}"]["state"], rows[f"demo-{name}"]["reason"]) for name in RUNS] == [
        ("preparing", "SVD: 4 of 28 b"), ("preparing", "starting"), ("finished", "")
    ]  # fmt: skip
    later = datetime.now(UTC) + timedelta(seconds=601)
    assert [row["state"] for row in status.rows(tmp_path, later)] == ["silent", "finished", "silent"]


def test_a_run_that_is_made_ready_to_go_on_says_how_far_it_is(tmp_path):
    path = write(tmp_path, Plan(state="stopped", planned=80))
    (path / "progress.log").write_text("10:00:01 loading m: 15 s so far\n")
    os.utime(path / "progress.log", (NOW.timestamp(), NOW.timestamp()))
    row = status.rows(tmp_path, NOW + timedelta(seconds=20))[0]
    assert (row["state"], row["reason"].split(";")[0]) == ("preparing", "loading m: 15 s so far")
    assert status.rows(tmp_path, NOW + timedelta(seconds=900))[0]["state"] == "stopped"
    (path / "status.json").write_text((path / "status.json").read_text().replace("stopped", "finished"))
    assert not preparing.runs(tmp_path)


def test_a_model_on_its_way_and_one_left_half_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("big", "left"):
        Path(f"models/{name}.partial").mkdir(parents=True)
        Path(f"models/{name}.log").write_text(f"{name}: 1.00 of 3.00 GiB, 10 s, about 20 s left\n")
    with open("models/.big.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        big, left = preparing.models()
        assert status.main([]) == 0
    assert (big["model"], big["state"], big["note"]) == (
        "models/big", "coming", "1.00 of 3.00 GiB, 10 s, about 20 s left"
    )  # fmt: skip
    assert (left["state"], left["note"].endswith("the same command goes on")) == ("stopped", True)
    assert "1.00 of 3.00 GiB, 10 s, about 20 s left" in capsys.readouterr().out
    assert [row["state"] for row in preparing.models()] == ["stopped", "stopped"], "nobody is at it any more"


def test_a_trainer_that_has_ended_is_not_one_that_was_killed(tmp_path):
    for seed, state in enumerate(("finished", "stopped", "running")):
        write(tmp_path, Plan(seed=seed, state=state, planned=80 if state != "finished" else 4))
    names = [f"demo-vanilla-s{seed}" for seed in range(3)]
    policies = [{"run": run, "trainer": "gone"} for run in [*names, "elsewhere"]] + [
        {"run": names[0], "trainer": "alive"}
    ]
    status._say_how_trainers_ended(policies, tmp_path)
    assert [row["trainer"] for row in policies] == ["finished", "stopped", "gone", "gone", "alive"]


def test_command_line(tmp_path, capsys):
    write(tmp_path, Plan())
    assert status.main(["--runs", str(tmp_path)]) == 0
    assert "demo-vanilla-s0" in capsys.readouterr().out
    assert status.main(["--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["pass"] == 0.3


def long(preset, level, steps, **more):
    return Plan(preset=preset, hack=[level] * steps, passed=[0.4] * steps, rollouts=False, **more)


@pytest.mark.parametrize(
    "preset, level, said",
    [
        ("qwen3.5-2b", 0.4, "stay and run all arms: python -m experiments sweep --preset qwen3.5-2b --arms all"),
        (
            "qwen3.5-2b",
            0.3,
            "does vanilla hack there? python -m experiments sweep --preset qwen3-4b --arms vanilla",
        ),
        ("qwen3-4b", 0.4, "stay and run"),
        ("qwen3-4b", 0.1, "stop: no preset follows qwen3-4b"),
    ],
)
def test_the_plan_s_branch(tmp_path, capsys, preset, level, said):
    path = write(tmp_path, long(preset, level, 200))
    assert next_preset.main(["--runs", str(path)]) == 0
    out = capsys.readouterr().out
    assert said in out and f"{100 * level:.1f}%" in out and f"{preset}-vanilla-s0" in out


def test_a_shorter_preset_is_judged_at_its_end_and_says_so(tmp_path, capsys):
    write(tmp_path, long("demo", 0.5, 80))
    assert next_preset.main(["--runs", str(tmp_path)]) == 0
    assert "(H4 is stated for 200 steps, this preset has 80)" in capsys.readouterr().out


def test_a_run_cut_short_decides_nothing(tmp_path):
    write(tmp_path, long("qwen3.5-2b", 0.9, 50))
    with pytest.raises(ConfigError, match=r"50 steps, preset qwen3\.5-2b plans 200"):
        next_preset.main(["--runs", str(tmp_path)])


def test_an_unfinished_run_decides_nothing(tmp_path):
    write(tmp_path, long("demo", 0.9, 50, state="running", planned=80))
    with pytest.raises(ConfigError, match="no vanilla run has finished"):
        next_preset.main(["--runs", str(tmp_path)])


def test_every_preset_leads_to_a_preset():
    for preset in presets.PRESETS.values():
        for following in (preset.if_hacks, preset.if_not):
            assert following is None or following in presets.PRESETS
