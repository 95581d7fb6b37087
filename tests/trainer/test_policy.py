"""The policy on the organism: a step is taken, projected, checkpointed, and a resumed one goes on bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from common.settings import TrainerSettings, build
from rankspace import Layout, RankspaceError, random_direction, save_direction
from services.trainer.directions import directions
from services.trainer.loss_metrics import require_finite

SCRIPT = """
import json, sys, torch
from pathlib import Path
from common.settings import TrainerSettings, build
from services.trainer import checkpoint
from services.trainer.text import Text
from services.trainer.checkpoint import State
from services.trainer.collate import TrainingSample
from services.trainer.policy import Policy
from services.trainer.preflight import weight_shapes

mode, root, projection, stage, refresh = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
adapter = sys.argv[6]
torch.set_num_threads(1)
s = build(TrainerSettings, {
    "run_id": "r", "run_dir": str(root), "model": "tasks/organism/model", "train_problems": "a", "heldout_problems": "b",
    "projection": projection, "direction": "random", "groups_per_step": 2, "group_size": 4, "micro_batch": 4,
    "svd_cache": ".cache/svd", "zero_stage": stage, "adapter": adapter,
    "refresh_every": refresh, "pairs": "tasks/pairs/pairs.jsonl", **json.loads(sys.argv[7]),
})
policy = Policy(s)
g = torch.Generator().manual_seed(0)

def rows(step):
    out = []
    for i in range(8):
        n = 4 + (i * 7 + step) % 9
        ids = torch.randint(10, 500, (n,), generator=g).tolist()
        out.append(TrainingSample([2, 30 + i, 31], ids, [-6.0] * n, [-6.0] * n, 1.0 if i % 2 else -1.0, masked=i == 5))
    return out

batches = [rows(k) for k in range(4)]
first = 0
if mode == "resume":
    state = checkpoint.load(policy, root)
    first = state.next_step
trace = []
pairs = Text(s).pairs(s.pairs)[:4] if refresh else []
for k in range(first, 2 if mode == "half" else 4):
    if refresh and k and k % refresh == 0:
        policy.refresh(pairs)
    m = policy.train_step(batches[k], k)
    trace.append([m["cos_mean"], m["update_cos_mean"], m["loss"], m["displacement_own"]])
    checkpoint.save(policy, State(next_step=k + 1), root, 2)
import hashlib
digest = hashlib.sha256(policy.vector()).hexdigest()
norm = float(torch.frombuffer(bytearray(policy.vector()), dtype=torch.float32).norm())
print("RESULT", json.dumps({"digest": digest, "norm": norm, "trace": trace, "kept": len(checkpoint.checkpoints(root))}))
"""


def run(mode, root, projection="one_sided", stage=2, refresh=0, adapter="antipasto", **more):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        mode,
        str(root),
        projection,
        str(stage),
        str(refresh),
        adapter,
        json.dumps(more),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = run("whole", tmp_path / "a")
    run("half", tmp_path / "b")
    resumed = run("resume", tmp_path / "b")
    assert whole["norm"] > 0
    assert resumed["digest"] == whole["digest"]
    assert resumed["trace"] == whole["trace"][2:]
    assert whole["kept"] == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    whole = run("whole", tmp_path / "a")
    run("half", tmp_path / "b")
    newest = max((tmp_path / "b" / "checkpoints").iterdir())
    weights = newest / "rank0.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    resumed = run("resume", tmp_path / "b")
    assert resumed["digest"] == whole["digest"], "one step earlier, then the same steps again"
    assert len(resumed["trace"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_resuming_works_at_every_zero_stage_up_to_2(tmp_path, stage):
    whole = run("whole", tmp_path / "a", stage=stage)
    run("half", tmp_path / "b", stage=stage)
    assert run("resume", tmp_path / "b", stage=stage)["digest"] == whole["digest"]


@pytest.mark.slow
def test_resuming_under_zero_3_is_refused_and_says_what_to_do(tmp_path):
    run("half", tmp_path / "b", stage=3)
    with pytest.raises(AssertionError, match="cannot be resumed under ZeRO-3"):
        run("resume", tmp_path / "b", stage=3)


def test_the_projection_changes_the_update_and_removes_the_component(tmp_path):
    plain = run("half", tmp_path / "a", projection="off")
    projected = run("half", tmp_path / "b", projection="two_sided")
    assert plain["trace"][0][0] == projected["trace"][0][0], "the same gradient before projection"
    assert plain["digest"] != projected["digest"]


def test_a_ramp_goes_on_where_the_checkpoint_stands(tmp_path):
    more = {"projection": "setpoint", "dose": 0.4, "dose_ramp": 4}
    whole = run("whole", tmp_path / "a", **more)
    doses = [row[3] / 28**0.5 for row in whole["trace"]]  # the organism has 28 modules
    assert doses == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)
    run("half", tmp_path / "b", **more)
    resumed = run("resume", tmp_path / "b", **more)
    assert resumed["digest"] == whole["digest"] and resumed["trace"] == whole["trace"][2:]


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["leash", "bias", "shift"])
def test_every_other_intervention_resumes(tmp_path, projection):
    more = {"projection": projection, "dose": 0.0 if projection == "leash" else 0.4}
    whole = run("whole", tmp_path / "a", **more)
    run("half", tmp_path / "b", **more)
    assert run("resume", tmp_path / "b", **more)["digest"] == whole["digest"]


@pytest.mark.slow
def test_the_contrastive_loss_moves_the_policy_and_resumes(tmp_path):
    more = {"projection": "off", "dpo_beta": 50.0, "dpo_pairs": 4, "pairs": "tasks/pairs/pairs.jsonl"}
    plain = run("half", tmp_path / "plain", projection="off")
    whole = run("whole", tmp_path / "a", **more)
    assert whole["trace"][0][2] == plain["trace"][0][2], "the loss that is logged is RL's own"
    run("half", tmp_path / "b", **more)
    resumed = run("resume", tmp_path / "b", **more)
    assert resumed["digest"] == whole["digest"] and resumed["trace"] == whole["trace"][2:]
    assert whole["trace"][0][0] != plain["trace"][0][0], "it is in the gradient"


@pytest.mark.slow
def test_a_run_starts_from_another_s_delta_s_and_the_dose(tmp_path):
    """delta_S = that of the run + dose · v; a rate of 1e-12 leaves it there."""
    run("half", tmp_path / "first", projection="off")
    folder = tmp_path / "first"
    newest = max((folder / "checkpoints").iterdir())
    there = torch.frombuffer(bytearray((newest / "delta_S.f32").read_bytes()), dtype=torch.float32)
    modules = organism_modules()
    (folder / "config.json").write_text(json.dumps({"model": "tasks/organism/model"}))
    (folder / "modules.json").write_text(
        json.dumps({"names": [n for n, _ in modules], "ranks": [r for _, r in modules]})
    )
    want = there + 0.3 * random_direction(modules, 0).vectors
    found = run("half", tmp_path / "second", projection="shift", dose=0.3, start_from=str(folder), lr=1e-12)
    assert found["norm"] == pytest.approx(float(want.norm()), rel=1e-6) and float(there.norm()) > 0.01
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(AssertionError, match="has no checkpoint yet"):
        (other / "config.json").write_text("{}")
        (other / "modules.json").write_text("{}")
        run("half", tmp_path / "third", projection="shift", dose=0.3, start_from=str(other))


def organism_modules():
    from transformers import AutoModelForCausalLM

    import rankspace

    return rankspace.attach(
        AutoModelForCausalLM.from_pretrained("tasks/organism/model"), svd_cache_dir=".cache/svd"
    ).modules


def settings(**more):
    base = {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b"}
    return build(TrainerSettings, base | more)


@pytest.fixture
def files(tmp_path):
    """An adapter of two modules, and a v_hack and a shuffled direction for it on disk."""
    modules = [("a", 6), ("b", 9)]
    made = {"v_hack": random_direction(modules, 1), "shuffled": random_direction(modules, 2)}
    for kind, direction in made.items():
        checked = replace(direction, kind=kind, metadata={"validation": {"frac_positive": 0.9, "n_pairs": 3}})
        save_direction(checked, tmp_path / f"{kind}.safetensors")
    return SimpleNamespace(modules=modules, fingerprint=None), tmp_path


def test_the_run_s_own_v_hack_is_the_reference(files):
    adapter, folder = files
    own, reference = directions(settings(direction="v_hack", v_hack=folder / "v_hack.safetensors"), adapter)
    assert own is reference and own.kind == "v_hack"
    own, reference = directions(settings(direction="v_hack", v_hack=folder / "shuffled.safetensors"), adapter)
    assert own.kind == "shuffled" and reference is None, "a control is no reference"
    assert directions(settings(direction="random"), adapter)[1] is None
    assert directions(settings(direction="none"), adapter) == (None, None)


@pytest.mark.parametrize("own", [{"direction": "random"}, {"direction": "v_hack", "v_hack": "shuffled.safetensors"}])
def test_a_control_is_made_orthogonal_to_the_reference_that_it_is_measured_against(files, own):
    adapter, folder = files
    paths = {k: folder / v if k == "v_hack" else v for k, v in own.items()}
    made, reference = directions(settings(**paths, orthogonal=True, v_ref=folder / "v_hack.safetensors"), adapter)
    layout = Layout.of(adapter.modules)
    assert (layout.pad(made.vectors) * layout.pad(reference.vectors)).sum(-1).abs().max() < 1e-6


def test_a_reference_that_is_no_v_hack_is_refused(files):
    adapter, folder = files
    with pytest.raises(RankspaceError, match=r"field v_ref: .* is of kind 'shuffled', give a v_hack file"):
        directions(settings(direction="random", v_ref=folder / "shuffled.safetensors"), adapter)


def test_writing_gradients_back_unchanged_trains_the_same_bits_as_leaving_them(tmp_path):
    assert run("half", tmp_path / "a", projection="off") == run("half", tmp_path / "b", projection="measure_only")


@pytest.mark.slow
def test_a_refreshed_direction_is_used_and_survives_a_restart(tmp_path):
    fixed = run("whole", tmp_path / "a")
    whole = run("whole", tmp_path / "b", refresh=1)
    assert whole["trace"][0] == fixed["trace"][0], "before the first refresh nothing differs"
    assert whole["trace"][1][0] != fixed["trace"][1][0]
    run("half", tmp_path / "c", refresh=3)
    resumed = run("resume", tmp_path / "c", refresh=3)
    assert resumed["digest"] == run("whole", tmp_path / "d", refresh=3)["digest"]


def test_the_fallback_adapter_trains_projects_and_resumes(tmp_path):
    whole = run("whole", tmp_path / "a", projection="two_sided", adapter="pissa_freeze_a")
    assert whole["norm"] > 0 and all(abs(row[0]) < 1 for row in whole["trace"])
    run("half", tmp_path / "b", projection="two_sided", adapter="pissa_freeze_a")
    resumed = run("resume", tmp_path / "b", projection="two_sided", adapter="pissa_freeze_a")
    assert resumed["digest"] == whole["digest"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_step_and_says_where(bad):
    sound = {"loss": 0.5, "ratio_max": 1.2, "kl": 0.1}
    require_finite([sound, sound])
    with pytest.raises(RankspaceError, match=r"micro-batch 2 of 3 .* up to 1e\+30, KL .* 7"):
        require_finite([sound, {"loss": bad, "ratio_max": 1e30, "kl": 7.0}, sound])
