"""Tiny checkpoints saved as each family is published: the tensors under the names that the adapter's modules have, logits
that are scaled or capped, weights that are fused, and one fingerprint whatever dtype they are stored in."""

from __future__ import annotations

import pytest
import torch

from rankspace import RankspaceError, attach
from rankspace.batch import batch_logprobs, pad_batch, require_own_logits
from rankspace.merge import MergeSource
from rankspace.targets import DEFAULT_TARGETS, left_out, require_covered
from rankspace.weights import plain, shapes

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
LINEAR = {"num_hidden_layers": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
EYES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}


def published(family: str):
    """The class under which the family is published, tiny, with random weights."""
    import transformers as t

    torch.manual_seed(0)
    if family == "qwen3_5":
        config = t.Qwen3_5Config(text_config=SIZE | LINEAR, vision_config=EYES, tie_word_embeddings=True)
        return t.Qwen3_5ForConditionalGeneration(config)
    if family == "gemma3":
        eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 28, "patch_size": 14}  # fmt: skip
        text = SIZE | {"sliding_window": 8}
        return t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4)
        )
    name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "phi3": "Phi3", "gemma2": "Gemma2", "cohere": "Cohere",
            "granite": "Granite", "gemma3_text": "Gemma3"}[family]  # fmt: skip
    more = {
        "cohere": {"logit_scale": 0.0625},
        "granite": {"logits_scaling": 8.0},
        "gemma2": {"final_logit_softcapping": 2.0},
    }
    config = getattr(t, f"{name}{'Text' if family == 'gemma3_text' else ''}Config")(**SIZE, **more.get(family, {}))
    return getattr(t, f"{name}ForCausalLM")(config)


def load(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_5", "llama", "gemma3", "gemma3_text", "phi3"])
def test_every_adapted_module_is_found_in_the_checkpoint(tmp_path, family):
    from safetensors.torch import load_file

    published(family).save_pretrained(tmp_path)
    stored = {plain(name): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    model = load(tmp_path)
    adapter = attach(model)
    modules = [(plain(name), r) for name, r in adapter.modules]
    source = MergeSource.load(stored.items(), modules)
    for (name, _), weight in zip(adapter.modules, source.weights, strict=True):
        assert torch.equal(weight, model.get_submodule(name).weight), name
    headers = shapes(tmp_path)
    assert {plain(name) for name in headers} == stored.keys() and len(headers) == len(stored), "one tensor a name"
    require_covered(headers)
    assert len(modules) >= 2 * (4 if family == "phi3" else 7)
    require_own_logits(model)


def test_a_mixture_of_experts_is_refused_with_its_share(make):
    model = make("qwen3_next")
    share, largest = left_out({name: tuple(p.shape) for name, p in model.named_parameters()})
    assert share > 0.1 and "experts" in largest
    dense = {"model.layers.0.mlp.gate_up_proj.weight": (4, 4), "model.layers.0.mlp.router.weight": (1, 1)}
    assert left_out(dense) == (1 / 17, "model.layers.0.mlp.router.weight")
    with pytest.raises(RankspaceError, match=r"50% of its matrices .* transformer.layers.0.fc1.weight \(4, 4\)"):
        require_covered({"transformer.layers.0.fc1.weight": (4, 4), "transformer.layers.0.q_proj.weight": (4, 4)})
    assert "qkv_proj" in DEFAULT_TARGETS


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.c_attn.weight", "h.11.mlp.dense_4h_to_h.weight", "blocks.3.w.weight"]
)
def test_layers_of_any_name_count(name):
    """GPT-2, Bloom and their like would else pass the header's check, and be refused after the model is loaded."""
    assert left_out({name: (4, 4), "wte.weight": (99, 4)}) == (1.0, name)
    with pytest.raises(RankspaceError, match="100% of its matrices"):
        require_covered({name: (4, 4)})


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2"])
def test_scaled_and_capped_logits_are_right(family):
    model = published(family).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # logits large enough for a cap to bite
    prompts, completions = [[5, 6], [7, 8, 9]], [[10, 11, 12], [13]]
    batch = pad_batch(prompts, completions)
    with torch.no_grad():
        ours, _ = batch_logprobs(model, batch)
        for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
            rows = model(torch.tensor([p + c])).logits[0, len(p) - 1 : -1].float().log_softmax(-1)
            own = rows.gather(-1, torch.tensor(c)[:, None])[:, 0]
            assert torch.allclose(ours[i, : len(c)], own, atol=1e-4), family
    require_own_logits(model)


def test_logits_changed_in_an_unknown_way_are_refused(tiny_qwen3):
    model = tiny_qwen3()
    forward = model.forward

    def louder(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 30
        return out

    model.forward = louder
    with pytest.raises(RankspaceError, match="differ from its own logits"):
        require_own_logits(model)


def test_fp32_and_fp16_checkpoints_are_one_model_under_bf16(tmp_path, tiny_qwen3):
    """Each 16-bit checkpoint and its copy in fp32; fp16 values are rounded to bf16 in one way everywhere."""
    for values in (torch.bfloat16, torch.float16):
        prints = set()
        for stored in (values, torch.float32):
            folder = tmp_path / f"{values}-{stored}"
            tiny_qwen3().to(values).to(stored).save_pretrained(folder)
            prints.add(attach(load(folder, torch.bfloat16)).fingerprint)
        assert len(prints) == 1, values
