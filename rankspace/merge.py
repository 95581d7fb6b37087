"""Weights with the adapter folded in, for an engine that knows nothing of adapters.

    W(delta) = W0 + U · diag(delta) · Vh          W(0) is W0, bit for bit

The sum is made in fp32 and rounded once to the dtype of W0. Always start from W0: adding the difference of two deltas
to already merged weights lets rounding errors pile up.

A fused or sharded weight needs no formula of its own. Rows of W are rows of U, columns of W are columns of Vh:
    W[a:b, :]  = merged_weight(W0[a:b], U[a:b], delta, Vh)
    W[:, a:b]  = merged_weight(W0[:, a:b], U, delta, Vh[:, a:b])
and engines that stack q|k|v or gate|up into one matrix accept the unfused names through `model.load_weights`.

Source: the additive form of AntiPaSTO's delta_S on a frozen SVD basis; Meng et al. 2024 (PiSSA) for the basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import RankspaceError
from .pissa import factors, left
from .svd_cache import Progress, svds
from .targets import Kind, delta_size


def merged_weight(W0: Tensor, U: Tensor | None, delta: Tensor, Vh: Tensor) -> Tensor:
    """W0 + U·diag(delta)·Vh in the dtype and on the device of W0. Without U: W0 + delta·Vh, delta as [out, k] (pissa.py).

    Args:
        W0: [out, in], any floating dtype. Also a block of rows or columns, with the matching block of U or Vh.
        U: [out, r], delta: [r], Vh: [r, in]; see `merge_into` for the precision.

    Returns:
        [out, in]. When every entry of delta is zero it is a bit-identical copy of W0.

    Raises:
        RankspaceError: shapes do not fit, or delta holds NaN or Inf.
    """
    out, inner = W0.shape
    r = Vh.shape[0]
    fits = delta.numel() == r and tuple(U.shape) == (out, r) if U is not None else delta.numel() == out * r
    if not fits or Vh.shape[1] != inner:
        shapes = [None if t is None else tuple(t.shape) for t in (W0, U, delta, Vh)]
        raise RankspaceError(
            f"cannot merge: W0 {shapes[0]}, U {shapes[1]}, delta {shapes[2]}, Vh {shapes[3]} do not fit;"
            " slice U by the rows and Vh by the columns of the weight block"
        )
    if not torch.isfinite(delta).all():
        raise RankspaceError("delta_S holds NaN or Inf: the training run diverged, take an earlier checkpoint")
    if not torch.any(delta):  # adding an exact zero would still turn -0.0 into 0.0
        return W0.detach().clone()
    merged = torch.empty_like(W0, requires_grad=False)
    merge_into(merged, W0, _moved(U, W0.device), delta.to(W0.device), Vh.to(W0.device))
    return merged


@torch.no_grad()
def merge_into(out: Tensor, W0: Tensor, U: Tensor | None, delta: Tensor, Vh: Tensor) -> None:
    """Write W0 + U·diag(delta)·Vh over `out`, without looking at a value (no host sync).

    Args:
        out: [out, in] like W0 in dtype and device; may be a block of rows of an engine's fused weight.
        W0, U, delta, Vh: as in `merged_weight`, all on one device.

    On a GPU with weights and bases in one 16-bit dtype the factors are read in that dtype; the sum is still made in fp32
    and rounded once. Their rounding is relative to the small added term, far below the last bit of W0.
    """
    rows, same = W0.shape[0], Vh.dtype == W0.dtype == (Vh if U is None else U).dtype
    if W0.is_cuda and same and W0.dtype in (torch.bfloat16, torch.float16):
        torch.addmm(W0.detach(), left(U, delta.float(), rows).to(Vh.dtype), Vh, out=out.detach())
        return
    work = torch.promote_types(torch.float32, W0.dtype)
    with _tensor_cores():
        scaled = left(_moved(U, work), delta.to(work), rows)
        out.detach().copy_(torch.addmm(W0.detach().to(work), scaled, Vh.to(work)))


def _moved(U: Tensor | None, *where: Any, **how: Any) -> Tensor | None:
    return None if U is None else U.to(*where, **how)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """TF32 for fp32 products on a GPU; nothing elsewhere."""
    # plain fp32 here was part of what made a step as slow as LoRA (LOG 2026-11-24)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class MergeSource:
    """The base weights and bases of an adapter's modules, ready to be merged with one delta after another.

    Maker: `load`. Reader: a generation engine, which passes `merged(flat)` to its own `load_weights`.
    Example: model.load_weights(source.merged(flat))
    """

    modules: list[tuple[str, int]]
    weights: list[Tensor]
    bases: list[tuple[Tensor | None, Tensor]]
    kind: Kind = "antipasto"

    @classmethod
    def load(
        cls,
        weights: Iterable[tuple[str, Tensor]],
        modules: Sequence[tuple[str, int]],
        svd_cache_dir: Path | None = None,
        progress: Progress | None = None,
        kind: Kind = "antipasto",
    ) -> MergeSource:
        """Pick the modules' weights out of (checkpoint name, tensor) pairs and find their SVD.

        Args:
            weights: pairs as a checkpoint holds them ("model.layers.0.mlp.up_proj.weight", [out, in]); others ignored.
            modules: (name, r) in the order of the flat delta_S, as `Adapter.modules` gives them.
            kind: which adapter the deltas belong to.

        Raises:
            RankspaceError: a module has no weight in the checkpoint, or a rank that does not fit.
        """
        wanted = {f"{name}.weight": name for name, _ in modules}
        found = {wanted[key]: tensor.detach() for key, tensor in weights if key in wanted}
        kept = []
        for name, r in modules:
            if name not in found:
                raise RankspaceError(f"no weight {name}.weight in the checkpoint: the adapter belongs to another model")
            weight = found[name]
            if (size := delta_size(weight.shape, kind)) != r:
                raise RankspaceError(
                    f"{name} takes {size} numbers, the adapter says {r}: another model, or another kind"
                )
            kept.append(weight)
        bases = []
        for done, ((name, _), basis) in enumerate(zip(modules, svds(kept, svd_cache_dir), strict=True), start=1):
            bases.append(factors(basis, kind))
            if progress is not None:
                progress(done, len(modules), name)
        return cls([(name, r) for name, r in modules], kept, bases, kind)

    def merged(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield ("<module>.weight", merged weight) in module order, one at a time, for the flat delta_S [sum r]."""
        deltas = split_flat(flat, self.modules)
        for (name, _), weight, (U, Vh), delta in zip(self.modules, self.weights, self.bases, deltas, strict=True):
            yield f"{name}.weight", merged_weight(weight, U, delta, Vh)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> MergeSource:
        """The same with weights and bases on `device` in `dtype`, as a trainer of that dtype holds them."""
        bases = [(_moved(U, device, dtype), Vh.to(device, dtype)) for U, Vh in self.bases]
        return MergeSource(self.modules, [w.to(device, dtype) for w in self.weights], bases, self.kind)

    def on_host(self, dtype: torch.dtype) -> MergeSource:
        """The same in `dtype` in host memory, page-locked where there is a GPU: `merge_into` then brings one module after
        another to its place's device, which costs a transfer of all of it a push and no memory there."""
        lock = torch.cuda.is_available()

        def kept(tensor: Tensor) -> Tensor:
            return tensor.to("cpu", dtype).pin_memory() if lock else tensor.to("cpu", dtype)

        bases = [(None if U is None else kept(U), kept(Vh)) for U, Vh in self.bases]
        return MergeSource(self.modules, [kept(w) for w in self.weights], bases, self.kind)

    def merge_into(self, flat: Tensor, places: Sequence[Tensor]) -> None:
        """Overwrite `places`, one [out, in] per module (views of an engine's fused weights), for the delta_S [sum r].

        Looks at `flat` where it lies: keep it on the CPU and nothing waits for the GPU.

        Raises:
            RankspaceError: the flat vector has another length, or holds NaN or Inf.
        """
        if not torch.isfinite(flat).all():
            raise RankspaceError("delta_S holds NaN or Inf: the training run diverged, take an earlier checkpoint")
        moving = [bool(torch.any(delta)) for delta in split_flat(flat, self.modules)]
        device = places[0].device
        deltas = split_flat(flat.to(device, non_blocking=True), self.modules)
        parts = zip(places, self.weights, self.bases, deltas, moving, strict=True)
        for place, weight, (U, Vh), delta, moves in parts:
            if moves:
                weight, Vh = weight.to(device, non_blocking=True), Vh.to(device, non_blocking=True)
                merge_into(place, weight, _moved(U, device, non_blocking=True), delta, Vh)
            else:
                place.copy_(weight, non_blocking=True)


def split_flat(flat: Tensor, modules: Sequence[tuple[str, int]]) -> list[Tensor]:
    """Views of the flat vector [sum r], one [r] per module, in order.

    Raises:
        RankspaceError: the length is not the sum of the ranks.
    """
    ranks = [r for _, r in modules]
    if flat.ndim != 1 or flat.numel() != sum(ranks):
        raise RankspaceError(f"the flat delta_S has shape {tuple(flat.shape)}, the modules need [{sum(ranks)}]")
    return list(torch.split(flat, ranks))
