"""One optimizer step on B sequences of T tokens, as tokens a second: frozen weights, LoRA, the plan's form, full, ours.

    frozen     nothing trains; the gradient still flows through every layer      the floor
    lora       rank 32 on the same matrices, through peft                        the usual alternative
    full       all weights, AdamW
    factored   y = W0 x + U(delta ∘ Vh x), the plan's forward
    merged     one merged weight, d_delta = rowsum((UᵀG) ∘ Vh), merged anew each step

All of them score every token with the same selective log-softmax, and checkpoint activations or not, as asked. The two
adapter forms include the projection of the gradient and the step of AdamW. Peak memory is what torch had allocated at
most, model included. The bases are random orthonormal ones (shapes.random_bases).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LORA_RANK = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(
    shape: str, device: str, batch: int, length: int, steps: int, warmup: int = 2, dtype: str = "bfloat16",
    checkpointing: bool = True, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """{"tokens_per_s": {form: ...}, "peak_gib": {...}, "projection_ms", "modules", "delta_numbers"}."""
    import torch

    import rankspace
    from bench.gpu import shapes

    model = shapes.build(shape, device, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    tokens = batch * length
    rows = _batch(model.config.vocab_size, batch, length, device)
    found: dict[str, Any] = {"tokens_per_s": {}, "peak_gib": {}, "checkpointing": checkpointing}

    def record(form: str, variant) -> None:
        _free(device)
        with variant as one:
            seconds = _time(one, device, warmup, steps)
        found["tokens_per_s"][form] = tokens / seconds
        found["peak_gib"][form] = _peak(device)
        say(f"{form:10} {tokens / seconds:10.0f} tok/s  {found['peak_gib'][form]:6.1f} GiB")

    record("frozen", _frozen(model, rows))
    record("lora", _lora(model, rows))
    record("full", _full(model, rows))
    with shapes.random_bases(device):
        adapter = rankspace.attach(model, form="factored")
    vector = rankspace.random_direction(adapter.modules, 0).vectors.to(device)
    for form in ("factored", "merged"):
        record(form, _adapted(model, rows, adapter, form, vector))
    layout = rankspace.projection.Layout.of(adapter.modules)
    flat = torch.randn(layout.size, device=device)
    project = lambda: rankspace.projection.project(flat, vector, layout, "one_sided")  # noqa: E731
    found["projection_ms"] = 1e3 * _time(project, device, 3, 20)
    found |= {"modules": len(adapter.modules), "delta_numbers": layout.size, "tokens": tokens}
    return found


def gradient_error(out: int, inner: int, tokens: int, device: str, dtype: str = "bfloat16") -> dict[str, float]:
    """‖d − d64‖/‖d64‖ of one module's d_delta, both forms, against float64 on the same inputs."""
    import torch

    from rankspace.adapter import attach, delta_gradient

    torch.manual_seed(0)
    low = getattr(torch, dtype)
    holder = torch.nn.Sequential()
    holder.q_proj = torch.nn.Linear(inner, out, bias=False, device=device, dtype=low)
    adapter = attach(holder, ["q_proj"], form="factored")
    linear = holder.q_proj
    x = torch.randn(tokens, inner, device=device, dtype=low)
    g = torch.randn(tokens, out, device=device, dtype=low)
    U, Vh = linear._rankspace_U, linear._rankspace_Vh
    exact = torch.zeros(Vh.shape[0], dtype=torch.float64, device=device)
    for a in range(0, tokens, 1024):
        exact += ((g[a : a + 1024].double() @ U.double()) * (x[a : a + 1024].double() @ Vh.double().T)).sum(dim=0)
    linear(x).backward(g)
    factored = adapter.parameters()[0].grad
    merged = delta_gradient(x, g, U, Vh)
    error = lambda d: float((d.double() - exact).norm() / exact.norm())  # noqa: E731
    return {"factored": error(factored), "merged": error(merged)}


def _batch(vocab: int, batch: int, length: int, device: str):
    import torch

    from rankspace.batch import pad_batch

    ids = torch.randint(2, vocab, (batch, length), generator=torch.Generator().manual_seed(0)).tolist()
    return pad_batch([row[:1] for row in ids], [row[1:] for row in ids], device)


def _loss(model, rows):
    from rankspace.batch import batch_logprobs

    return -batch_logprobs(model, rows)[0].sum() / rows.lengths.sum()


@contextmanager
def _frozen(model, rows) -> Iterator[Callable[[], None]]:
    model.requires_grad_(False)
    model.enable_input_require_grads()
    yield lambda: _loss(model, rows).backward()
    model.disable_input_require_grads()


@contextmanager
def _lora(model, rows) -> Iterator[Callable[[], None]]:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=TARGETS))
    wrapped.train()
    yield _trained(model, rows, [p for p in wrapped.parameters() if p.requires_grad], lr=1e-5)
    wrapped.unload()


@contextmanager
def _full(model, rows) -> Iterator[Callable[[], None]]:
    yield _trained(model, rows, list(model.parameters()), lr=1e-7)
    model.zero_grad(set_to_none=True)


@contextmanager
def _adapted(model, rows, adapter, form: str, vector) -> Iterator[Callable[[], None]]:
    import torch

    from rankspace.merge import split_flat
    from rankspace.projection import Layout, project

    adapter.use(form)
    layout = Layout.of(adapter.modules)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-5)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(model, rows).backward()
        grads = torch.cat([p.grad for p in adapter.parameters()])
        projected, _ = project(grads, vector, layout, "one_sided")
        for parameter, part in zip(adapter.parameters(), split_flat(projected, adapter.modules), strict=True):
            parameter.grad = part
        optimizer.step()
        adapter.refresh()

    yield one


def _trained(model, rows, parameters: list, lr: float) -> Callable[[], None]:
    import torch

    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(model, rows).backward()
        optimizer.step()

    return one


def _time(one: Callable[[], Any], device: str, warmup: int, steps: int) -> float:
    """Median seconds of one call, after `warmup` calls that do not count."""
    times = []
    for i in range(warmup + steps):
        _sync(device)
        started = time.perf_counter()
        one()
        _sync(device)
        if i >= warmup:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _sync(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0


def _free(device: str) -> None:
    """Forget what earlier forms left, and start the peak anew."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
