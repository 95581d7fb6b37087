"""Methods that vLLM mixes into each of its workers: hold W0, U and Vh, and put a delta_S in place.

Three ways in, the first that applies:
    GPU, every module found whole inside one of vLLM's weights   merged straight into that memory (CUDA graphs keep it)
    GPU otherwise (tensor-parallel: the loaders cut for each)    merged, then vLLM's own load_weights
    CPU (weights are packed when loaded)                         merged, then vLLM's layer-wise reload
A module counts as found when the block of rows where it should lie holds W0, value by value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.types import checksum

if TYPE_CHECKING:
    import torch

    from rankspace.merge import MergeSource
    from rankspace.targets import Kind

    Named = tuple[str, torch.Tensor]


class DeltaWorker:
    """Mixed into vLLM's worker through `worker_extension_cls`; names begin with delta_ so that they hide nothing."""

    # of vLLM's worker
    device: torch.device
    model_runner: Any
    reload_weights: Callable[..., None]
    # ours
    delta_source: MergeSource | None
    delta_places: list[torch.Tensor] | None

    def delta_prepare(self, model: str, svd_cache: str, bases_on: str) -> None:
        """Remember where the base weights and the SVD cache are, and where ("gpu" or "host") W0, U and Vh are to be kept.
        They are read at the first push."""
        self.delta_model, self.delta_cache, self.delta_bases_on = Path(model), Path(svd_cache), bases_on
        self.delta_source = self.delta_places = None
        self.delta_keys: dict[str, str] = {}

    def delta_load(self, vector: bytes, modules: list[tuple[str, int]], kind: Kind = "antipasto") -> dict[str, Any]:
        """Recompute W0 + U diag(delta_S) Vh and load it. `vector`: little-endian fp32, modules [[name, size], ...].

        Returns {"checksum": of the vector this worker holds, "seconds", "modules": how many weights were loaded}.
        """
        import numpy as np
        import torch

        from rankspace.weights import plain

        started = time.perf_counter()
        modules = [(plain(name), int(r)) for name, r in modules]
        source = self.delta_source
        if source is None or (source.modules, source.kind) != (modules, kind):
            source = self.delta_source = self._delta_bases(modules, kind)
            self.delta_places = self._delta_find_places(source)
        flat = torch.from_numpy(np.frombuffer(bytes(vector), dtype="<f4").copy())
        if self.delta_places is None:
            loaded = self._delta_put(source.merged(flat))
        else:
            source.merge_into(flat, self.delta_places)
            # the time told, and the proof, are of weights that are there
            torch.cuda.synchronize()
            loaded = len(self.delta_places)
        # computed anew from what was loaded: a copy of the message would prove nothing
        held = flat.numpy().astype("<f4").tobytes()
        return {"checksum": checksum(held), "seconds": time.perf_counter() - started, "modules": loaded}

    def _delta_bases(self, modules: list[tuple[str, int]], kind: Kind) -> MergeSource:
        from rankspace.merge import MergeSource
        from rankspace.progress import lines

        source = MergeSource.load(self._delta_checkpoint(), modules, self.delta_cache, lines("SVD"), kind)
        if self.device.type != "cuda":
            return source
        dtype = self.model_runner.model_config.dtype
        return source.on_host(dtype) if self.delta_bases_on == "host" else source.to(self.device, dtype)

    def _delta_find_places(self, source: MergeSource) -> list[torch.Tensor] | None:
        """Where each module's weight lies in vLLM's own parameters, or None when not all of them are there whole."""
        if self.device.type != "cuda":
            return None
        names = [name for name, _ in source.modules]
        # the base weights first: places are told by W0, and an earlier delta_S may lie there
        self._delta_put((f"{name}.weight", weight) for name, weight in zip(names, source.weights, strict=True))
        return find_places(self.model_runner.get_model(), names, source.weights)

    def _delta_checkpoint(self) -> Iterator[Named]:
        """(plain name, tensor) pairs of the base checkpoint, in the dtype the engine runs in; notes their own names, by
        which vLLM wants them back."""
        from safetensors import safe_open

        from rankspace.weights import plain

        dtype = self.model_runner.model_config.dtype
        for path in sorted(self.delta_model.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
                    self.delta_keys[plain(name)] = name
                    yield plain(name), file.get_tensor(name).to(dtype)

    def _delta_put(self, weights: Iterable[Named]) -> int:
        """Overwrite the weights; returns how many were given."""
        import torch

        model, count = self.model_runner.get_model(), 0

        def counted() -> Iterator[Named]:
            nonlocal count
            for name, weight in weights:
                count += 1
                yield self.delta_keys[name], weight

        with torch.no_grad():
            if self.device.type == "cpu":  # packed at load time: go through vLLM's layer-wise reload
                self.reload_weights(weights_iterator=counted(), is_checkpoint_format=True)
            else:
                model.load_weights(counted())
                torch.cuda.synchronize()
        return count


def find_places(model: torch.nn.Module, names: list[str], weights: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """Views of `model`'s parameters that hold exactly `weights` ([out, in] each), also inside fused ones (q|k|v, gate|up).

    model: a vLLM model; `packed_modules_mapping` names the parts of its fused weights in order. None when one is not
    there whole and unchanged: cut for tensor parallelism, padded, packed or named otherwise.
    """
    import torch

    from rankspace.weights import plain

    parameters = {plain(name): parameter for name, parameter in model.named_parameters()}
    rows = {name: weight.shape[0] for name, weight in zip(names, weights, strict=True)}
    packed = {
        part: (whole, parts) for whole, parts in getattr(model, "packed_modules_mapping", {}).items() for part in parts
    }
    places = []
    for name, weight in zip(names, weights, strict=True):
        prefix, _, leaf = name.rpartition(".")
        whole, parts = packed.get(leaf, (leaf, [leaf]))
        before = [f"{prefix}.{part}" for part in parts[: parts.index(leaf)]]
        parameter = parameters.get(f"{prefix}.{whole}.weight")
        if parameter is None or any(part not in rows for part in before):
            return None
        start = sum(rows[part] for part in before)
        place = parameter.data[start : start + weight.shape[0]]
        if (
            place.shape != weight.shape
            or place.dtype != weight.dtype
            or not torch.equal(place, weight.to(place.device))
        ):
            return None
        places.append(place)
    return places
