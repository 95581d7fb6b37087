"""From "optimizer step done" to the first token under the new version, on a running vLLM: delta_S against full weights.

    ours    delta_S leaves the device, goes through Redis, is merged in place; prefix cache reset, probe, proof; one token
    full    all adapted weights as they lie in host memory -> load_weights -> prefix cache reset; one token (no queue,
            no probe: what a loop around vLLM would do on one machine)
    kept    the same push as ours while 128 requests are in work, which go on under the new weights

Ours is the generator service's own code from Redis to proof. The first push is listed apart: it reads the checkpoint and
its bases (here random ones, shapes.random_bases). Throughput is that of sampling with log-probs, end of sequence ignored.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis
    import torch

    from common.settings import RefServerSettings
    from common.types import DeltaS
    from services.ref_server.engine import Engine

Modules = list[tuple[str, int]]

PROBE = list(range(2, 34))


def measure(
    folder: Path, device: str, dtype: str, repeats: int, svd_cache: Path, kv_cache_gib: float | None = 20.0,
    prompts: int = 16, samples: int = 8, prompt_tokens: int = 128, new_tokens: int = 1024,
    bases_on: str = "gpu",
) -> dict[str, Any]:  # fmt: skip
    """Seconds and bytes of the kinds of push, and tokens a second; `folder` is a model that `shapes.save` made."""
    import torch

    from bench.gpu import shapes
    from common.settings import RefServerSettings
    from services.ref_server.engine import Engine

    started = time.perf_counter()
    settings = RefServerSettings(
        model=str(folder), dtype=dtype, svd_cache=svd_cache, max_model_len=prompt_tokens + new_tokens,
        max_num_seqs=prompts * samples, gpu_memory_utilization=0.4, kv_cache_gib=kv_cache_gib, replica="bench",
        bases_on=bases_on,
    )  # fmt: skip
    engine = Engine(settings, eos_ids=[])
    found: dict[str, Any] = {"start_s": time.perf_counter() - started}
    modules = _modules(folder)
    deltas = 1e-3 * torch.randn(2 + 2 * repeats, sum(r for _, r in modules), device=device)
    with _redis() as client:
        pusher = _Pusher(client, engine, settings, modules)
        pusher.first_token()
        with shapes.random_bases(device):
            found["first_push_s"] = pusher.push(1, deltas[0])["ready_ms"] / 1e3
        times = [pusher.push(2 + i, deltas[1 + i]) for i in range(repeats)]
        found["ours"] = _median(times) | {"payload_bytes": pusher.payload}
        found["in_place"] = engine.llm.collective_rpc(_in_place)[0]
        found["full"] = _full(engine, pusher, repeats)
        ids = torch.randint(2, 500, (prompts, prompt_tokens)).tolist()
        found |= _throughput(engine, ids, samples, new_tokens)
        found["kept"] = _kept(engine, pusher, ids, samples, min(new_tokens, 256), deltas[1 + repeats :])
    return found | {"modules": len(modules)}


class _Pusher:
    """The trainer's half of a push, and the generator's own code for the other half."""

    def __init__(self, client: redis.Redis, engine: Engine, settings: RefServerSettings, modules: Modules):
        from common.metrics import Metrics
        from common.queue import Queue
        from services.ref_server.served_policy import ServedPolicy

        self.client, self.engine, self.modules, self.payload = client, engine, modules, 0
        self.policy = ServedPolicy(engine, Queue(client, "bench"), settings, Metrics("ref_server"))

    def publish(self, version: int, delta: torch.Tensor) -> None:
        from common import delta_store

        self.payload = delta_store.publish(self.client, _message(version, delta, self.modules))

    def push(self, version: int, delta: torch.Tensor) -> dict[str, float]:
        """Milliseconds since the optimizer step: published, loaded and proven, first token."""
        began = time.perf_counter()
        self.publish(version, delta)
        published = time.perf_counter()
        self.policy.ensure("bench", version)
        ready = time.perf_counter()
        self.first_token()
        marks = {"published_ms": published, "ready_ms": ready, "to_first_token_ms": time.perf_counter()}
        return {name: 1e3 * (at - began) for name, at in marks.items()}

    def first_token(self) -> None:
        from common.types import SamplingPlan

        self.engine.generate([[2, 3, 4]], [SamplingPlan(n=1, temperature=1.0, max_tokens=1, seed=0)])


def _full(engine: Engine, pusher: _Pusher, repeats: int) -> dict[str, float]:
    weights = engine.llm.collective_rpc(_host_copies)[0]
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        engine.llm.collective_rpc(_load_all, args=(weights,))
        engine.llm.reset_prefix_cache()
        ready = time.perf_counter()
        pusher.first_token()
        times.append({"ready_ms": 1e3 * (ready - began), "to_first_token_ms": 1e3 * (time.perf_counter() - began)})
    return _median(times) | {"payload_bytes": sum(t.numel() * t.element_size() for _, t in weights)}


def _throughput(engine: Engine, ids: list[list[int]], samples: int, new_tokens: int) -> dict[str, float]:
    from common.types import SamplingPlan

    began = time.perf_counter()
    plans = [SamplingPlan(n=samples, temperature=1.0, max_tokens=new_tokens, seed=i) for i in range(len(ids))]
    sampled = sum(len(s.token_ids) for group in engine.generate(ids, plans) for s in group)
    return {"sampled_tokens": sampled, "sample_s": time.perf_counter() - began}


def _kept(
    engine: Engine, pusher: _Pusher, ids: list[list[int]], samples: int, new_tokens: int, deltas: torch.Tensor
) -> dict[str, float]:
    """Push every `new_tokens`/(pushes + 1) steps of one batch: from the delta on the device to the next step's tokens."""
    from common.types import SamplingPlan

    due = [len(deltas) and (i + 1) * new_tokens // (len(deltas) + 1) for i in range(len(deltas))]
    steps, times = 0, list[float]()
    waiting: float | None = None

    def between() -> None:
        nonlocal steps, waiting
        steps += 1
        if waiting is not None:
            times.append(time.perf_counter() - waiting)
            waiting = None
        if len(times) < len(due) and steps >= due[len(times)]:
            waiting = time.perf_counter()
            engine.load(_message(1000 + steps, deltas[len(times)], pusher.modules), keep_running=True)

    plans = [SamplingPlan(n=samples, temperature=1.0, max_tokens=new_tokens, seed=i) for i in range(len(ids))]
    sampled = sum(len(s.token_ids) for group in engine.generate(ids, plans, between) for s in group)
    return {"to_next_tokens_ms": 1e3 * statistics.median(times), "pushes": len(times), "sampled_tokens": sampled}


@contextmanager
def _redis() -> Iterator[Any]:
    from common.ports import free_port
    from common.queue import connect
    from experiments.launch.stack import redis_server

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
                   "--dir", folder]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield _connected(connect, f"redis://127.0.0.1:{port}/0")
        finally:
            process.terminate()
            process.wait()


def _connected(connect: Callable[[str], redis.Redis], url: str, patience_s: float = 20.0) -> redis.Redis:
    from common.errors import QueueError

    deadline = time.monotonic() + patience_s
    while True:
        try:
            return connect(url)
        except QueueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _modules(folder: Path) -> Modules:
    from rankspace.targets import hits
    from services.trainer.preflight import weight_shapes

    shapes = {name.removesuffix(".weight"): shape for name, shape in weight_shapes(str(folder)).items()}
    return [(name, min(shape)) for name, shape in shapes.items() if len(shape) == 2 and hits(name)]


def _message(version: int, delta: torch.Tensor, modules: Modules) -> DeltaS:
    from common.types import DeltaS, checksum

    vector = delta.cpu().numpy().astype("<f4").tobytes()
    return DeltaS(
        run_id="bench", version=version, modules=modules, vector=vector, checksum=checksum(vector), probe_ids=PROBE
    )


def _in_place(worker: Any) -> bool:
    return worker.delta_places is not None


def _host_copies(worker: Any) -> list[tuple[str, torch.Tensor]]:
    source = worker.delta_source
    return [(f"{n}.weight", w.cpu()) for (n, _), w in zip(source.modules, source.weights, strict=True)]


def _load_all(worker: Any, weights: list[tuple[str, torch.Tensor]]) -> int:
    return int(worker._delta_put((name, tensor.to(worker.device)) for name, tensor in weights))


def _median(times: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(t[name] for t in times) for name in times[0]}
