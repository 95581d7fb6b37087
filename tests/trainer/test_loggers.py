"""Optional loggers: what TensorBoard and Weights & Biases read back, resuming, and that no logger can hurt a run."""

import json
import os
import struct
import subprocess
import sys
import threading
import time

import pytest
from row_gauges import ROW_GAUGES

from common.errors import ConfigError
from common.metrics import Metrics
from common.settings import TrainerSettings, build
from services.trainer import loggers, preflight
from services.trainer.completions_table import COLUMNS, chosen
from services.trainer.loggers import Completions, Loggers, Past, TensorBoard
from services.trainer.record import Record, open_run

VALUES = {
    "run_id": "r", "arm": "projected", "model": "tasks/organism/model",
    "train_problems": "tasks/practice/practice_train.jsonl", "heldout_problems": "tasks/practice/practice_heldout.jsonl",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return build(TrainerSettings, {**VALUES, "run_dir": str(tmp_path / "r"), "loggers": ["tensorboard"]})


def row(step, hack=0.25):
    return {"step": step, "hack_strict": hack, "kl": None, "optimised": True, "label_counts": {"Correct": 3},
            "seconds": {"train": 0.5}}  # fmt: skip


def evaluation(step, mode="hint"):
    return {"step": step, "mode": mode, "pass_oracle": 0.5, "label_counts": {}}


def points(folder, tag):
    """What TensorBoard itself reads: [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def test_tensorboard_reads_what_was_logged(settings):
    logger = TensorBoard(settings, Past())
    logger.evaluation(evaluation(0))
    for step in range(3):
        logger.step(row(step, step / 4))
    logger.close()
    folder = settings.run_dir / "tensorboard"
    assert points(folder, "train/hack_strict") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert points(folder, "train/seconds/train")[0] == (0, 0.5) and points(folder, "train/label_counts/Correct")
    assert points(folder, "eval/hint/pass_oracle") == [(0, 0.5)]
    assert points(folder, "train/kl") == [], "null is no point"


def test_tensorboard_after_a_crash_has_each_step_once_and_the_later_value(settings):
    first = TensorBoard(settings, Past())
    for step in range(5):
        first.step(row(step, 0.1))
    first.evaluation(evaluation(3))  # the process is killed here: nothing is closed
    time.sleep(1.1)  # event files are named by the second; a real restart takes longer
    past = Past([row(step, 0.1) for step in range(3)], [evaluation(0), evaluation(3)])
    resumed = TensorBoard(settings, past)
    for step in range(3, 6):
        resumed.step(row(step, 0.9))
    resumed.close()
    folder = settings.run_dir / "tensorboard"
    assert points(folder, "train/hack_strict") == [(0, 0.1), (1, 0.1), (2, 0.1), (3, 0.9), (4, 0.9), (5, 0.9)]
    assert points(folder, "eval/hint/pass_oracle") == [(3, 0.5)], "one that counts is not lost with the steps beside it"


def test_a_logger_switched_on_later_gets_what_it_missed(settings):
    late = TensorBoard(settings, Past([row(0), row(1)], [evaluation(0)]))
    late.close()
    folder = settings.run_dir / "tensorboard"
    assert [step for step, _ in points(folder, "train/hack_strict")] == [0, 1]
    assert points(folder, "eval/hint/pass_oracle") == [(0, 0.5)]


class Breaks:
    def __init__(self):
        self.seen = []

    def step(self, row):
        self.seen.append(row["step"])
        raise OSError("disk full\nreally")

    evaluation = step

    def close(self):
        raise AssertionError("a failed logger is left alone")


class Hangs:
    def __init__(self):
        self.forever = threading.Event()

    def step(self, row):
        self.forever.wait()

    evaluation = step

    def close(self):
        self.forever.wait()


class Counts(Breaks):
    def step(self, row):
        self.seen.append(row["step"])

    evaluation = step

    def close(self):
        self.seen.append("closed")


def wait_for(test, limit=10.0):
    deadline = time.monotonic() + limit
    while not test() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert test()


def test_a_logger_that_fails_is_named_once_and_the_others_go_on(capsys):
    bad, good = Breaks(), Counts()
    both = Loggers({"bad": bad, "good": good})
    both.step(row(0))
    wait_for(lambda: both.lanes[0].failed)
    for step in (1, 2):
        both.step(row(step))
    both.close()
    assert bad.seen == [0] and good.seen == [0, 1, 2, "closed"]
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said == ["warning: logger bad failed (OSError: disk full really); the run goes on without it"]


def test_a_logger_that_hangs_costs_the_run_nothing(capsys, monkeypatch):
    monkeypatch.setattr(loggers, "BEHIND", 50)
    hung = Hangs()
    lanes = Loggers({"hung": hung})
    started = time.monotonic()
    for step in range(200):
        lanes.step(row(step))
    assert time.monotonic() - started < 1.0
    lanes.close(patience_s=0.2)
    assert time.monotonic() - started < 3.0
    assert "logger hung failed (it is 50 rows behind)" in capsys.readouterr().err
    hung.forever.set()
    slow = Loggers({"slow": Hangs()})
    slow.step(row(0))
    slow.close(patience_s=0.1)
    assert "did not finish within 0 s" in capsys.readouterr().err


def test_the_record_feeds_the_loggers_and_resumes_them(settings):
    full = dict.fromkeys(("hack_loose", "null_band", *ROW_GAUGES.values()))
    for first, last in ((0, 3), (2, 4)):  # killed after step 2, of which only two were saved
        open_run(settings)
        record = Record(settings, Metrics("trainer"), [("a", 2)], None)
        record.cut(first)
        record.replay()
        for step in range(first, last):
            record.step({**full, **row(step), "seconds": {"train": 0.1}}, None, None)
        record.close()
        time.sleep(1.1)
    assert [step for step, _ in points(settings.run_dir / "tensorboard", "train/hack_strict")] == [0, 1, 2, 3]


def test_names_may_be_written_with_commas_and_only_known_ones():
    values = {**VALUES, "run_dir": "x"}
    assert build(TrainerSettings, {**values, "loggers": "tensorboard, wandb"}).loggers == ("tensorboard", "wandb")
    assert build(TrainerSettings, values).loggers == ()
    with pytest.raises(ConfigError, match="loggers"):
        build(TrainerSettings, {**values, "loggers": "tensorbord"})


def test_a_missing_package_is_one_line_before_anything_is_loaded(settings, monkeypatch):
    real = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda n: None if n == "tensorboard" else real(n))
    with pytest.raises(
        ConfigError, match=r"field 'loggers': the package tensorboard is not installed; .*\.\[loggers\]"
    ):
        preflight.check(settings)


def test_the_packages_are_imported_only_when_asked_for():
    code = (
        "import sys; import services.trainer.loggers, services.trainer.record, services.trainer.preflight\n"
        "assert not {'tensorboard', 'wandb', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


WANDB = """
import json, sys
from pathlib import Path
from common.settings import TrainerSettings, build
from services.trainer.loggers import Past, WandB
values, first, last = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
row = lambda k: {"step": k, "hack_strict": k / 10, "kl": None, "seconds": {"train": 0.5}}
evaluation = {"step": 0, "mode": "hint", "pass_oracle": 0.5}
past = Past([row(k) for k in range(first)], [evaluation] if first else [])
logger = WandB(build(TrainerSettings, values), past)
if not first:
    logger.evaluation(evaluation)
for k in range(first, last):
    logger.step(row(k))
logger.close()
"""


def wandb_process(settings, first, last, **environment):
    values = settings.model_dump(mode="json") | {"loggers": ["wandb"]}
    return subprocess.run(
        [sys.executable, "-c", WANDB, json.dumps(values), str(first), str(last)],
        capture_output=True, text=True, timeout=200, env={**os.environ, **environment},
    )  # fmt: skip


def leveldb_records(data, first_block):
    """The records of a file in LevelDB's log format: blocks of 32 KiB; (checksum, length, kind) before each part."""
    at, left, whole = 0, first_block, b""
    while at + 7 <= len(data):
        if left < 7:
            at, left = at + left, 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at, left = at + 7 + length, left - 7 - length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def wandb_rows(run_dir):
    """(run ids, history rows in order) of everything written offline, read from W&B's own files."""
    from wandb.proto import wandb_internal_pb2 as messages

    ids, found = set(), []
    for path in sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:], first_block=32768 - 7):
            record = messages.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                found.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return ids, found


@pytest.mark.timeout(400)
def test_wandb_offline_resumes_its_run_with_each_step_once(settings):
    pytest.importorskip("wandb")
    settings.run_dir.mkdir(parents=True)
    done = wandb_process(settings, 0, 3, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr[-2000:]
    again = wandb_process(settings, 1, 5, WANDB_MODE="offline")  # back at a checkpoint before step 1
    assert again.returncode == 0, again.stderr[-2000:]
    ids, found = wandb_rows(settings.run_dir)
    assert len(ids) == 1 and ids == {json.loads((settings.run_dir / "wandb_run.json").read_text())["id"]}
    assert [r["train/step"] for r in found if "train/step" in r] == [0, 1, 2, 3, 4]
    assert [r["eval/hint/pass_oracle"] for r in found if "eval/step" in r] == [0.5]
    assert [r["_step"] for r in found] == list(range(6)), "the second part continues the first"
    assert found[1]["train/seconds/train"] == 0.5 and "train/kl" not in found[1]


def test_wandb_without_a_login_is_one_line(settings, tmp_path):
    pytest.importorskip("wandb")
    settings.run_dir.mkdir(parents=True)
    done = wandb_process(settings, 0, 1, WANDB_MODE="online", WANDB_API_KEY="", HOME=str(tmp_path), NETRC="/dev/null")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError: field 'loggers': wandb did not start" in last and "WANDB_MODE=offline" in last


def rollout(group, index, text="x", **more):
    return {"group_id": f"g{group}", "index": index, "problem_id": f"p{group}", "label": "Correct", "status": "graded",
            "reward": 3.5, "advantage": 0.1, "oracle_correct": True, "text": text, **more}  # fmt: skip


def test_completions_are_chosen_without_looking():
    """First completions first, evenly over the groups; never more than there are."""
    rows = [rollout(group, index) for group in range(6) for index in range(2)]
    picked = lambda most: [(r["group_id"], r["index"]) for r in chosen(rows, most)]  # noqa: E731
    assert picked(3) == [("g0", 0), ("g2", 0), ("g4", 0)]
    assert picked(8) == [(f"g{g}", 0) for g in range(6)] + [("g0", 1), ("g3", 1)]
    assert len(picked(100)) == 12 and picked(0) == []


def test_tensorboard_shows_completions_as_they_are(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(settings, Past())
    text = "```python\nprint('**not bold**')\n```\n<script>1</script>"
    logger.completions(Completions(3, "train", [rollout(0, 1, text, problem_id="a_b*c")]))
    logger.close()
    events = EventAccumulator(str(settings.run_dir / "tensorboard")).Reload()
    (told,) = events.Tensors("train/completions/text_summary")
    shown = told.tensor_proto.string_val[0].decode()
    assert told.step == 3 and "problem a\\_b\\*c" in shown
    block = shown.partition("\n\n")[2]
    assert all(line.startswith("    ") for line in block.splitlines()), "an indented block: no Markdown, no markup"
    assert [line[4:] for line in block.splitlines()] == text.splitlines()


def test_wandb_keeps_a_table_of_completions_once(settings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = loggers.WandB(settings, Past())
    logged = []
    monkeypatch.setattr(logger.run, "log", lambda values, **more: logged.append(values))
    for _ in range(2):  # the second time: a step that is done again after a crash
        logger.completions(Completions(4, "hint", [rollout(0, 0, "y" * 9000, oracle_correct=None)]))
    logger.close()
    (values,) = logged
    table = values["eval/hint/completions"]
    assert table.columns == list(COLUMNS) and table.data[0][:6] == ["p0", 0, "Correct", 3.5, 0.1, "not asked"]
    assert table.data[0][6].endswith("[1000 more characters]")


def test_the_record_hands_completions_over(settings):
    """What loggers get is of the rows that the rollout file keeps; 0 switches it off."""
    open_run(settings)
    seen = []
    for most in (2, 0):
        record = Record(settings.model_copy(update={"log_completions": most}), Metrics("trainer"), [("m", 3)], None)
        record.loggers.completions = seen.append
        record.rollouts(0, [], [], "train")
    assert [(table.step, table.mode, table.rows) for table in seen] == [(0, "train", [])]
