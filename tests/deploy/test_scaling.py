"""docs/scaling.md: its tables are those of today's numbers, and the arithmetic is right."""

import json

import pytest
import yaml
from compose_tool import ROOT

from deploy import scaling
from experiments.design import presets

MODEL, NUMBERS, CLUSTERS = scaling.load()
SMALL = {"layers": 28, "hidden": 2048, "q_rows": 2048, "kv_rows": 1024, "intermediate": 6144}  # the 1.7B shape


def test_the_page_is_up_to_date():
    text = scaling.PAGE.read_text()
    between = text.partition(scaling.BEGIN)[2].partition(scaling.END)[0]
    assert between.strip() == scaling.page().strip(), "run `python -m deploy.scaling --write`"


def test_numbers_of_delta_by_hand():
    """Qwen3-4B: 2560 for q, o, gate, up and down, 1024 for k and v, 36 layers."""
    assert scaling.delta_numbers(MODEL) == 36 * (5 * 2560 + 2 * 1024) == 534_528


def test_numbers_of_delta_as_measured():
    """The 1.7B shape of the speed measurements, which counted its own adapter."""
    everything = json.loads((ROOT / "docs/results/gpu/bench.json").read_text())
    bench = everything["step 1.7b"]
    assert scaling.delta_numbers(SMALL) == bench["delta_numbers"]
    assert len(scaling.modules(SMALL)) == bench["modules"]
    assert everything["push 1.7b"]["ours"]["payload_bytes"] == pytest.approx(scaling.push_bytes(SMALL), rel=0.01)
    assert bench["tokens_per_s"]["merged compiled x4"] == pytest.approx(NUMBERS["train_tokens_s"], rel=0.001)


def test_a_step_against_whole_loops_as_measured():
    """Training within a sixth, a step at 4B too; and the page says what came out."""
    everything = json.loads((ROOT / "docs/results/gpu/bench.json").read_text())
    n = NUMBERS | {"group_size": 8, "completion_tokens": 1024, "prompt_tokens": 100, "grade_cpu_s": 0.006}
    one_card, small = scaling.Cluster(1, 1, 1, 6, True), {**SMALL, "parameters": n["train_parameters"]}
    large, loop = scaling.step_seconds(MODEL, n, one_card, 16), everything["loop 4b compiled bases on host"]
    step, alone = (
        scaling.stages(large, shared=True)["card"],
        (loop["all_steps"][-1]["train"], loop["all_steps"][0]["generate"]),
    )
    assert step == pytest.approx(loop["seconds"]["total"], rel=1 / 6) and large["train"] == pytest.approx(
        alone[0], rel=1 / 6
    )
    below = scaling.step_seconds(small, n, one_card, 16)
    whole, slower = everything["loop 1.7b compiled"], scaling.stages(below, shared=True)["card"]
    assert below["train"] == pytest.approx(whole["all_steps"][-1]["train"], rel=1 / 6)
    text = " ".join(scaling.PAGE.read_text().split())
    assert f"{step:.1f} s a step where {loop['seconds']['total']:.1f} were measured" in text
    assert f"training {large['train']:.1f} s ({alone[0]:.1f} alone)" in text
    assert f"sampling and scoring {large['sample'] + large['score']:.1f} s ({alone[1]:.1f} alone)" in text
    assert f"(1.7B: {slower:.1f} s against {whole['seconds']['total']:.1f})" in text


def test_a_push_is_four_bytes_a_number_and_names():
    extra = scaling.push_bytes(MODEL) - 4 * scaling.delta_numbers(MODEL)
    assert 0 < extra < 60 * len(scaling.modules(MODEL))


def test_a_step_by_hand():
    n = {"group_size": 4, "completion_tokens": 100, "prompt_tokens": 100, "generate_tokens_s": 1000, "generate_half_batch": 8,
         "train_tokens_s": 800, "train_parameters": 1e9, "forwards_in_training": 4, "grade_cpu_s": 0.5, "merge_flop_s": 1e12,
         "decode_mb_s": 1, "network_mb_s": 1, "redis_write_s_mb": 1, "redis_read_s_mb": 1}  # fmt: skip
    model = {"layers": 1, "hidden": 10, "q_rows": 10, "kv_rows": 10, "intermediate": 10, "parameters": 2e9}
    parts = scaling.step_seconds(model, n, scaling.Cluster(4, generators=2, ranks=2, graders=8, shared=False), groups=4)
    assert parts["sample"] == pytest.approx(8 * 100 / 500), "8 sequences a card are at half speed"
    assert parts["train"] == pytest.approx(16 * 200 / (2 * 400)), "a model twice as large trains half as fast"
    assert parts["score"] == pytest.approx(16 * 200 / 2 / 1600)
    assert parts["grade"] == pytest.approx(16 * 0.5 / 8)
    assert scaling.merge_flop(model) == 7 * 2 * 10**3
    alone = scaling.stages(parts, shared=True)
    assert alone["card"] == pytest.approx(sum(parts[k] for k in ("sample", "score", "train", "receive", "push")))
    assert scaling.graders_needed(parts, scaling.Cluster(4, 2, 2, 8, False), 0.5) == 16


def test_the_numbers_of_the_plan_are_those_of_the_preset():
    plan = presets.get("qwen3-4b").values
    assert (NUMBERS["group_size"], NUMBERS["groups_per_step"]) == (plan["group_size"], plan["groups_per_step"])
    assert NUMBERS["completion_tokens"] <= plan["max_tokens"]


def test_clusters_are_those_of_the_overlays():
    for cluster in CLUSTERS:
        assert cluster.gpus == (1 if cluster.shared else cluster.generators + cluster.ranks)
        if cluster.overlay:
            path = ROOT / f"deploy/kubernetes/overlays/{cluster.overlay}/kustomization.yaml"
            patches = [yaml.safe_load(p["patch"]) for p in yaml.safe_load(path.read_text())["patches"]]
            found = {p["kind"]: p["spec"] for p in patches}
            env = {e["name"]: e["value"] for e in found["Job"]["template"]["spec"]["containers"][0]["env"]}
            assert found["StatefulSet"]["replicas"] == cluster.generators
            assert int(env["NODES"]) * int(env["RANKS_A_NODE"]) == cluster.ranks
            assert found["ScaledObject"]["maxReplicaCount"] == cluster.graders


def test_what_the_page_claims():
    """The sentences above the tables, as inequalities."""
    _, middle, large = CLUSTERS
    plan = int(NUMBERS["groups_per_step"])

    def step(cluster, groups):
        parts = scaling.step_seconds(MODEL, NUMBERS, cluster, groups)
        busy = scaling.stages(parts, cluster.shared)
        return parts, busy, max(busy.values())

    parts, busy, seconds = step(large, plan)
    assert max(busy, key=busy.get) == "generators" and seconds > 0.75 * step(middle, plan)[2], "more cards stop helping"
    for cluster in CLUSTERS:
        for groups in (plan, plan * cluster.generators):
            parts, busy, seconds = step(cluster, groups)
            assert busy["Redis"] < 0.1 * seconds and parts["push"] < 0.15 * seconds and busy["graders"] < seconds
            assert scaling.graders_needed(parts, cluster, seconds) <= 2 * cluster.gpus
    parts, busy, seconds = step(large, plan * large.generators)
    assert busy["trainer"] == pytest.approx(busy["generators"], rel=0.25), "5 generators to 3 ranks are balanced"
    rate = {c.gpus: plan * c.generators / step(c, plan * c.generators)[2] for c in CLUSTERS}
    assert rate[64] / rate[8] == pytest.approx(8, rel=0.1)
    assert parts["push"] - scaling.merge_flop(MODEL) / NUMBERS["merge_flop_s"] < 0.04
