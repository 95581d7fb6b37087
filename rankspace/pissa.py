"""PiSSA with A frozen: the fallback adapter, to see whether a result hangs on AntiPaSTO's choice of what trains.

    W0 = U · diag(S) · Vh,   A = diag(sqrt S)[:k] · Vh[:k]  [k, in] frozen,   B = U[:, :k] · diag(sqrt S)[:k]  [out, k]
    W  = W0 + (B_now − B) · A                                                  only B trains; delta = B_now − B, flattened

Both adapters add left(delta) · right to W0 with a right factor that stays fixed, which is what lets one direction per
module, extracted at delta = 0, mean the same thing all through training:

    antipasto        left = U · diag(delta)     right = Vh      delta [r]
    pissa_freeze_a   left = delta as [out, k]   right = A       delta [out · k], row-major

    d_delta = G Aᵀ with G = sum_t g_t x_tᵀ,  or  sum_t g_t (A x_t)ᵀ

In code the second kind is the one whose U is None. Source: Meng et al. 2024 (PiSSA), with A frozen as in LoRA-FA (Zhang
et al. 2023).
"""

from __future__ import annotations

from torch import Tensor

from .svd_cache import Basis
from .targets import PISSA_RANK, Kind


def factors(basis: Basis, kind: Kind) -> tuple[Tensor | None, Tensor]:
    """(U or None, right factor) of a module: (U [out, r], Vh [r, in]) or (None, A [k, in]); fp32."""
    if kind == "antipasto":
        return basis.U, basis.Vh
    k = min(PISSA_RANK, *basis.Vh.shape, basis.U.shape[0])
    # the square root, as in PiSSA: both factors get the same share of the scale
    return None, basis.S[:k, None].sqrt() * basis.Vh[:k]


def left(U: Tensor | None, delta: Tensor, rows: int) -> Tensor:
    """The trained factor of the added term, [rows, r or k]."""
    return delta.view(rows, -1) if U is None else U * delta
