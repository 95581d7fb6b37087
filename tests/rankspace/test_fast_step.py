"""The fast training step on the CPU: no logits, compiled layers, G summed over micro-batches, merged in place."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu.step import gradient_error
from rankspace import MergeSource, RankspaceError, attach, completion_logprobs, merged_weight
from rankspace.batch import batch_logprobs, pad_batch
from rankspace.compile import compile_layers, eagerly, uncompile_layers
from rankspace.logprobs import linear_logprobs

PROMPTS, COMPLETIONS = [[3, 4, 5], [6], [7, 8]], [[9, 10], [11, 12, 13, 0], [20] * 9]


class Largest(TorchDispatchMode):
    """The most elements any operation put out."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen = max([self.seen, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_gradient_are_those_of_kept_logits_in_float64(temperature):
    torch.manual_seed(0)
    weight, ids = torch.randn(50, 8, dtype=torch.float64), torch.randint(50, (23,))
    one = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    two, pull = one.detach().clone().requires_grad_(), torch.randn(23, dtype=torch.float64)
    logprobs, entropy = linear_logprobs(one, weight, ids, temperature, rows_per_chunk=5)
    want, want_entropy = completion_logprobs(two @ weight.T, ids, temperature)
    (logprobs * pull).sum().backward()
    (want * pull).sum().backward()
    assert torch.allclose(logprobs, want, atol=1e-12) and torch.allclose(entropy, want_entropy, atol=1e-12)
    assert torch.allclose(one.grad, two.grad, atol=1e-12) and not entropy.requires_grad


def test_no_matrix_of_tokens_by_vocabulary_forwards_or_backwards():
    weight, ids = torch.randn(1000, 4), torch.zeros(64, dtype=torch.long)
    hidden = torch.randn(64, 4, requires_grad=True)
    with Largest() as ours:
        linear_logprobs(hidden, weight, ids, rows_per_chunk=8)[0].sum().backward()
    with Largest() as kept:
        completion_logprobs(hidden @ weight.T, ids, rows_per_chunk=8)[0].sum().backward()
    assert ours.seen == 8 * 1000 and kept.seen == 64 * 1000


def test_misuse_of_the_head():
    with pytest.raises(RankspaceError, match="do not fit"):
        linear_logprobs(torch.ones(3, 4), torch.ones(9, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(RankspaceError, match="temperature 0"):
        linear_logprobs(torch.ones(3, 4), torch.ones(9, 4), torch.zeros(3, dtype=torch.long), temperature=0.0)


def backward(model, adapter, parts=1) -> torch.Tensor:
    """d_delta of the sum of log-probs, the rows in `parts` micro-batches."""
    model.zero_grad()
    for i in range(parts):
        batch = pad_batch(PROMPTS[i::parts], COMPLETIONS[i::parts])
        batch_logprobs(model, batch)[0].sum().backward()
    return adapter.fold() if adapter.form == "summed" else torch.cat([p.grad for p in adapter.parameters()])


def noise(adapter, seed: int) -> torch.Tensor:
    return 0.05 * torch.randn(sum(r for _, r in adapter.modules), generator=torch.Generator().manual_seed(seed))


def test_summed_over_micro_batches_is_merged_over_the_batch(make):
    model = make("qwen3")
    adapter = attach(model, form="merged")
    adapter.set_flat(noise(adapter, 1))
    want = backward(model, adapter)
    adapter.use("summed")
    got = backward(model, adapter, parts=3)
    assert ((got - want).norm() / want.norm()).item() < 1e-5
    again = backward(model, adapter, parts=3)  # nothing of the last step is left in G
    assert torch.equal(got, again)
    with pytest.raises(RankspaceError, match="has no gradient: call backward before fold"):
        adapter.fold()
    adapter.use("merged")
    with pytest.raises(RankspaceError, match="fold belongs to the form 'summed'"):
        adapter.fold()


@pytest.mark.parametrize("form", ["merged", "summed"])
def test_compiled_layers_give_the_same_and_are_traced_once(make, form):
    from torch._dynamo.utils import counters

    model = make("qwen3")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    adapter = attach(model, form=form)
    plain = []
    for seed in (1, 2):
        adapter.set_flat(noise(adapter, seed))
        plain.append(backward(model, adapter))
    torch._dynamo.reset()
    counters.clear()
    assert compile_layers(model, adapter, backend="aot_eager") == 2
    for seed, want in zip((1, 2), plain, strict=True):
        adapter.set_flat(noise(adapter, seed))
        got = backward(model, adapter)
        assert ((got - want).norm() / want.norm()).item() < 1e-5
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]  # both layers, both versions
    adapter.set_flat(noise(adapter, 1))
    with eagerly():
        assert ((backward(model, adapter) - plain[0]).norm() / plain[0].norm()).item() < 1e-5
    assert counters["stats"]["unique_graphs"] == 1
    uncompile_layers(model)
    torch._dynamo.reset()


def test_a_model_without_layers_is_refused(make):
    with pytest.raises(RankspaceError, match="no decoder layers to compile"):
        compile_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("shape", [(96, 96), (192, 64), (64, 192)])
def test_the_merged_gradient_errs_no_more_than_the_plans_form_in_bf16(shape):
    error = gradient_error(*shape, tokens=4096, device="cpu", dtype="bfloat16")
    assert error["merged"] < error["factored"] < 1e-2


def test_merged_in_place_is_merged_weight(make):
    model = make("llama")
    adapter = attach(model)
    weights = dict(model.state_dict())
    source = MergeSource.load(weights.items(), adapter.modules)
    flat = noise(adapter, 3)
    flat[: adapter.modules[0][1]] = 0.0
    places = [torch.full_like(w, torch.nan) for w in source.weights]
    source.merge_into(flat, places)
    assert torch.equal(places[0], source.weights[0])
    for place, (name, merged) in zip(places, source.merged(flat), strict=True):
        assert torch.equal(place, merged), name
    U, Vh = source.bases[1]
    delta = torch.split(flat, [r for _, r in adapter.modules])[1]
    assert torch.equal(places[1], merged_weight(source.weights[1], U, delta, Vh))
    flat[0] = torch.inf
    with pytest.raises(RankspaceError, match="NaN or Inf"):
        source.merge_into(flat, places)
