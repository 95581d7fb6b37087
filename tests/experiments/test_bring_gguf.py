"""A GGUF file made here, quantised in part, as a model folder: the same numbers, a tokenizer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.model_names import local
from experiments.design.presets import ORGANISM_MODEL
from experiments.launch import gguf_file
from experiments.launch.bring import bring

gguf = pytest.importorskip("gguf", reason="pip install '.[gguf]'")
FOLDER = Path(__file__).resolve().parents[2] / ORGANISM_MODEL
DIM, INNER, HEADS = 64, 96, 2


def tensors() -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of a Qwen2 of one block."""
    vocab = len(json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"])
    block = {"attn_norm": (DIM,), "ffn_norm": (DIM,), "ffn_gate": (INNER, DIM), "ffn_up": (INNER, DIM),
             "ffn_down": (DIM, INNER), "attn_output": (DIM, DIM)}  # fmt: skip
    shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    for part in "qkv":
        shapes |= {f"blk.0.attn_{part}.weight": (DIM, DIM), f"blk.0.attn_{part}.bias": (DIM,)}
    return shapes | {"token_embd.weight": (vocab, DIM), "output.weight": (vocab, DIM), "output_norm.weight": (DIM,)}


def write(path: Path, template: str | None = "{{ messages[0]['content'] }}", architecture: str = "qwen2"):
    """The file; returns {name: fp32 numpy as it is read back}."""
    import numpy as np

    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())["model"]
    vocab = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_embedding_length(DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocab)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocab))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer.get("merges", [])] or ["a b"])
    writer.add_eos_token_id(1)
    if template:
        writer.add_chat_template(template)
    rng, written = np.random.default_rng(0), {}
    for name, shape in tensors().items():
        value = rng.normal(0, 0.05, shape).astype(np.float32)
        if len(shape) == 2 and shape[1] % 32 == 0 and name.startswith("blk"):
            packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            written[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            written[name] = value
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def test_weights_widened_are_those_of_the_file(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    written, said, shares, plain = write(tmp_path / "tiny.gguf"), [], [], gguf.dequantize
    monkeypatch.setattr(gguf_file, "ROWS", 8)
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: [shares.append(data.shape), plain(data, kind)][1])
    folder = bring("tiny.gguf", say=said.append)
    assert {shape[0] for shape in shares if len(shape) == 2} == {8}, "transformers asks for the threads' function"
    assert folder == Path("models/tiny") == local("tiny.gguf") and "licence apache-2.0" in said[0] and "Q8_0" in said[0]
    stored = load_file(folder / "model.safetensors")
    names = {"attn_q.weight": "self_attn.q_proj.weight", "attn_k.bias": "self_attn.k_proj.bias",
             "ffn_down.weight": "mlp.down_proj.weight", "attn_norm.weight": "input_layernorm.weight"}  # fmt: skip
    for ours, theirs in names.items():
        expected = torch.from_numpy(written[f"blk.0.{ours}"]).to(torch.bfloat16)
        assert torch.equal(stored[f"model.layers.0.{theirs}"], expected), ours
    record = json.loads((folder / "source.json").read_text())
    assert (
        record["source"] == str(tmp_path / "tiny.gguf")
        and record["quantised"] == "Q8_0"
        and len(record["sha256"]) == 64
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(folder).chat_template
    said.clear()
    (tmp_path / "tiny.gguf").unlink()
    assert bring("tiny.gguf", say=said.append) == folder and not said, "made once; the file may go"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
@pytest.mark.parametrize("shape", [(1000,), (3, 200), (gguf_file.ROWS + 1,)])
def test_threads_widen_to_the_same_bytes(kind, shape):
    """Also a tensor of three axes (experts) and a number of rows that no thread's share divides."""
    import numpy as np

    plain, number = gguf.dequantize, getattr(gguf.GGMLQuantizationType, kind)
    block, size = gguf.GGML_QUANT_SIZES[number]
    data = np.random.default_rng(0).integers(0, 60, (*shape, 512 // block * size), dtype=np.uint8)
    with gguf_file.widened_on_threads(3):
        assert gguf.dequantize is not plain
        shared = gguf.dequantize(data, number)
    whole = plain(data, number)
    assert (shared.shape, shared.dtype, shared.tobytes()) == (whole.shape, whole.dtype, whole.tobytes())


def test_the_library_s_own_function_is_back_whatever_happened():
    plain = gguf.dequantize
    with pytest.raises(RuntimeError, match="disk"), gguf_file.widened_on_threads():
        raise RuntimeError("disk")
    assert gguf.dequantize is plain


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda p: p.write_bytes(b"no model"), "no GGUF file"), (lambda p: p.unlink(), "no file"),
     (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "cut off")],
)  # fmt: skip
def test_what_is_no_whole_gguf_is_one_line(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.gguf")
    change(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match=words) as caught:
        bring("tiny.gguf", say=print)
    assert "\n" not in str(caught.value) and not (tmp_path / "models" / "tiny").exists()


def test_no_template_is_told_and_an_unknown_architecture_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bare.gguf", template=None)
    assert not gguf_file.read_facts(tmp_path / "bare.gguf").chat_template
    write(tmp_path / "rwkv.gguf", architecture="rwkv9")
    with pytest.raises(ConfigError, match="'rwkv9', which transformers does not read"):
        bring("rwkv.gguf", say=print)
