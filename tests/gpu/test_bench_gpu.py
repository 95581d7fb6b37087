"""The GPU benchmark at tiny size on the CPU, so that a change cannot break it unseen."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench.gpu import loop, shapes
from bench.gpu.__main__ import main, table
from experiments.design import presets
from services.ref_server.worker_extension import find_places


def test_every_form_of_the_step_runs_and_the_table_says_so(tmp_path, capsys):
    out = tmp_path / "bench.json"
    small = [
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--batch",
        "2",
        "--tokens",
        "16",
        "--repeats",
        "1",
    ]
    assert main(["step", "--no-compile", "--out", str(out), *small]) == 0
    found = json.loads(out.read_text())["step tiny"]
    missing = set(found["failed"])
    assert missing <= {"lora"}, found["failed"]  # peft is no dependency of ours
    assert set(found["tokens_per_s"]) | missing == {"frozen", "lora", "full", "factored", "merged", "summed"}
    assert found["modules"] == 14 and found["tokens"] == 32
    text = table(json.loads(out.read_text()))
    assert "| merged |" in text and "x frozen" in text and "relative error" in text


SMALL = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32"]


def _short(tmp_path, repeats):
    sizes = f"--tokens 8 --repeats {repeats} --groups 2 --kv-cache 0.2".split()
    return [*sizes, "--out", str(tmp_path / "bench.json")]


def _found(tmp_path, name):
    everything = json.loads((tmp_path / "bench.json").read_text())
    return everything[name], table(everything)


@pytest.mark.slow
def test_a_push_is_measured_from_the_optimizer_to_the_first_token(tmp_path):
    own = _short(tmp_path, repeats=2)
    assert main(["push", *SMALL, *own, "--work", str(tmp_path)]) == 0
    found, text = _found(tmp_path, "push tiny")
    ours, full = found["ours"], found["full"]
    assert 0 < ours["published_ms"] < ours["ready_ms"] < ours["to_first_token_ms"]
    assert found["modules"] == 14 and ours["payload_bytes"] < full["payload_bytes"] / 50
    assert found["kept"]["pushes"] > 0 and found["sampled_tokens"] == found["kept"]["sampled_tokens"] == 2 * 8 * 8
    assert "| delta_S, with queue, probe and proof |" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_loop_is_measured_phase_by_phase(tmp_path):
    own = _short(tmp_path, repeats=3)
    own += ["--preset", "demo", "--gpus", "0", "1", "--bases-on", "host"]
    before = dict(presets.get("demo").values)
    assert main(["loop", *SMALL, *own, "--work", str(tmp_path)]) == 0
    found, text = _found(tmp_path, "loop tiny bases on host two GPUs")
    assert presets.get("demo").values == before, "a preset is for everybody"
    assert found["rollouts"] == 16 and len(found["all_steps"]) == 3 and found["gpus"] == {}
    assert found["trained_groups"] == found["groups"] == 2, "every rollout goes through the optimizer"
    assert {"total", "train", "push", "generate", "grade"} <= set(found["seconds"])
    assert found["minutes_200_steps"] == pytest.approx(200 * found["seconds"]["total"] / 60)
    assert "200 steps, min" in text


def test_the_pace_is_that_of_steps_beside_which_others_are_sampled():
    seconds = [{"total": t, "train": 1.0} for t in (30.0, 15.0, 9.0, 14.0, 13.0, 12.0, 8.0)]
    assert loop.medians(seconds) == {"total": 13.0, "train": 1.0}, (
        "compiling steps and the last, with nothing beside it"
    )
    assert loop.medians(seconds[:2]) == {"total": 22.5, "train": 1.0}, "all, when they are few"


def test_no_token_of_a_random_model_has_a_zero_embedding():
    """A prompt that began with such a token made the gradient infinite fifteen layers below the loss."""
    weights = shapes.build("tiny", "cpu", "float32").get_input_embeddings().weight
    assert weights.norm(dim=1).min() > 0.5 * weights.norm(dim=1).median()


def test_bases_that_are_not_orthonormal_are_refused(monkeypatch):
    U, Vh = shapes._random_orthonormal(6, 4, "cpu")
    assert torch.allclose(U.T @ U, torch.eye(4), atol=1e-5) and torch.allclose(Vh @ Vh.T, torch.eye(4), atol=1e-5)
    monkeypatch.setattr(torch.linalg, "qr", lambda x: SimpleNamespace(Q=x * 1e30))
    with pytest.raises(RuntimeError, match="not orthonormal"):
        shapes._random_orthonormal(6, 4, "cpu")


@pytest.mark.slow
def test_two_ranks_project_and_step_as_one(tmp_path):
    own = ["--batch", "4", "--tokens", "16", "--repeats", "2", "--out", str(tmp_path / "bench.json")]
    assert main(["ranks", *SMALL, *own, "--work", str(tmp_path)]) == 0
    found, text = _found(tmp_path, "ranks tiny")
    one, two = found["fired"]
    assert one == two and 0 < max(one) < 1, "projected, some modules and not others"
    assert found["cos_largest"] > 0.1 and found["cos_gap"] < 1e-5 and found["delta_gap"] < 1e-3
    assert "two ranks" in text


class Fused(nn.Module):
    """As vLLM lays weights out: q|k|v and gate|up stacked by rows."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, parts: dict[str, torch.Tensor]):
        super().__init__()
        self.attn = nn.Module()
        for whole, names in (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("o_proj", ("o_proj",))):
            weight = torch.cat([parts[f"attn.{n}"] for n in names])
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight)
            self.attn.add_module(whole, layer)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return {
        f"attn.{n}": torch.randn(rows, 6) for n, rows in (("q_proj", 6), ("k_proj", 2), ("v_proj", 2), ("o_proj", 6))
    }


def test_places_are_views_of_the_fused_weights(parts):
    model = Fused(parts)
    places = find_places(model, list(parts), list(parts.values()))
    assert [tuple(p.shape) for p in places] == [(6, 6), (2, 6), (2, 6), (6, 6)]
    places[1].fill_(7.0)
    assert torch.equal(model.attn.qkv_proj.weight.data[6:8], torch.full((2, 6), 7.0))
    assert torch.equal(model.attn.qkv_proj.weight.data[:6], parts["attn.q_proj"])


def test_no_places_when_a_weight_is_cut_moved_or_unknown(parts):
    names, weights = list(parts), list(parts.values())
    assert find_places(Fused(parts), [*names[:3], "attn.else"], weights) is None
    assert find_places(Fused(parts), names[1:], weights[1:]) is None  # where k begins is not known without q
    shard = parts | {"attn.o_proj": parts["attn.o_proj"][:3]}
    assert find_places(Fused(shard), names, weights) is None
    other = Fused(parts)
    other.attn.qkv_proj.weight.data[7, 0] += 1
    assert find_places(other, names, weights) is None
    assert find_places(Fused(parts), names, [w.to(torch.bfloat16) for w in weights]) is None
