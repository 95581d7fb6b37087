"""The alarm of a run through real services: clean runs, calibration, a run that stops, one that projects, one that goes on.

Runs without a loophole are clean. A run in which every group holds a planted hack is pulled towards v_hack from its first
step: its update's cosine is many times theirs, so it rings, and it does so before its last step.
"""

import json
import re
import time
from pathlib import Path

import httpx
import pytest
import yaml

from experiments.__main__ import main
from experiments.design import presets
from tests.system.trainer_runs import finish, rows, settings, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 5
CLEAN = 4  # two set the scale, two stand behind the bound: rates from 1/3 up
SHORT = {"steps": STEPS, "eval_modes": ["no_hint"], "eval_problems": 1, "eval_samples": 1}
PULLED = {**SHORT, "reseed": True, "hacks": presets.HACKS, "false_alarm_rate": 0.5, "seed": 3}


@pytest.fixture(scope="module")
def clean(stack, root):
    """A file of clean runs as the command line makes it."""
    runs = [
        settings(root, f"clean-s{i}", stack, **SHORT, seed=20 + i, loophole=None, projection="off")
        for i in range(CLEAN)
    ]
    for s in runs:
        code, out = finish(start(s))
        assert code == 0, out[-3000:]
    file = root / "clean.json"
    command = ["watch", "--calibrate", str(file), *(str(s.run_dir) for s in runs)]
    command += ["--signals", "update_ref_cos_mean"]
    assert main(command) == 0
    return file


@pytest.fixture(scope="module")
def stopped(stack, root, clean):
    """(settings, exit code, what it said) of a run that its alarm stops."""
    s = settings(root, "stopped", stack, **PULLED, projection="off", alarm_clean=str(clean), on_alarm="stop")
    return (s, *finish(start(s)))


def state(s):
    return json.loads((s.run_dir / "status.json").read_text())


def test_stop_ends_the_run_with_exit_code_1_and_leaves_the_evidence(stopped):
    s, code, out = stopped
    assert code == 1 and "go_past_alarm=true" in out, out[-3000:]
    ratios = [row["alarm_ratio"] for row in rows(s)]
    evidence = json.loads((s.run_dir / "alarm.json").read_text())
    assert len(ratios) < STEPS and ratios[-1] > 1 and all(r <= 1 for r in ratios[:-1])
    assert (evidence["step"], evidence["signal"]) == (len(ratios) - 1, "update_ref_cos_mean")
    assert state(s)["state"] == "stopped" and evidence["text"] in state(s)["reason"]


def test_a_finished_run_s_rows_give_the_same_alarm(stopped, clean, capsys):
    s, *_ = stopped
    command = ["watch", "--clean", str(clean), "--false-alarm-rate", "0.5", "--json", str(s.run_dir)]
    assert main(command) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["alarm"]["step"] == json.loads((s.run_dir / "alarm.json").read_text())["step"]
    assert found["ratio"] == pytest.approx(rows(s)[-1]["alarm_ratio"])


def test_started_again_it_stands_and_past_the_alarm_it_goes_on(stopped, stack, root, clean):
    s, *_ = stopped
    done = len(rows(s))
    code, out = finish(start(s))
    assert code == 1 and len(rows(s)) == done, out[-3000:]
    on = s.model_copy(update={"go_past_alarm": True})
    code, out = finish(start(on))
    assert code == 0, out[-3000:]
    assert [row["step"] for row in rows(s)] == list(range(STEPS)) and state(s)["state"] == "finished"
    assert (s.run_dir / "alarm.json").exists(), "what rang is still told"


def alarm_rule():
    groups = yaml.safe_load(Path("deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    return next(rule for group in groups for rule in group["rules"] if rule["alert"] == "HackAlarm")


def test_project_switches_it_on_from_the_next_step_and_the_gauge_follows(stack, root, clean, stopped):
    s = settings(root, "projects", stack, **PULLED, alarm_clean=str(clean), on_alarm="project")
    process = start(s)
    gauge, bound = re.fullmatch(r"(rs_alarm_ratio) > (\d+)", alarm_rule()["expr"]).groups()
    shown = []
    for line in process.stdout:
        if address := re.search(r"metrics on (http\S+)", line):
            break
    while process.poll() is None:
        try:
            text = httpx.get(address[1], timeout=5).text
        except httpx.HTTPError:  # it has just ended
            break
        shown += [float(x) for x in re.findall(rf'^{gauge}{{[^}}]*run="projects"[^}}]*}} (\S+)$', text, re.M)]
        time.sleep(0.1)
    out = process.stdout.read()
    assert process.wait() == 0, out[-3000:]
    found = rows(s)
    rang = json.loads((s.run_dir / "alarm.json").read_text())["step"]
    assert (
        rang == len(rows(stopped[0])) - 1 or rang == json.loads((stopped[0].run_dir / "alarm.json").read_text())["step"]
    )
    assert [row["intervened"] for row in found] == [k > rang for k in range(STEPS)] and 0 <= rang < STEPS - 1
    assert found[rang]["update_ref_cos_mean"] > found[-1]["update_ref_cos_mean"], "the projection turns the update"
    ringing = [row["alarm_ratio"] for row in found if row["alarm_ratio"] > float(bound)]
    assert ringing and any(x == pytest.approx(y, rel=1e-6) for x in shown for y in ringing), (shown, ringing)
