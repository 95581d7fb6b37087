"""attach_lora on PEFT's own layers, and the same numbers by hand: y = W0 x + s · B (A x), projected gradient of B."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rankspace
from rankspace import RankspaceError
from rankspace.merge import merged_weight

peft = pytest.importorskip("peft", reason="its wheel is not installed: see CONTRIBUTING.md")
TARGETS = ["q_proj", "v_proj", "up_proj"]


def lora(tiny, **changes):
    base = tiny()  # sets a seed of its own
    torch.manual_seed(changes.pop("seed", 0))
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | changes))
    return peft.get_peft_model(base, config)


def backward(model, adapter):
    for p in adapter.parameters():
        p.grad = None
    ids = torch.arange(3, 23)[None]
    model(input_ids=ids, labels=ids).loss.backward()


def test_only_b_trains_and_names_and_sizes_are_those_of_b(tiny_qwen3):
    model = lora(tiny_qwen3)
    adapter = rankspace.attach_lora(model)
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains == [f"{name}.lora_B.default.weight" for name, _ in adapter.modules]
    assert dict(adapter.modules)["base_model.model.model.layers.0.mlp.up_proj"] == 48 * 4
    assert not torch.any(adapter.get_flat())
    with adapter.disabled():
        base = model(input_ids=torch.arange(5)[None]).logits
    adapter.set_flat(torch.randn(adapter.get_flat().numel()))
    assert not torch.equal(model(input_ids=torch.arange(5)[None]).logits, base)
    with adapter.disabled():
        assert torch.equal(model(input_ids=torch.arange(5)[None]).logits, base)


def test_b_times_a_is_the_change_that_peft_merges(tiny_qwen3):
    model = lora(tiny_qwen3)
    adapter = rankspace.attach_lora(model)
    adapter.set_flat(torch.randn(adapter.get_flat().numel(), generator=torch.Generator().manual_seed(1)))
    name = "base_model.model.model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    U, A = adapter.basis(name)
    ours = merged_weight(layer.base_layer.weight, U, adapter.named_delta()[name], A)
    wanted = layer.base_layer.weight + layer.get_delta_weight("default")  # with PEFT's own scaling, alpha / r
    assert torch.allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize("variant", ["one_sided", "two_sided", "update", "moments"])
def test_the_hook_does_to_b_what_project_does_to_the_flat_vector(tiny_qwen3, variant):
    model = lora(tiny_qwen3)
    adapter = rankspace.attach_lora(model)
    direction = rankspace.random_direction(adapter.modules, 2)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01, weight_decay=0.0)
    hook, layout = rankspace.GradientHook(optimizer, adapter, direction, variant), rankspace.Layout.of(adapter.modules)
    for _ in range(3):
        backward(model, adapter)
        g = torch.cat([p.grad.flatten() for p in adapter.parameters()]).clone()
        hook.before_step()
        if variant in ("one_sided", "two_sided"):
            wanted, _ = rankspace.project(g, direction.vectors, layout, variant)
            assert torch.allclose(torch.cat([p.grad.flatten() for p in adapter.parameters()]), wanted, atol=1e-7)
        optimizer.step()
        metrics = hook.after_step()
    assert metrics["n_modules"] == len(adapter.modules) if "n_modules" in metrics else True
    if variant == "update":
        moved = layout.pad(adapter.get_flat()) * layout.pad(direction.vectors)
        assert (moved.sum(-1) >= -1e-6).all()  # never towards v: delta goes against the gradient


def test_a_direction_of_another_a_is_refused(tiny_qwen3, tmp_path):
    first, second = (rankspace.attach_lora(lora(tiny_qwen3, seed=seed)) for seed in (0, 1))
    assert first.modules == second.modules and first.fingerprint != second.fingerprint
    made = rankspace.direction.with_metadata(
        rankspace.random_direction(first.modules, 0), fingerprint=first.fingerprint
    )
    rankspace.save_direction(made, tmp_path / "v.safetensors")
    rankspace.load_direction(tmp_path / "v.safetensors", first.modules, first.fingerprint)
    with pytest.raises(RankspaceError, match="other weights"):
        rankspace.load_direction(tmp_path / "v.safetensors", second.modules, second.fingerprint)


def test_what_would_train_more_than_b_is_refused(tiny_qwen3):
    with pytest.raises(RankspaceError, match="use_dora=False"):
        rankspace.attach_lora(lora(tiny_qwen3, use_dora=True))
    with pytest.raises(RankspaceError, match="lora_bias=False"):
        rankspace.attach_lora(lora(tiny_qwen3, lora_bias=True))
    with pytest.raises(RankspaceError, match="no LoRA layers named 'other'"):
        rankspace.attach_lora(lora(tiny_qwen3), "other")
    with pytest.raises(RankspaceError, match=r"get_peft_model\(base"):
        rankspace.attach_lora(tiny_qwen3())
    model = lora(tiny_qwen3)
    adapter = rankspace.attach_lora(model)
    for layer in adapter._layers.values():
        layer.lora_A["default"].weight.requires_grad_(True)  # unfrozen behind our back
    with pytest.raises(RankspaceError, match="also trains 6 other tensor"):
        rankspace.GradientHook(
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
            adapter,
            rankspace.random_direction(adapter.modules, 0),
        )


def test_the_errors_of_the_other_adapter_name_b_and_peft(tiny_qwen3, tmp_path):
    adapter = rankspace.attach_lora(lora(tiny_qwen3))
    hook = rankspace.GradientHook(
        torch.optim.SGD(adapter.parameters(), lr=1.0), adapter, rankspace.random_direction(adapter.modules, 0)
    )
    with pytest.raises(RankspaceError, match=r"lora_B\.default\.weight has no gradient"):
        hook.before_step()
    with pytest.raises(RankspaceError, match="save_pretrained"):
        rankspace.save_adapter(adapter, tmp_path / "out", "base")
    with pytest.raises(RankspaceError, match=r"belongs to rankspace\.attach"):
        adapter.use("merged")
    adapter.detach()
    assert all(layer.lora_A["default"].weight.requires_grad for layer in adapter._layers.values())


def test_a_trl_trainer_takes_it_in_place_of_delta_s(tiny_qwen3):
    """The guards of the callback: the model's own B are the adapter's, a copy's are not, and TRL sends a PEFT model itself."""
    pytest.importorskip("transformers")
    from rankspace.trl import _refuse_unsupported, _require_same_modules

    model = lora(tiny_qwen3)
    adapter = rankspace.attach_lora(model)
    _require_same_modules(model, adapter)
    _refuse_unsupported(SimpleNamespace(use_vllm=True), torch.optim.SGD(adapter.parameters(), lr=1.0), adapter)
    with pytest.raises(RankspaceError, match=r"6 lora_B\.default\.weight, 0 of them"):
        _require_same_modules(lora(tiny_qwen3), adapter)


def test_an_embedding_with_lora_is_refused(tiny_qwen3):
    model = peft.get_peft_model(nn.Sequential(nn.Embedding(8, 4)), peft.LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(RankspaceError, match="no LoRA layers"):
        rankspace.attach_lora(model)
