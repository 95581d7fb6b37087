"""Merging by hand, bit identity at zero, and slices of fused or sharded weights."""

import pytest
import torch

from rankspace import MergeSource, RankspaceError, merged_weight, split_flat
from rankspace.svd_cache import compute_svd


def test_by_hand():
    # U = Vh = identity: delta adds to the diagonal
    W = merged_weight(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.eye(2), torch.tensor([10.0, -1.0]), torch.eye(2))
    assert W.tolist() == [[11.0, 2.0], [3.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_bit_identical_at_zero(dtype):
    W0 = torch.randn(5, 4).to(dtype)
    W0[0, 0] = -0.0
    U, _, Vh = compute_svd(W0)
    for zero in (torch.zeros(4), -torch.zeros(4)):
        W = merged_weight(W0, U, zero, Vh)
        assert W.dtype == dtype and W.data_ptr() != W0.data_ptr()
        assert torch.equal(W.view(torch.uint8), W0.view(torch.uint8))  # bits: -0.0 stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_once_from_fp32(dtype):
    torch.manual_seed(0)
    W0, delta = torch.randn(6, 9).to(dtype), torch.randn(6)
    U, _, Vh = compute_svd(W0)
    exact = W0.double() + (U.double() * delta.double()) @ Vh.double()
    W = merged_weight(W0, U, delta, Vh)
    assert W.dtype == dtype
    assert (W.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_delta_of_minus_s_takes_the_matrix_away():
    W0 = torch.randn(7, 4)
    U, S, Vh = compute_svd(W0)
    assert merged_weight(W0, U, -S, Vh).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_slices_of_rows_and_columns(shape):
    W0 = torch.randn(shape)
    U, _, Vh = compute_svd(W0)
    delta = torch.randn(6)
    whole = merged_weight(W0, U, delta, Vh)
    assert torch.allclose(merged_weight(W0[2:5], U[2:5], delta, Vh), whole[2:5], atol=1e-6)
    assert torch.allclose(merged_weight(W0[:, 1:4], U, delta, Vh[:, 1:4]), whole[:, 1:4], atol=1e-6)


def test_a_fused_qkv_is_its_parts_stacked():
    modules = [("l.q_proj", 4), ("l.k_proj", 2), ("l.v_proj", 2)]
    weights = {f"{name}.weight": torch.randn(r if r == 2 else 6, 4) for name, r in modules} | {
        "l.norm.weight": torch.ones(4)
    }
    source = MergeSource.load(weights.items(), modules)
    fused = torch.cat([weights[f"{name}.weight"] for name, _ in modules])
    zero = dict(source.merged(torch.zeros(8)))
    assert list(zero) == ["l.q_proj.weight", "l.k_proj.weight", "l.v_proj.weight"]
    assert torch.equal(torch.cat(list(zero.values())), fused)
    flat = torch.randn(8)
    moved = torch.cat([w for _, w in source.merged(flat)])
    U, _, Vh = compute_svd(weights["l.k_proj.weight"])
    assert torch.allclose(moved[6:8], merged_weight(fused[6:8], U, flat[4:6], Vh), atol=1e-6)
    again = torch.cat([w for _, w in source.merged(torch.zeros(8))])
    assert torch.equal(again, fused)  # always from W0: no trace of the delta before


@pytest.mark.parametrize("keep", ["to", "on_host"])
def test_places_are_overwritten_from_wherever_the_bases_are_kept(keep):
    torch.manual_seed(0)
    weights = {"a.q_proj": torch.randn(3, 5), "a.o_proj": torch.randn(5, 5)}
    modules = [("a.q_proj", 3), ("a.o_proj", 5)]
    source = MergeSource.load(((f"{n}.weight", w) for n, w in weights.items()), modules)
    kept = source.on_host(torch.float32) if keep == "on_host" else source.to("cpu", torch.float32)
    flat, places = torch.randn(8), [torch.zeros(3, 5), torch.zeros(5, 5)]
    kept.merge_into(flat, places)
    for place, (_, merged) in zip(places, source.merged(flat), strict=True):
        assert torch.allclose(place, merged, atol=1e-6)
    kept.merge_into(torch.zeros(8), places)
    assert all(torch.equal(p, w) for p, w in zip(places, weights.values(), strict=True)), "zero gives W0, bit for bit"
    assert source.on_host(torch.bfloat16).weights[0].dtype == torch.bfloat16


def test_progress_and_order_follow_the_modules():
    weights = {"b.weight": torch.randn(3, 3), "a.weight": torch.randn(2, 5)}
    seen = []
    source = MergeSource.load(weights.items(), [("a", 2), ("b", 3)], None, lambda *x: seen.append(x))
    assert seen == [(1, 2, "a"), (2, 2, "b")]
    assert [n for n, _ in source.merged(torch.zeros(5))] == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: merged_weight(torch.ones(2, 2), torch.eye(2), torch.tensor([0.0, torch.nan]), torch.eye(2)),
            "NaN or Inf",
        ),
        (lambda: merged_weight(torch.ones(2, 3), torch.eye(2), torch.ones(2), torch.eye(2)), "do not fit"),
        (lambda: split_flat(torch.zeros(4), [("a", 3)]), r"the modules need \[3\]"),
        (lambda: MergeSource.load([], [("a", 3)]), "no weight a.weight in the checkpoint"),
        (
            lambda: MergeSource.load([("a.weight", torch.ones(2, 2))], [("a", 3)]),
            "a takes 2 numbers, the adapter says 3",
        ),
    ],
)
def test_misuse(call, message):
    with pytest.raises(RankspaceError, match=message):
        call()
