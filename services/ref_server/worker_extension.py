"""Methods that vLLM mixes into each of its workers: hold W0, U and Vh, and put a delta_S in place.

Covers: tensor-parallel workers (vLLM's own loaders cut the full weight for each), CUDA-graph engines (tensors are
overwritten in place), CPU engines (which pack weights and must reload layer by layer).
"""

from __future__ import annotations

import time
from pathlib import Path

from common.types import checksum


class DeltaWorker:
    """Mixed into vLLM's worker through `worker_extension_cls`; names begin with delta_ so that they hide nothing."""

    def delta_prepare(self, model: str, svd_cache: str) -> None:
        """Remember where the base weights and the SVD cache are. Bases are read at the first push."""
        self.delta_model, self.delta_cache, self.delta_source = Path(model), Path(svd_cache), None

    def delta_load(self, vector: bytes, modules: list) -> dict:
        """Recompute W0 + U diag(delta_S) Vh and load it. `vector`: little-endian fp32, modules [[name, r], ...].

        Returns {"checksum": of the vector this worker holds, "seconds", "modules": how many weights were loaded}.
        """
        import numpy as np
        import torch

        started = time.perf_counter()
        modules = [(name, int(r)) for name, r in modules]
        if self.delta_source is None or self.delta_source.modules != modules:
            self.delta_source = self._delta_bases(modules)
        flat = torch.from_numpy(np.frombuffer(bytes(vector), dtype="<f4").copy())
        loaded = self._delta_put(self.delta_source.merged(flat))
        held = flat.numpy().astype("<f4").tobytes()
        return {"checksum": checksum(held), "seconds": time.perf_counter() - started, "modules": loaded}

    def _delta_bases(self, modules: list[tuple[str, int]]):
        from rankspace.merge import MergeSource

        source = MergeSource.load(self._delta_checkpoint(), modules, self.delta_cache)
        if self.device.type != "cuda":
            return source
        dtype = self.model_runner.model_config.dtype
        weights = [w.to(self.device, dtype) for w in source.weights]
        bases = [(u.to(self.device), vh.to(self.device)) for u, vh in source.bases]
        return MergeSource(source.modules, weights, bases)

    def _delta_checkpoint(self):
        """(name, tensor) pairs of the base checkpoint, in the dtype the engine runs in."""
        from safetensors import safe_open

        dtype = self.model_runner.model_config.dtype
        for path in sorted(self.delta_model.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
                    yield name, file.get_tensor(name).to(dtype)

    def _delta_put(self, weights) -> int:
        """Overwrite the weights; returns how many were given."""
        import torch

        model, count = self.model_runner.get_model(), 0

        def counted():
            nonlocal count
            for pair in weights:
                count += 1
                yield pair

        with torch.no_grad():
            if self.device.type == "cpu":  # packed at load time: go through vLLM's layer-wise reload
                self.reload_weights(weights_iterator=counted(), is_checkpoint_format=True)
            else:
                model.load_weights(counted())
                torch.cuda.synchronize()
        return count
