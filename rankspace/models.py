"""Hugging Face models and tokenizers for the command line: every refusal is one line, and none asks the network in vain.

A name is a directory, or owner/name[@REVISION] of the hub. A hub name or FILE.gguf that `python -m experiments model` has
brought into models/ is read from there.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import RankspaceError
from .gpu import avoid_cudnn_attention

# what an extra of pyproject.toml brings, by name: the line works from any directory and any index
EXTRAS = {"hf": "transformers jinja2 rich", "plot": "matplotlib", "hub": "huggingface_hub"}


BROUGHT = Path("models")


def find_model(name: str) -> str:
    """The directory in models/ whose source.json says that it holds the model `name`; without one the name itself.

    source.json, as `python -m experiments model` leaves it: {"source": hub name or path of the GGUF file, "revision": commit,
    "asked": revision that was asked for, ...}.
    """
    path, (plain, _, revision) = Path(name), name.partition("@")
    gguf = name.endswith(".gguf")
    folder = BROUGHT / (path.stem if gguf else Path(plain).name)
    if path.is_dir() or not (folder / "config.json").is_file():
        return name
    try:
        said = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        same = said["source"] == (str(path.resolve()) if gguf else plain)
    except (OSError, ValueError, KeyError, TypeError):
        return name
    return str(folder) if same and revision in ("", said.get("revision"), said.get("asked")) else name


def need(package: str, extra: str) -> None:
    """Raise RankspaceError, naming the packages of the extra, unless the package is installed."""
    if find_spec(package) is None:
        raise RankspaceError(f"{package} is not installed: pip install {EXTRAS[extra]}")


def require_model(name: str) -> None:
    """Refuse at once what is neither a model directory nor a hub name (owner/model), nor a GGUF file in models/."""
    name = find_model(name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RankspaceError(f"--model {name} holds no config.json: give the directory of a saved model")
    elif name.endswith(".gguf"):
        what = f"run `python -m experiments model {name}`, then" if path.is_file() else "no such file:"
        raise RankspaceError(f"--model {name}: {what} give the directory {BROUGHT / path.stem}, or this name again")
    elif name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise RankspaceError(f"no model at {name}: give a directory, or a hub name like Qwen/Qwen3-4B")


def load_model(name: str, device: str | None = "cpu", dtype: str = "auto") -> Any:
    """The causal LM in eval mode on the device (None: the GPU when there is one), in `dtype` ("auto": as stored).

    Raises:
        RankspaceError: no transformers, no such model, weights that are damaged or do not fit; the library's first line.
    """
    need("transformers", "hf")
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    avoid_cudnn_attention()
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(**_where(name), dtype=dtype)
        return model.to(device).eval()
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise RankspaceError(
            f"cannot load --model {name} on {device}: {_first_line(error)}{_or_bring(name)}"
        ) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer. RankspaceError as in `load_model`."""
    need("transformers", "hf")
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(**_where(name))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RankspaceError(
            f"cannot load the tokenizer of --model {name}: {_first_line(error)}{_or_bring(name)}"
        ) from error


def _where(name: str) -> dict[str, str]:
    """Arguments of from_pretrained."""
    found = find_model(name)
    plain, at, revision = found.partition("@")
    if Path(found).is_dir() or not at:
        return {"pretrained_model_name_or_path": found}
    return {"pretrained_model_name_or_path": plain, "revision": revision}


def _or_bring(name: str) -> str:
    """What else to do about a hub name that cannot be had; empty for a directory."""
    if Path(find_model(name)).is_dir():
        return ""
    plain = name.partition("@")[0]
    where = f"models/{Path(plain).name}"
    return f"; without a network bring it here with `hf download {plain} --local-dir {where}`, and give that directory"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
