"""What a run shows to Prometheus, before and after a restart."""

import math
from pathlib import Path

import pytest
import yaml
from row_gauges import ROW_GAUGES

from common.metrics import Metrics
from common.settings import TrainerSettings, build
from rankspace import gpu
from services.trainer import gauges
from services.trainer.gauges import Gauges, Trend, series_of
from services.trainer.record import Record, open_run

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.up_proj"]
RUN = {"run": "r", "arm": "vanilla", "seed": "0"}


@pytest.fixture
def settings(tmp_path):
    paths = {name: str(tmp_path / name) for name in ("model", "train_problems", "heldout_problems")}
    return build(TrainerSettings, {"run_id": "r", "run_dir": str(tmp_path / "r"), "probe_bound": 0.02, **paths})


def row(step, hack=0.25, cos=0.01, band=0.02):
    fields = dict.fromkeys(ROW_GAUGES.values(), 0.5)
    fields |= {"step": step, "policy_version": step + 1, "hack_strict": hack, "hack_loose": hack, "cos_mean": cos}
    return fields | {"null_band": band, "seconds": {"train": 1.5, "wait": 0.5}}


def test_consecutive_steps_within_the_null_band():
    trend, seen = Trend(), []
    for step, cos in enumerate([0.03, 0.041, -0.04, None, 0.0, 0.039, -0.05]):  # band 0.02: two deviations are 0.04
        trend.add(row(step, cos=cos))
        seen.append(trend.null_steps)
    assert seen == [1, 0, 1, 1, 2, 3, 0]


def test_onset_is_the_mean_of_the_last_five_steps_as_preregistered():
    trend, seen = Trend(), []
    for step, hack in enumerate([0.0, 0.0, 0.25, 0.0, 0.25, 0.25, 0.5]):
        trend.add(row(step, hack=hack))
        seen.append(trend.recent)
    assert all(map(math.isnan, seen[:4]))
    assert seen[4:] == pytest.approx([0.1, 0.15, 0.25])
    rules = yaml.safe_load(Path("experiments/design/preregistration.yaml").read_text())["measures"]
    assert rules["onset_window"] == gauges.ONSET_WINDOW
    alerts = yaml.safe_load(Path("deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    onset = next(r for g in alerts for r in g["rules"] if r["alert"] == "HackingOnset")
    assert onset["expr"] == f"rs_hack_rate_recent >= {rules['onset_pp'] / 100}"


def test_modules_are_series_in_layer_order_and_never_more_than_the_limit():
    assert series_of(NAMES) == [("00", "self_attn.q_proj"), ("10", "mlp.up_proj")]
    assert series_of(["lm_head"]) == [("-", "lm_head")]
    many = [f"model.layers.{i}.{part}" for i in range(90) for part in ("a", "b", "c", "d", "e", "f", "g")]
    assert len(set(series_of(many))) == 90


def test_modules_that_share_a_series_are_averaged(settings, monkeypatch):
    monkeypatch.setattr(gauges, "series_of", lambda names: series_of(names, limit=1))
    metrics = Metrics("trainer")
    Gauges(settings, metrics, ["l.3.a", "l.3.b"]).step(row(0), [0.1, 0.3])
    value = metrics.registry.get_sample_value("rs_cos_align_module", {**RUN, "layer": "03", "part": "all"})
    assert value == pytest.approx(0.2)


def test_a_step_without_a_gradient_shows_no_old_cosine(settings):
    metrics = Metrics("trainer")
    shown = Gauges(settings, metrics, NAMES)
    shown.step(row(0), [0.1, 0.2])
    shown.step(row(1, cos=None, band=None), None)
    for name, labels in (
        ("rs_cos_align_mean", RUN),
        ("rs_cos_align_module", {**RUN, "layer": "10", "part": "mlp.up_proj"}),
    ):
        assert math.isnan(metrics.registry.get_sample_value(name, labels))
    assert metrics.registry.get_sample_value("rs_step", RUN) == 2


def test_after_a_restart_every_series_says_what_it_said_before(settings):
    open_run(settings)
    modules = [(name, 4) for name in NAMES]
    before = Metrics("trainer")
    record = Record(settings, before, modules, None)
    outcomes = {"trained": 0, "dropped": 0}
    for step, cos in enumerate([0.2, 0.01, 0.02, -0.01, 0.03, 0.0]):
        record.step(row(step, hack=step / 10, cos=cos), [cos, -cos], [0.0, 0.0])
        record.count({"trained": 3, "dropped": 1}, 100)
        outcomes = {k: v + n for (k, v), n in zip(outcomes.items(), (3, 1), strict=True)}
    record.evaluation({"step": 6, "mode": "hint", "pass_oracle": 0.75, "hack_strict": 0.5, "nll_margin": -0.25})
    after = Metrics("trainer")
    resumed = Record(settings, after, modules, None)
    resumed.cut(6, [6])
    resumed.replay()
    resumed.count(outcomes, 600)

    def samples(metrics):
        return {
            (s.name, *sorted(s.labels.items())): s.value
            for family in metrics.registry.collect()
            for s in family.samples
            if s.name.startswith("rs_") and not s.name.endswith("_created")
        }

    old, new = samples(before), samples(after)
    assert old.keys() == new.keys()
    assert {k: (v, new[k]) for k, v in old.items() if v != new[k]} == {}
    assert old["rs_null_steps", ("arm", "vanilla"), ("run", "r"), ("seed", "0")] == 5
    assert all("step" not in dict(key[1:]) for key in new), "the step is a value, never a label"


def test_gpu_memory_is_read_at_each_scrape_and_absent_without_a_gpu(settings):
    metrics = Metrics("trainer")
    shown, used = Gauges(settings, metrics, NAMES), iter([1e9, 3e9])
    shown.watch_gpu(gpu.memory("cpu"))
    assert b"rs_trainer_gpu_bytes{" not in metrics.text()
    shown.watch_gpu({"used": lambda: next(used)})
    key = {**RUN, "kind": "used"}
    assert [metrics.registry.get_sample_value("rs_trainer_gpu_bytes", key) for _ in range(2)] == [1e9, 3e9]
