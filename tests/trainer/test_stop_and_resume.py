"""The loop around a stop and a restart: nothing finished is thrown away."""

import gzip
import json
import threading
from types import SimpleNamespace

import pytest

import services.trainer.train as train
from common.errors import QueueError
from common.metrics import Metrics
from common.settings import TrainerSettings, build
from services.trainer.record import Record
from services.trainer.rollouts import Collected
from services.trainer.train import Stopped, Trainer
from tests.samples import grade, graded


def nothing(*args, **kwargs):
    return None


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "r").mkdir()
    return build(
        TrainerSettings,
        {
            "run_id": "r", "run_dir": str(tmp_path / "r"), "model": "m", "train_problems": "a", "heldout_problems": "b",
            "steps": 10, "checkpoint_every": 5, "max_staleness": 1,
        },
    )  # fmt: skip


class World:
    """Everything around the loop: remembers what was trained on and saved; stops while waiting for step `stop_at`."""

    def __init__(self, settings, stop_at, monkeypatch):
        self.trained, self.saved, self.states = 0, [], []
        monkeypatch.setattr(train, "train_requests", lambda *args: [])
        monkeypatch.setattr(train, "collate", lambda *a, **k: SimpleNamespace(rows=[], stats={"hack_strict": None}))
        monkeypatch.setattr(Trainer, "_write", nothing)
        monkeypatch.setattr(Trainer, "_evaluate_if_due", nothing)
        self.stop_at = stop_at
        ranks = SimpleNamespace(
            ranks=1, load=nothing, train_step=self.train_step, snapshot=lambda ids: (b"", []), save=self.save
        )
        rollouts = SimpleNamespace(
            ask=nothing,
            collect=self.collect,
            recover=nothing,
            acknowledge=nothing,
            check=nothing,
            trained_before=0,
            drop_stale=nothing,
        )
        publisher = SimpleNamespace(
            require_proof=lambda group: True, require_all=nothing, push=nothing, probe_ids=[], remembered=dict
        )
        record = SimpleNamespace(
            cut=nothing,
            replay=nothing,
            count=nothing,
            alarm=nothing,
            status=lambda state, step, reason: self.states.append((state, step)),
        )
        self.trainer = Trainer(
            settings, ranks, rollouts, publisher, record, nothing, ([], []), [], threading.Event(), nothing, nothing
        )

    def train_step(self, *args):
        self.trained += 1

    def save(self, state, run_dir, keep):
        self.saved.append(state.next_step)

    def collect(self, requests):
        if self.trained == self.stop_at:
            raise Stopped
        return Collected([graded([grade()])], {})


@pytest.mark.parametrize("stop_at, saved", [(0, [0]), (4, [4]), (7, [5, 7])])
def test_a_stop_while_waiting_saves_the_finished_steps(settings, monkeypatch, stop_at, saved):
    world = World(settings, stop_at, monkeypatch)
    assert world.trainer.run() is False
    assert (world.trained, world.saved, world.states[-1]) == (stop_at, saved, ("stopped", stop_at))


def test_another_error_while_waiting_saves_nothing(settings, monkeypatch):
    world = World(settings, 99, monkeypatch)
    world.trainer.publisher.require_all = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        world.trainer.run()
    assert world.saved == []


def test_a_step_whose_groups_were_all_dropped_stops_the_run_and_is_asked_again(settings, monkeypatch):
    world = World(settings, 99, monkeypatch)
    acknowledged, real = [], world.collect

    def collect(requests):
        return real(requests) if world.trained < 3 else Collected([], {"r/train/3/0": "generate: no room"}, ["d"])

    world.trainer.rollouts.collect, world.trainer.rollouts.acknowledge = collect, acknowledged.append
    with pytest.raises(QueueError, match=r"all 1 groups of step 3 were dropped \(first: generate: no room\)"):
        world.trainer.run()
    assert (world.trained, world.saved, acknowledged[-1].deliveries) == (3, [3], ["d"])


def test_a_finished_run_started_again_keeps_its_last_evaluation(settings):
    record = Record(settings, Metrics("trainer"), [("a", 2)], None)
    evaluation = graded([grade(), grade()], purpose="eval", step=3)
    for step in range(3):
        record.rollouts(step, [graded([grade(), grade()], step=step)], [[1.0, -1.0]], "train")
    record.rollouts(3, [evaluation], [[float("nan")] * 2], "hint")
    record.cut(3, [0, 3])
    assert kept(settings, 3) == [("eval", "hint")] * 2
    record.rollouts(3, [graded([grade(), grade()], step=3)], [[1.0, -1.0]], "train")  # a step beyond the checkpoint
    record.rollouts(4, [graded([grade(), grade()], step=4)], [[1.0, -1.0]], "train")
    with open(settings.run_dir / "rollouts" / "step_000003.jsonl.gz", "ab") as file:
        file.write(gzip.compress(b'{"purpose": "train"}\n')[:-9])  # killed while writing
    record.cut(3, [0, 3])
    assert kept(settings, 3) == [("eval", "hint")] * 2
    assert len(list((settings.run_dir / "rollouts").iterdir())) == 4
    record.cut(3, [0])  # an evaluation that the checkpoint does not have is done again
    assert len(list((settings.run_dir / "rollouts").iterdir())) == 3


def kept(settings, step):
    with gzip.open(settings.run_dir / "rollouts" / f"step_{step:06d}.jsonl.gz", "rt") as file:
        return [(row["purpose"], row["mode"]) for row in map(json.loads, file)]
