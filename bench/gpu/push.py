"""From "optimizer step done" to the first token under the new version, on a running vLLM: delta_S against full weights.

    ours    delta_S as fp32 (payload) -> W0 + U diag(delta) Vh for every module -> load_weights -> prefix cache reset
    full    all adapted weights as they lie in host memory (payload) -> load_weights -> prefix cache reset

Both through the engine that the generator service uses, in one process. The first push is listed apart: it reads the
checkpoint and finds its bases (here random ones, shapes.random_bases). Throughput is that of sampling with log-probs,
end of sequence ignored.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any


def measure(
    folder: Path, device: str, dtype: str, repeats: int, svd_cache: Path, gpu_memory_utilization: float = 0.4,
    prompts: int = 16, samples: int = 8, prompt_tokens: int = 128, new_tokens: int = 1024,
) -> dict[str, Any]:  # fmt: skip
    """Seconds and bytes of both kinds of push, and tokens a second; `folder` is a model that `shapes.save` made."""
    import torch

    from bench.gpu import shapes
    from common.settings import RefServerSettings
    from common.types import SamplingPlan
    from services.ref_server.engine import Engine

    started = time.perf_counter()
    settings = RefServerSettings(
        model=str(folder), dtype=dtype, svd_cache=svd_cache, max_model_len=prompt_tokens + new_tokens,
        max_num_seqs=prompts * samples, gpu_memory_utilization=gpu_memory_utilization,
    )  # fmt: skip
    engine = Engine(settings, eos_ids=[])
    found: dict[str, Any] = {"start_s": time.perf_counter() - started}
    modules = _modules(folder)
    size = sum(r for _, r in modules)
    generator = torch.Generator().manual_seed(0)
    first = SamplingPlan(n=1, temperature=1.0, max_tokens=1, seed=0)
    engine.generate([[2, 3, 4]], [first])

    def push(version: int) -> tuple[float, float]:
        began = time.perf_counter()
        engine.load(_delta(version, torch.randn(size, generator=generator) * 1e-3, modules))
        loaded = time.perf_counter()
        engine.generate([[2, 3, 4]], [first])
        return loaded - began, time.perf_counter() - began

    with shapes.random_bases(device):
        found["first_push_s"] = push(1)[0]
    times = [push(2 + i) for i in range(repeats)]
    found["ours"] = _summary(times, payload=4 * size)
    weights = engine.llm.collective_rpc(_host_copies)[0]
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        engine.llm.collective_rpc(_load_all, args=(weights,))
        engine.llm.reset_prefix_cache()
        loaded = time.perf_counter()
        engine.generate([[2, 3, 4]], [first])
        times.append((loaded - began, time.perf_counter() - began))
    found["full"] = _summary(times, payload=sum(t.numel() * t.element_size() for _, t in weights))
    began = time.perf_counter()
    ids = torch.randint(2, 500, (prompts, prompt_tokens), generator=generator).tolist()
    plan = [SamplingPlan(n=samples, temperature=1.0, max_tokens=new_tokens, seed=i) for i in range(prompts)]
    sampled = sum(len(s.token_ids) for group in engine.generate(ids, plan) for s in group)
    found |= {"sampled_tokens": sampled, "sample_s": time.perf_counter() - began, "modules": len(modules)}
    return found


def _modules(folder: Path) -> list[tuple[str, int]]:
    from rankspace.targets import hits
    from services.trainer.preflight import weight_shapes

    shapes = {name.removesuffix(".weight"): shape for name, shape in weight_shapes(str(folder)).items()}
    return [(name, min(shape)) for name, shape in shapes.items() if len(shape) == 2 and hits(name)]


def _delta(version: int, flat, modules):
    from common.types import DeltaS, checksum

    vector = flat.numpy().astype("<f4").tobytes()
    return DeltaS(
        run_id="bench", version=version, modules=modules, vector=vector, checksum=checksum(vector), probe_ids=[2, 3]
    )


def _host_copies(worker) -> list:
    source = worker.delta_source
    return [(f"{n}.weight", w.cpu()) for (n, _), w in zip(source.modules, source.weights, strict=True)]


def _load_all(worker, weights: list) -> int:
    return worker._delta_put((name, tensor.to(worker.device)) for name, tensor in weights)


def _summary(times: list[tuple[float, float]], payload: int) -> dict[str, float]:
    return {
        "load_ms": 1e3 * statistics.median(t for t, _ in times),
        "to_first_token_ms": 1e3 * statistics.median(t for _, t in times),
        "payload_bytes": payload,
    }
