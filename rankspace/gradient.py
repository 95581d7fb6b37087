"""The gradient of delta_S under one merged weight.

y = (W0 + U diag(delta) Vh) x,   d_delta = sum_t (Uᵀ g_t) ∘ (Vh x_t) = rowsum( (Uᵀ G) ∘ Vh ),   G = sum_t g_t x_tᵀ
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class MergedLinear(torch.autograd.Function):
    """y = x Wᵀ + b with gradients for x and delta only; W already holds delta."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, U: Tensor | None, Vh: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, U, Vh)
        ctx.delta_dtype = delta.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        x, weight, U, Vh = ctx.saved_tensors
        dx = (g @ weight.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        d_delta = delta_gradient(x, g, U, Vh).to(ctx.delta_dtype) if ctx.needs_input_grad[1] else None
        return dx, d_delta, None, None, None, None


def delta_gradient(x: Tensor, g: Tensor, U: Tensor | None, Vh: Tensor) -> Tensor:
    """d_delta = rowsum((Uᵀ G) ∘ Vh) with G = gᵀx; fp32 (or wider) [r].

    Args:
        x: [..., in] inputs, g: [..., out] output gradients, U: [out, r], Vh: [r, in]. Products run in the basis dtype.

    With few tokens sum_t (Uᵀ g_t) ∘ (Vh x_t) is the same number for less work, so the form is chosen by cost. Without U
    it is sum_t g_t (A x_t)ᵀ, [out · k] (pissa.py).
    """
    r, inner = Vh.shape
    out = g.shape[-1]
    x, g = x.reshape(-1, inner).to(Vh.dtype), g.reshape(-1, out).to(Vh.dtype)
    wide = torch.promote_types(torch.float32, Vh.dtype)
    if U is None:
        return (g.T @ (x @ Vh.T)).to(wide).reshape(-1)
    tokens = x.shape[0]
    # left: gU and xVhᵀ; right: G = gᵀx, then UᵀG
    if tokens * r * (inner + out) <= out * inner * (tokens + r):
        return ((g @ U).to(wide) * (x @ Vh.T)).sum(dim=0)
    return from_outer(g.T @ x, U, Vh)


def from_outer(G: Tensor, U: Tensor | None, Vh: Tensor) -> Tensor:
    """rowsum((Uᵀ G) ∘ Vh) for G [out, in], fp32 or wider [r]; without U, G Aᵀ flat.

    The product UᵀG is not rounded to the dtype of G, which keeps the error below that of the factored form.
    """
    wide = torch.promote_types(torch.float32, Vh.dtype)
    if U is None:
        return (G.to(Vh.dtype) @ Vh.T).to(wide).reshape(-1)
    G = G.to(U.dtype)
    if U.is_cuda and U.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(U.T, G, out_dtype=torch.float32)
    else:
        product = U.T.to(wide) @ G.to(wide)
    return (product * Vh).sum(dim=1)
