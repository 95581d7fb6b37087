"""A GGUF file as a Hugging Face model folder: quantised weights widened, so a little worse than the published ones.

transformers reads the file (package `gguf`); its weights then go into a model of their own, because a model loaded from
GGUF still thinks of itself as quantised and cannot be saved. Packages: gguf, accelerate, transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import ConfigError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PACKAGES = ("gguf", "accelerate")
# numpy lets go of the interpreter's lock only while it computes: sixteen threads took longer than one on a machine of 32
# cores (169 s at 1.5 B, 114 s before), two to four gain two- to threefold
THREADS = min(4, os.cpu_count() or 1)
ROWS = 256  # of a tensor that a thread takes at a time; a multiple of the 16 that gguf itself works on at once


@dataclass(frozen=True)
class GgufFacts:
    """From the header. parameters: numbers in all tensors. quantised: the type of most of those in blocks, like Q4_K."""

    name: str
    architecture: str
    licence: str
    parameters: int
    quantised: str
    chat_template: bool


def read_facts(path: Path) -> GgufFacts:
    """What the header says; quick, whatever the file's size.

    Raises:
        ConfigError: a package is missing, no such file, no GGUF file, cut off, or an architecture that cannot be read.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise ConfigError(f"a GGUF file needs the package {package}; run `pip install {' '.join(PACKAGES)}`")
    if not path.is_file():
        raise ConfigError(f"no file {path}; give an existing GGUF file")
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(path)
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise ConfigError(f"{path} is no GGUF file, or is cut off ({str(error).splitlines()[0][:120]})") from None
    end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    if end == 0 or end > path.stat().st_size:
        raise ConfigError(f"{path} holds no weights, or is cut off; fetch it again")
    kinds: dict[str, int] = {}
    for tensor in (t for t in reader.tensors if t.name.startswith("blk.")):
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    facts = GgufFacts(
        name=_field(reader, "general.name") or path.stem,
        architecture=_field(reader, "general.architecture"),
        licence=_field(reader, "general.license") or "not stated in the file",
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        quantised=max(kinds, key=kinds.__getitem__, default="no known type"),
        chat_template=bool(_field(reader, "tokenizer.chat_template")),
    )
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if facts.architecture.replace("qwen2moe", "qwen2_moe") not in {*GGUF_SUPPORTED_ARCHITECTURES, "qwen2_moe"}:
        raise ConfigError(
            f"{path} is of the architecture {facts.architecture!r}, which transformers does not read from GGUF; give the "
            "model's own safetensors"
        )
    return facts


def _field(reader: Any, name: str) -> str:
    field = reader.fields.get(name)
    return "" if field is None else str(field.contents())


def convert(path: Path, out: Path, dtype: str = "bfloat16", say: Callable[[str], None] = lambda _: None) -> None:
    """Write config, tokenizer and safetensors in `dtype` to the folder `out`. Needs about six bytes a parameter of memory.

    say: told which part of the work begins.

    Raises:
        ConfigError: what transformers says of the file, its first line.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        say("reading and widening the weights")
        model = load(path, dtype)
        say("writing safetensors")
        model.save_pretrained(out)
        say("tokenizer")
        tokenizer(path).save_pretrained(out)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(f"cannot convert {path}: {(str(error).strip() or repr(error)).splitlines()[0]}") from error


def load(path: Path, dtype: str) -> Any:
    """The causal LM of a GGUF file in `dtype` on the CPU, in eval mode, like one loaded from a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    with widened_on_threads():
        loaded: Any = AutoModelForCausalLM.from_pretrained(**_where(path), dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(loaded).__name__]
    loaded.to(getattr(torch, dtype))
    config.dtype = getattr(torch, dtype)
    plain = type(loaded)(config).to(getattr(torch, dtype))
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    return plain.eval()


def tokenizer(path: Path) -> Any:
    """The tokenizer that a GGUF file carries."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(**_where(path))


def _where(path: Path) -> dict[str, str]:
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


@contextmanager
def widened_on_threads(threads: int = THREADS) -> Iterator[None]:
    """While it lasts `gguf.dequantize`, which transformers looks up anew for each file, shares a tensor's rows out to threads.

    The bytes are the same: quantised blocks lie along the last axis, so no row needs another. numpy works without the
    interpreter's lock, so threads are enough.
    """
    import gguf
    import numpy as np

    package: Any = gguf  # whether it is typed depends on its version
    plain = package.dequantize

    def shared_out(data: Any, kind: Any) -> Any:
        rows = data.reshape(-1, data.shape[-1])
        if len(rows) <= ROWS:
            return plain(data, kind)
        parts = list(pool.map(lambda start: plain(rows[start : start + ROWS], kind), range(0, len(rows), ROWS)))
        return np.concatenate(parts).reshape(*data.shape[:-1], -1)

    with ThreadPoolExecutor(threads) as pool:
        package.dequantize = shared_out
        try:
            yield
        finally:
            package.dequantize = plain
