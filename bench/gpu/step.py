"""One optimizer step on B sequences of T tokens, as tokens a second. Baselines, then ours:

    frozen     nothing trains; the gradient still flows through every layer      the floor
    lora       rank 32 on the same matrices, through peft                        the usual alternative
    full       all weights, AdamW
    factored   y = W0 x + U(delta ∘ Vh x)                                        the plan's forward
    merged     one merged weight, d_delta = rowsum((UᵀG) ∘ Vh) for each micro-batch, merged anew each step
    summed     the same with G = gᵀx added up over the micro-batches, d_delta once a step
    ... compiled   the same with each decoder layer one compiled graph, the passes over the logits fused

The baselines run as peft and Hugging Face have them: selective log-softmax on kept logits. Ours take the log-probs a
chunk of logits at a time. `frozen compiled` is the floor with everything that ours has. All forms checkpoint
activations or keep them, as asked; adapter forms include the projection and the step of AdamW. Peak memory is what
torch had allocated at most, model included. The bases are random orthonormal ones (shapes.random_bases).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rankspace.adapter import Adapter, Form
    from rankspace.batch import Batch
    from rankspace.projection import Layout

LORA_RANK = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(
    shape: str, device: str, batch: int, length: int, steps: int, warmup: int = 2, dtype: str = "bfloat16",
    checkpointing: bool = True, compiled: bool = True, limit_s: float = 600.0,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:  # fmt: skip
    """{"tokens_per_s": {form: ...}, "peak_gib", "first_step_s", "failed", "projection_ms", "modules", ...}.

    A form that fails is named in `failed` and the others go on; none is begun after `limit_s` seconds. `keep` is called
    with what there is after each form.
    """
    import rankspace
    from bench.gpu import shapes
    from rankspace.gpu import avoid_cudnn_attention

    avoid_cudnn_attention()
    record = _Record(device, batch * length, warmup, steps, limit_s, keep)
    model = shapes.build(shape, device, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    rows = _batch(model.config.vocab_size, batch, length, device)
    record("frozen", _frozen(model, rows))
    record("lora", _lora(model, rows))
    record("full", _full(model, rows))
    with shapes.random_bases(device):
        adapter = rankspace.attach(model, form="factored")
    vector = rankspace.random_direction(adapter.modules, 0).vectors.to(device)
    layout = rankspace.projection.Layout.of(adapter.modules)
    record.found |= {
        "checkpointing": checkpointing, "tokens": batch * length, "modules": len(adapter.modules),
        "delta_numbers": layout.size, "projection_ms": _projection_ms(vector, layout, device),
    }  # fmt: skip
    ours = partial(_adapted, model, rows, adapter, vector)
    record("factored", ours("factored"))
    record("merged", ours("merged"))
    record("summed", ours("summed"))
    if compiled:
        record("merged compiled", ours("merged", compiled=True))
        record("frozen compiled", _frozen_compiled(model, rows, adapter))
        record("merged compiled x4", ours("merged", 4, compiled=True), 4)
        record("summed compiled x4", ours("summed", 4, compiled=True), 4)
    return record.found


class _Record:
    """Measures one form after another into `found`."""

    def __init__(
        self, device: str, tokens: int, warmup: int, steps: int, limit_s: float, keep: Callable[[dict[str, Any]], None]
    ):
        self.device, self.tokens, self.warmup, self.steps, self.keep = device, tokens, warmup, steps, keep
        self.limit_s, self.deadline = limit_s, time.perf_counter() + limit_s
        self.found: dict[str, Any] = {n: {} for n in ("tokens_per_s", "peak_gib", "first_step_s", "failed")}

    def __call__(self, form: str, variant: AbstractContextManager[Callable[[], Any]], micro_batches: int = 1) -> None:
        if time.perf_counter() > self.deadline:
            self.found["failed"][form] = f"not begun: {self.limit_s:.0f} s were over"
            return
        _free(self.device)
        try:
            with variant as one:
                first = _time(one, self.device, 0, 1)
                seconds = _time(one, self.device, self.warmup - 1, self.steps)
        except Exception as error:  # the next form may well run
            self.found["failed"][form] = f"{type(error).__name__}: {error}"[:600]
            print(f"{form:22} failed: {self.found['failed'][form]}", flush=True)
            return
        speed, peak = micro_batches * self.tokens / seconds, _peak(self.device)
        for name, value in (("tokens_per_s", speed), ("peak_gib", peak), ("first_step_s", first)):
            self.found[name][form] = value
        print(f"{form:22} {speed:10.0f} tok/s  {peak:6.1f} GiB", flush=True)
        self.keep(self.found)


def _projection_ms(vector: torch.Tensor, layout: Layout, device: str) -> float:
    import torch

    from rankspace.projection import project

    flat = torch.randn(layout.size, device=device)
    return 1e3 * _time(lambda: project(flat, vector, layout, "one_sided"), device, 3, 20)


def gradient_error(
    out: int, inner: int, tokens: int, device: str, dtype: str = "bfloat16", micro_batches: int = 4
) -> dict[str, float]:
    """‖d − d64‖/‖d64‖ of one module's d_delta in each form, against float64 on the same inputs and bases."""
    import torch

    from rankspace.adapter import attach
    from rankspace.gradient import delta_gradient

    torch.manual_seed(0)
    low = getattr(torch, dtype)
    holder = torch.nn.Sequential()
    holder.q_proj = torch.nn.Linear(inner, out, bias=False, device=device, dtype=low)
    adapter = attach(holder, ["q_proj"], form="factored")
    linear = holder.q_proj
    x = torch.randn(tokens, inner, device=device, dtype=low)
    g = torch.randn(tokens, out, device=device, dtype=low)
    U, Vh = linear.get_buffer("_rankspace_U"), linear.get_buffer("_rankspace_Vh")
    exact = torch.zeros(Vh.shape[0], dtype=torch.float64, device=device)
    for a in range(0, tokens, 1024):
        exact += ((g[a : a + 1024].double() @ U.double()) * (x[a : a + 1024].double() @ Vh.double().T)).sum(dim=0)
    torch.autograd.backward([linear(x)], [g])
    got = {"factored": _gradient(adapter.parameters()[0]), "merged": delta_gradient(x, g, U, Vh)}
    adapter.use("summed")
    for a in range(0, tokens, tokens // micro_batches):
        piece = slice(a, a + tokens // micro_batches)
        torch.autograd.backward([linear(x[piece])], [g[piece]])
    got[f"summed over {micro_batches}"] = adapter.fold()
    return {form: float(torch.dist(d.double(), exact) / torch.linalg.vector_norm(exact)) for form, d in got.items()}


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "backward has run"
    return parameter.grad


def _batch(vocab: int, batch: int, length: int, device: str) -> Batch:
    import torch

    from rankspace.batch import pad_batch

    ids = torch.randint(2, vocab, (batch, length), generator=torch.Generator().manual_seed(0)).tolist()
    return pad_batch([row[:1] for row in ids], [row[1:] for row in ids], device)


def _loss(model: PreTrainedModel, rows: Batch, compiled: bool = False) -> torch.Tensor:
    from rankspace.batch import batch_logprobs

    return -batch_logprobs(model, rows, compiled=compiled)[0].sum() / rows.lengths.sum()


def _plain_loss(model: PreTrainedModel, rows: Batch) -> torch.Tensor:
    """The same number with the logits of all completion tokens kept for the backward pass."""
    from rankspace.logprobs import completion_logprobs

    hidden = model.get_decoder()(input_ids=rows.input_ids, use_cache=False)[0]
    logits = model.get_output_embeddings()(hidden[rows.rows, rows.columns])
    return -completion_logprobs(logits, rows.token_ids[rows.mask])[0].sum() / rows.lengths.sum()


@contextmanager
def _frozen(model: PreTrainedModel, rows: Batch) -> Iterator[Callable[[], None]]:
    model.requires_grad_(False)
    with _gradient_to_the_input(model):
        yield lambda: _plain_loss(model, rows).backward()


@contextmanager
def _frozen_compiled(model: PreTrainedModel, rows: Batch, adapter: Adapter) -> Iterator[Callable[[], None]]:
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    try:
        with _gradient_to_the_input(model), adapter.disabled(), _compiled(model, adapter):
            yield lambda: _loss(model, rows, compiled=True).backward()
    finally:
        for parameter in adapter.parameters():
            parameter.requires_grad_(True)


@contextmanager
def _gradient_to_the_input(model: PreTrainedModel) -> Iterator[None]:
    model.enable_input_require_grads()
    try:
        yield
    finally:
        model.disable_input_require_grads()


@contextmanager
def _compiled(model: PreTrainedModel, adapter: Adapter) -> Iterator[None]:
    from rankspace.compile import compile_layers, uncompile_layers

    compile_layers(model, adapter)
    try:
        yield
    finally:
        uncompile_layers(model)


@contextmanager
def _lora(model: PreTrainedModel, rows: Batch) -> Iterator[Callable[[], None]]:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=TARGETS))
    wrapped.train()
    try:
        yield _trained(model, rows, [p for p in wrapped.parameters() if p.requires_grad], lr=1e-5)
    finally:
        wrapped.unload()


@contextmanager
def _full(model: PreTrainedModel, rows: Batch) -> Iterator[Callable[[], None]]:
    yield _trained(model, rows, list(model.parameters()), lr=1e-7)
    model.zero_grad(set_to_none=True)


@contextmanager
def _adapted(
    model: PreTrainedModel,
    rows: Batch,
    adapter: Adapter,
    vector: torch.Tensor,
    form: Form,
    micro_batches: int = 1,
    compiled: bool = False,
) -> Iterator[Callable[[], None]]:
    import torch

    from rankspace.merge import split_flat
    from rankspace.projection import Layout, project

    adapter.use(form)
    layout = Layout.of(adapter.modules)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-5)
    loss = _plain_loss if form == "factored" else partial(_loss, compiled=compiled)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(micro_batches):
            loss(model, rows).backward()
        grads = adapter.fold() if form == "summed" else torch.cat([_gradient(p) for p in adapter.parameters()])
        projected, _ = project(grads, vector, layout, "one_sided")
        for parameter, part in zip(adapter.parameters(), split_flat(projected, adapter.modules), strict=True):
            parameter.grad = part
        optimizer.step()
        adapter.refresh()

    try:
        with _compiled(model, adapter) if compiled else nullcontext():
            yield one
    finally:
        adapter.use("factored")  # lets go of merged weights and what they accumulated


def _trained(
    model: PreTrainedModel, rows: Batch, parameters: list[torch.nn.Parameter], lr: float
) -> Callable[[], None]:
    import torch

    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        _plain_loss(model, rows).backward()
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
