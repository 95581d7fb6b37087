"""Hugging Face models and tokenizers for the command line: every refusal is one line, and none asks the network in vain."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import RankspaceError
from .gpu import avoid_cudnn_attention

# what an extra of pyproject.toml brings, by name: the line works from any directory and any index
EXTRAS = {"hf": "transformers jinja2 rich", "plot": "matplotlib", "hub": "huggingface_hub"}


def need(package: str, extra: str) -> None:
    """Raise RankspaceError, naming the packages of the extra, unless the package is installed."""
    if find_spec(package) is None:
        raise RankspaceError(f"{package} is not installed: pip install {EXTRAS[extra]}")


def require_model(name: str) -> None:
    """Refuse at once what is neither a model directory nor a hub name (owner/model)."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RankspaceError(f"--model {name} holds no config.json: give the directory of a saved model")
    elif name.endswith(".gguf") or name.count("/") != 1 or name.startswith(("/", ".", "~")):
        how = "; a GGUF file becomes one with `python -m experiments model`" if name.endswith(".gguf") else ""
        raise RankspaceError(f"no model at {name}: give a directory, or a hub name like Qwen/Qwen3-4B{how}")


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
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        return model.to(device).eval()
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise RankspaceError(f"cannot load --model {name} on {device}: {_first_line(error)}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer. RankspaceError as in `load_model`."""
    need("transformers", "hf")
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RankspaceError(f"cannot load the tokenizer of --model {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
