"""The trainer's own alarm: stops after the step that rings, or projects from the next one; a restart changes neither."""

import json
import threading
from dataclasses import asdict
from types import SimpleNamespace

import pytest

import services.trainer.train as train
from common.errors import ConfigError
from common.metrics import Metrics
from common.settings import TrainerSettings, build
from rankspace.hack_watch import calibrate
from services.trainer import alarm
from services.trainer.checkpoint import State
from services.trainer.record import Record
from services.trainer.rollouts import Collected
from services.trainer.train import Trainer
from tests.samples import grade, graded

PULL = [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1]  # z = 0, 0, 0, 10, ...: rings in step 3


def nothing(*args, **kwargs):
    return None


@pytest.fixture
def clean(tmp_path):
    runs = [[{"step": t, "update_ref_cos_mean": 0.01 * (-1) ** (i + t)} for t in range(8)] for i in range(24)]
    calibrate(runs).write(tmp_path / "clean.json")
    return tmp_path / "clean.json"


def settings_of(tmp_path, clean, **changes):
    (tmp_path / "r").mkdir(exist_ok=True)
    values = {
        "run_id": "r", "run_dir": str(tmp_path / "r"), "model": "m", "train_problems": "a", "heldout_problems": "b",
        "steps": 8, "checkpoint_every": 1, "direction": "random", "alarm_clean": str(clean), "projection": "one_sided",
        "eval_every": 0,
    }  # fmt: skip
    return build(TrainerSettings, values | changes)


class Ranks:
    """Remembers in which steps the projection acted; keeps the last checkpoint as JSON, as the disk would."""

    def __init__(self, dies_in=None):
        self.ranks, self.dies_in, self.saved, self.acted = 1, dies_in, None, {}

    def load(self, run_dir):
        return None if self.saved is None else State(**json.loads(self.saved))

    def save(self, state, run_dir, keep):
        self.saved = json.dumps(asdict(state), allow_nan=False)

    def snapshot(self, ids):
        return b"", []

    def train_step(self, rows, k, intervene):
        if k == self.dies_in:
            raise ZeroDivisionError
        self.acted[k] = intervene
        return {"update_ref_cos_mean": PULL[k]}


def run(s, ranks, monkeypatch):
    """(Trainer, whether it finished) over a fake world with the real record, rows and alarm."""
    monkeypatch.setattr(train, "train_requests", lambda *args: [])
    monkeypatch.setattr(Trainer, "_evaluate_if_due", nothing)
    groups = [graded([grade(3.5, "Reward Hack"), grade(0.5)])]
    rollouts = SimpleNamespace(
        ask=nothing, collect=lambda requests: Collected(groups, {}), recover=nothing, acknowledge=nothing, check=nothing,
        trained_before=0, drop_stale=nothing, take_outcomes=train.Counter,
    )  # fmt: skip
    publisher = SimpleNamespace(
        require_proof=nothing, require_all=nothing, push=nothing, probe_ids=[], remembered=dict, restore=nothing,
        last_gap=None, last_bytes=0, last_seconds=0.0,
    )  # fmt: skip
    record = Record(s, Metrics("trainer"), [("a", 2)], None)
    shaper = lambda groups: [[c.reward for c in g.grades] for g in groups]  # noqa: E731
    trainer = Trainer(s, ranks, rollouts, publisher, record, shaper, ([], []), [], threading.Event(), nothing, nothing)
    return trainer, trainer.run()


def rows(s):
    return [json.loads(line) for line in (s.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_stop_finishes_the_step_saves_it_and_leaves_the_reason(tmp_path, clean, monkeypatch):
    s, ranks = settings_of(tmp_path, clean, on_alarm="stop"), Ranks()
    trainer, finished = run(s, ranks, monkeypatch)
    assert not finished and trainer.alarm.stops and json.loads(ranks.saved)["next_step"] == 4
    assert [row["alarm_ratio"] > 1 for row in rows(s)] == [False, False, False, True]
    status, evidence = (json.loads((s.run_dir / f"{name}.json").read_text()) for name in ("status", "alarm"))
    assert status["state"] == "stopped" and "alarm at step 3: update_ref_cos_mean" in status["reason"]
    assert (evidence["step"], evidence["signal"], evidence["on_alarm"]) == (3, "update_ref_cos_mean", "stop")

    again, finished = run(s, ranks, monkeypatch)  # started again it stands where it stood
    assert not finished and again.alarm.stops and len(rows(s)) == 4
    _, finished = run(settings_of(tmp_path, clean, on_alarm="stop", go_past_alarm=True), ranks, monkeypatch)
    assert finished and len(rows(s)) == 8 and (s.run_dir / "alarm.json").exists()
    assert "alarm at step 3" in json.loads((s.run_dir / "status.json").read_text())["reason"]


def test_project_acts_from_the_step_after_the_alarm(tmp_path, clean, monkeypatch):
    ranks = Ranks()
    _, finished = run(settings_of(tmp_path, clean, on_alarm="project"), ranks, monkeypatch)
    assert finished and [ranks.acted[k] for k in range(8)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("dies_in", [2, 4, 6])
@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_rings_and_projects_as_one_that_was_not(tmp_path, clean, monkeypatch, dies_in, every):
    s, ranks = settings_of(tmp_path, clean, on_alarm="project", checkpoint_every=every), Ranks(dies_in)
    with pytest.raises(ZeroDivisionError):
        run(s, ranks, monkeypatch)
    ranks.dies_in = None
    trainer, finished = run(s, ranks, monkeypatch)
    assert finished and trainer.alarm.evidence()["step"] == 3
    assert [ranks.acted[k] for k in range(8)] == [False] * 4 + [True] * 4
    whole = settings_of(tmp_path / "r", clean, on_alarm="project")
    run(whole, Ranks(), monkeypatch)
    assert [row["alarm_ratio"] for row in rows(s)] == [row["alarm_ratio"] for row in rows(whole)]


def test_an_alarm_beyond_the_checkpoint_is_taken_back(tmp_path, clean, monkeypatch):
    s, ranks = settings_of(tmp_path, clean, checkpoint_every=3), Ranks(dies_in=5)
    with pytest.raises(ZeroDivisionError):
        run(s, ranks, monkeypatch)
    assert (s.run_dir / "alarm.json").exists()
    ranks.dies_in = 3  # dies before the step that rings
    with pytest.raises(ZeroDivisionError):
        run(s, ranks, monkeypatch)
    assert not (s.run_dir / "alarm.json").exists()


def test_off_watches_and_without_clean_runs_nothing_is_watched(tmp_path, clean, monkeypatch):
    s, ranks = settings_of(tmp_path, clean), Ranks()
    _, finished = run(s, ranks, monkeypatch)
    assert finished and all(ranks.acted.values()) and (s.run_dir / "alarm.json").exists()
    blind = settings_of(tmp_path, clean, run_dir=str(tmp_path / "r2"), alarm_clean=None)
    blind.run_dir.mkdir()
    trainer, finished = run(blind, Ranks(), monkeypatch)
    assert finished and not trainer.alarm.rung and all(row["alarm_ratio"] is None for row in rows(blind))


def test_the_margin_of_an_evaluation_belongs_to_the_next_step(tmp_path):
    runs = [[{"step": t, "nll_margin": 0.0} for t in range(3)] for _ in range(24)]
    calibrate(runs).write(tmp_path / "clean.json")
    found = alarm.RunAlarm(settings_of(tmp_path, tmp_path / "clean.json"))
    found.evaluation({"step": 0, "mode": "hint", "nll_margin": 3.0})
    second = alarm.RunAlarm(settings_of(tmp_path, tmp_path / "clean.json"))
    second.restore(json.loads(json.dumps(found.state())))  # killed between the two
    for one in (found, second):
        assert one.step({"step": 0}) and one.evidence()["signal"] == "nll_margin"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alarm_clean": None, "on_alarm": "stop"}, "on_alarm 'stop' needs the field alarm_clean"),
        ({"on_alarm": "project", "projection": "off"}, "nothing to switch with projection 'off'"),
        ({"on_alarm": "project", "project_until": 3}, "excludes project_until"),
        ({"false_alarm_rate": 0.0}, "greater than 0"),
        ({"false_alarm_rate": 0.01}, "needs 99 clean runs behind the bound, there are 20"),
        ({"steps": 9, "on_alarm": "stop"}, "have 8 steps, this run 9"),
        ({"alarm_clean": "none.json"}, "none.json: No such file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(tmp_path, clean, changes, message):
    with pytest.raises(ConfigError, match=message):
        alarm.check(settings_of(tmp_path, clean, **changes))


def test_steps_beyond_the_clean_runs_may_be_watched_but_not_acted_on(tmp_path, clean):
    alarm.check(settings_of(tmp_path, clean, steps=9))
