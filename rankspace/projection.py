"""The projection: what is left of a gradient when its pull towards the hack is taken out, module by module.

    c  = g·v / ‖g‖                                cosine with the unit direction v of the module
    g' = g − max(0, c) ‖g‖ v                      one_sided: only a positive cosine fires
    g' ← g' · ‖g‖ / ‖g'‖                          rescale: the module keeps its gradient norm

    no_rescale    the same without the last line
    two_sided     g' = g − c ‖g‖ v, then rescale: also a pull *away* from the hack is removed
    subspace      g' = g − sum_i max(0, g·v_i) v_i over k orthonormal v_i, then rescale
    span          g' = sum_i (g·v_i) v_i over k orthonormal v_i: nothing but the subspace is left, then rescale
    drift_only    g' = min(0, g·v) v: nothing but the part of the gradient that leads away from the hack; modules
                  with c >= 0 do not move. Not rescaled by default
    bias          g' = g − b ‖g‖ v, then rescale: a constant push away from the hack, whatever the sign of c
    measure_only  g' = g, everything is measured, and hooks write g back: what writing alone does
    off           g' = g, everything is measured, nothing is written
    update        g' = g here; the parameter change is projected after the optimizer (`project_update`)

v = unit(mean grad NLL(hack) − mean grad NLL(clean)); the optimizer steps along −g, so c > 0 means that the step would
make the hacks likelier. Identities: c <= 0 leaves g bit for bit; v·g' <= 0 and ‖g'‖ = ‖g‖ up to rounding; the map is
positively homogeneous, so a loss scale does not matter; v = 0 is refused. If all of g lies on v there is nothing left
to rescale: the module's gradient becomes zero and is counted (`n_annihilated`).

Null band: for a random unit v in r dimensions the cosine has mean 0 and standard deviation 1/sqrt(r).

Arithmetic is float64 on one padded matrix [M, r_max]: no Python loop over modules, and one host sync, for the metrics.
Products are written out and summed: a batched float64 matrix product of such thin shapes is slower than all else here.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import RankspaceError

Variant = Literal[
    "one_sided", "no_rescale", "two_sided", "subspace", "span", "drift_only", "bias", "measure_only", "off", "update"
]
VARIANTS: tuple[str, ...] = get_args(Variant)
UNPROJECTED = ("measure_only", "off", "update")  # g' = g
UNWRITTEN = ("off", "update")  # and hooks leave the gradient where it lies
RESCALED = ("one_sided", "two_sided", "subspace", "span", "bias")
STRENGTH = 0.1
ANNIHILATED = 1e-6  # ‖g'‖/‖g‖ below this is the rounding error of fp32 inputs, not a direction


@dataclass(frozen=True)
class Layout:
    """Order and ranks of the modules in a flat vector. Maker: `Layout.of(adapter.modules)`."""

    names: tuple[str, ...]
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, modules: Sequence[tuple[str, int]]) -> Layout:
        if not modules or any(r < 1 for _, r in modules):
            raise RankspaceError("a layout needs at least one module, each with rank >= 1")
        return cls(tuple(name for name, _ in modules), tuple(int(r) for _, r in modules))

    @property
    def size(self) -> int:
        """Length of the flat vector, sum of the ranks."""
        return sum(self.ranks)

    def null_std(self, device: torch.device | str = "cpu") -> Tensor:
        """1/sqrt(r) per module, float64 [M]."""
        return torch.tensor(self.ranks, dtype=torch.float64, device=device).rsqrt()

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """bool [M, r_max], True where a module has an entry."""
        ranks = torch.tensor(self.ranks, device=device)
        return torch.arange(max(self.ranks), device=device) < ranks[:, None]

    def pad(self, flat: Tensor) -> Tensor:
        """[..., sum r] -> float64 [..., M, r_max], zeros behind each module's entries."""
        if flat.shape[-1] != self.size:
            raise RankspaceError(f"a flat vector of {flat.shape[-1]} entries does not fit modules of {self.size}")
        m, width = len(self.ranks), max(self.ranks)
        padded = torch.zeros(*flat.shape[:-1], m * width, dtype=torch.float64, device=flat.device)
        padded.index_copy_(-1, _places(self.ranks, flat.device), flat.detach().double())
        return padded.view(*flat.shape[:-1], m, width)

    def unpad(self, padded: Tensor) -> Tensor:
        """[..., M, r_max] -> [..., sum r]."""
        return padded.flatten(-2).index_select(-1, _places(self.ranks, padded.device))


@lru_cache(maxsize=16)
def _places(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the entries of a flat vector lie in the padded one, int64 [sum r]; kept, so that no step waits for it."""
    width = max(ranks)
    return torch.cat([torch.arange(r) + i * width for i, r in enumerate(ranks)]).to(device)


def unit_rows(padded: Tensor, names: Sequence[str]) -> Tensor:
    """Rows of [..., M, r_max] scaled to norm 1.

    Raises:
        RankspaceError: a row is zero or not finite; names the module.
    """
    norms: Tensor = padded.norm(dim=-1, keepdim=True)
    bad = ~(torch.isfinite(norms) & (norms > 0)).squeeze(-1)
    if bad.any():
        name = names[int(bad.nonzero()[0, -1])]
        raise RankspaceError(f"the direction of {name} is zero or not finite: extract v_hack again with more pairs")
    return padded / norms


def project(
    g_flat: Tensor,
    v: Tensor,
    layout: Layout,
    variant: Variant = "one_sided",
    rescale: bool | None = None,
    strength: float = STRENGTH,
) -> tuple[Tensor, dict[str, Any]]:
    """Take the hack direction out of a gradient.

    Args:
        g_flat: [sum r] gradient, any floating dtype; accumulated over micro-batches and reduced over ranks.
        v: [sum r] or [k, sum r]; unit (and, for k > 1, orthonormal) per module. Norms are made exact here.
        layout: modules in the order of both.
        variant: see the top of the file.
        rescale: overrides the variant's own choice.
        strength: b of `bias`, as a share of the module's gradient norm; no other variant has use for it.

    Returns:
        (g', metrics): g' in the dtype and on the device of g_flat. metrics, all about the gradient *before*:
        `cos` float64 [M] CPU tensor (for k > 1 with the first vector), `null_std` [M], and floats `cos_mean`,
        `cos_std`, `cos_mean_null_std` (spread of cos_mean for a random direction), `cos_after_mean`,
        `grad_norm_mean` (mean over modules of ‖g‖), `grad_norm` (all), `frac_fired` (share of modules with cos > 0;
        in two_sided |cos| > 0), `frac_outside_null` (|cos| > 2/sqrt(r)), `removed_mean` (mean of ‖g removed‖/‖g‖),
        `n_modules`, `n_zero` (modules whose gradient is exactly zero: cos 0, untouched), `n_annihilated`.

    Raises:
        RankspaceError: NaN or Inf in g (names the module), shapes, unknown variant, or k and variant that do not fit.
    """
    _check_variant(v, variant)
    v_rows = unit_rows_of(v, layout, g_flat.device)
    g = layout.pad(g_flat)
    norm = g.norm(dim=-1)
    along = (v_rows * g).sum(dim=-1)
    removed = _removed(g, along, v_rows, variant, strength)
    result = g - removed
    left, gone = result.norm(dim=-1), removed.norm(dim=-1)
    touched = removed.abs().amax(dim=-1) > 0
    annihilated = (left <= ANNIHILATED * norm) & (norm > 0) & touched
    if variant in RESCALED if rescale is None else rescale:
        result = result * torch.where((norm > 0) & ~annihilated, norm / left.clamp_min(1e-300), 1.0)[:, None]
    result = torch.where(annihilated[:, None], 0.0, torch.where(touched[:, None], result, g))
    after = (result * v_rows[0]).sum(dim=-1)
    measured = torch.cat([torch.stack([norm, gone, after, annihilated.double()]), along]).cpu()
    _require_finite(measured[0], layout, "gradient")
    return layout.unpad(result).to(g_flat.dtype), _metrics(layout, measured, variant)


_kept_rows: deque[tuple[weakref.ref[Tensor], tuple[int, Layout, torch.device], Tensor]] = deque(maxlen=4)


def unit_rows_of(v: Tensor, layout: Layout, device: torch.device) -> Tensor:
    """Checked unit rows [k, M, r_max] of a direction [sum r] or [k, sum r] on `device`, float64. Kept while the same
    tensor is used unchanged: a direction (the run's own, the reference) serves thousands of steps.

    Raises:
        RankspaceError: a row is zero or not finite, or the k vectors of a module are not orthonormal.
    """
    # torch counts writes in _version: a direction changed in place is another one
    key = (v._version, layout, device)
    for kept, of, found in _kept_rows:
        if kept() is v and of == key:
            return found
    vectors = v.detach() if v.ndim == 2 else v.detach()[None]
    rows: Tensor = unit_rows(layout.pad(vectors.to(device)), layout.names)
    if len(rows) > 1:
        _require_orthonormal(rows, layout)
    _kept_rows.append((weakref.ref(v), key, rows))
    return rows


def _check_variant(v: Tensor, variant: str) -> None:
    if variant not in VARIANTS:
        raise RankspaceError(f"projection variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}")
    k = v.shape[0] if v.ndim == 2 else 1
    if k > 1 and variant not in ("subspace", "span", *UNPROJECTED):
        raise RankspaceError(f"variant {variant!r} takes one vector per module, this direction has {k}: use 'subspace'")
    if variant == "subspace" and v.ndim == 1:
        raise RankspaceError(
            "variant 'subspace' needs a subspace direction [k, sum r]: extract with --control subspace"
        )
    if variant == "span" and v.ndim == 1:
        raise RankspaceError("variant 'span' needs a subspace to keep [k, sum r]: extract with --control warmup")


def _require_orthonormal(v_rows: Tensor, layout: Layout) -> None:
    gram = torch.einsum("kmr,jmr->mkj", v_rows, v_rows)
    off = (gram - torch.eye(len(v_rows), dtype=gram.dtype, device=gram.device)).abs().amax(dim=(1, 2))
    if (off > 1e-4).any():
        name = layout.names[int((off > 1e-4).nonzero()[0, 0])]
        raise RankspaceError(
            f"the subspace vectors of {name} are not orthonormal: run python -m rankspace extract again"
        )


def _require_finite(norm: Tensor, layout: Layout, what: str) -> None:
    bad = ~torch.isfinite(norm)
    if bad.any():
        last = layout.names[int(bad.nonzero()[-1, 0])]  # backward came through it before the others
        raise RankspaceError(
            f"the {what} of {int(bad.sum())} of {len(layout.names)} modules holds NaN or Inf, the last of them {last}: lower the"
            " learning rate or look at the loss; where that is sound on a Hopper or Blackwell GPU, see"
            " rankspace.gpu.avoid_cudnn_attention"
        )


def _removed(g: Tensor, along: Tensor, v_rows: Tensor, variant: str, strength: float) -> Tensor:
    """The part of g that the variant takes away, [M, r_max]."""
    if variant in UNPROJECTED:
        return torch.zeros_like(g)
    if variant == "drift_only":
        return g - along[0].clamp_max(0.0)[:, None] * v_rows[0]
    if variant == "bias":
        push: Tensor = strength * g.norm(dim=-1, keepdim=True) * v_rows[0]
        return push
    if variant == "span":
        return g - (along[..., None] * v_rows).sum(dim=0)
    amount = along if variant == "two_sided" else along.clamp_min(0.0)
    return (amount[..., None] * v_rows).sum(dim=0)


def _metrics(layout: Layout, measured: Tensor, variant: str) -> dict[str, Any]:
    """`measured` [4 + k, M] float64 on the CPU: ‖g‖, ‖removed‖, g'·v_0, annihilated, then g·v_i."""
    norm, gone, after, annihilated, along = *measured[:4], measured[4:]
    safe = norm.clamp_min(1e-300)
    cos = along[0] / safe
    fired = (along != 0 if variant == "two_sided" else along > 0).any(dim=0)
    null, m = layout.null_std(), len(layout.names)
    scalars = {
        "cos_mean": cos.mean(),
        "cos_std": cos.std(correction=0),
        "cos_mean_null_std": null.square().sum().sqrt() / m,
        "cos_after_mean": (after / safe).mean(),
        "grad_norm_mean": norm.mean(),
        "grad_norm": norm.norm(),
        "frac_fired": fired.double().mean(),
        "frac_outside_null": (cos.abs() > 2 * null).double().mean(),
        "removed_mean": (gone / safe).mean(),
    }
    counts = {"n_zero": int((norm == 0).sum()), "n_annihilated": int(annihilated.sum()), "n_modules": m}
    return {name: float(value) for name, value in scalars.items()} | counts | {"cos": cos, "null_std": null}


def update_cosine(update: Tensor, v: Tensor, layout: Layout) -> dict[str, Any]:
    """How far an applied parameter change went towards the hack: the cosine of −update with v.

    The sign is that of a gradient: positive means that the change makes the hacks likelier. Momentum, preconditioning
    and weight decay can turn a projected gradient back, which is why it is measured.

    Args:
        update: [sum r], parameters after the step minus before. v, layout: as in `project`.

    Returns:
        metrics `update_cos` float64 [M] and floats `update_cos_mean`, `update_cos_std`, `update_frac_fired`,
        `update_norm`.
    """
    _, metrics = project(-update, v, layout, "measure_only")
    return {
        "update_cos": metrics["cos"],
        "update_cos_mean": metrics["cos_mean"],
        "update_cos_std": metrics["cos_std"],
        "update_frac_fired": metrics["frac_fired"],
        "update_norm": metrics["grad_norm"],
    }


def drift_cosine(delta: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Where all updates together have gone: the cosine of −delta_S with v, module by module.

    The sign is that of `update_cosine`: positive means to where the hacks are likelier. Delta starts at zero, so it is the
    sum of its updates. Lighter than `project`, since a hook does it every step.

    Args:
        delta: [sum r]. v, layout: as in `project`; of k vectors the first.

    Returns:
        float64 [M] on delta's device; 0 for a module that has not moved.
    """
    rows, padded = unit_rows_of(v, layout, delta.device)[0], layout.pad(delta)
    cos: Tensor = -(rows * padded).sum(dim=-1) / padded.norm(dim=-1).clamp_min(1e-300)
    return cos


def project_update(
    update: Tensor, v: Tensor, layout: Layout, variant: Variant = "one_sided"
) -> tuple[Tensor, dict[str, Any]]:
    """Project an applied parameter change [sum r] (the `update` arm): −project(−update). Same metrics as `project`."""
    projected, metrics = project(-update, v, layout, variant)
    return -projected, metrics
