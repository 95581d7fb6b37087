"""The tensors of a model folder by their headers alone, and the names that checkpoint and model have for the same one.

A published checkpoint of a model with a vision tower calls the weights of its language model
    model.language_model.layers.0.mlp.up_proj.weight   or   language_model.model.layers.0.mlp.up_proj.weight
where the causal LM that transformers makes of it may say model.layers.0.mlp.up_proj.weight. `plain` makes them one; that it
agrees with transformers' own mapping is tested on tiny checkpoints saved in the published form.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import RankspaceError

_WRAPPED = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")


def plain(name: str) -> str:
    """The name of a weight or module without the wrapping of a larger model around its language model."""
    return _WRAPPED.sub("model.", name)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint -> shape of every tensor in the folder's *.safetensors.

    Raises:
        RankspaceError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            # numpy, because torch is not loaded yet; only headers are read
            with safe_open(path, framework="np") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise RankspaceError(f"{path} is damaged ({error}); fetch it again") from None
    return found


def plain_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """As `shapes`, under the names that the loaded model has."""
    return {plain(name): shape for name, shape in shapes(folder).items()}
