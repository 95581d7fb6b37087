"""Arms that act inside AdamW: between the gradient and the step it becomes.

AdamW (Loshchilov & Hutter 2019) as torch computes it, per entry, with the clipped gradient s·g, step number t from 1:

    m_t = β1 m + (1 − β1) s g        m̂ = m_t / (1 − β1^t)
    w_t = β2 w + (1 − β2) (s g)²     ŵ = w_t / (1 − β2^t)          w: second moment (v is the hack direction here)
    δ_t = (1 − lr·decay) δ − lr · m̂ / (sqrt(ŵ) + eps)

A projection of g lowers w along v too, so the effective rate there rises (arXiv 2604.22407). Three repairs:

    m_only   m from g' = project(g), one-sided, norm restored; w from the untouched g:
             w_t ← β2 w + (1 − β2) (s g)²,   δ_t computed anew from it
    moments  g untouched; the first moment loses what points to the hack, and δ_t is computed anew from it:
             m_t ← m_t − max(0, m_t·v) v           (the step is −m_t; no norm restored; kept for the next step)
    fisher   g and moments untouched; of the applied change u the smallest correction, in Adam's metric P⁻¹, that leaves
             no first-order motion to the hack:
             v·u < 0:  u ← u − (v·u)/(vᵀPv) P v,   P = diag(1 / (sqrt(ŵ) + eps))

s, the optimizer's own clipping, is not asked for: it is read off the first moment,
s = (m_t − β1 m)·g' / ((1 − β1) ‖g'‖²), g' being what was handed to the optimizer.

In m_only and moments the step is no longer bounded by lr: where g is near 0 and the projection moved it, m is not small
and sqrt(ŵ) is, in the first steps above all. That belongs to the methods; lr_warmup_steps tempers it.

`moments` is not one_sided with the moment projected as well: there every g'·v <= 0, hence m·v <= 0 already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import RankspaceError
from .projection import Layout, unit_rows_of

Inside = Literal["m_only", "moments", "fisher"]
INSIDE: tuple[str, ...] = get_args(Inside)


@dataclass(frozen=True)
class Adam:
    """Hyperparameters of one AdamW and the number of steps it has made."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    steps: int

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Any]]) -> Adam:
        """From an optimizer's param_groups and the states of its parameters.

        Raises:
            RankspaceError: it is no AdamW (betas or eps missing, amsgrad, maximize), or its groups differ.
        """
        names = ("lr", "betas", "eps", "weight_decay")
        first = groups[0]
        if any(name not in first for name in names) or first.get("amsgrad") or first.get("maximize"):
            raise RankspaceError("m_only, moments and fisher act inside AdamW (no amsgrad, no maximize): use that one")
        if any(group[name] != first[name] for group in groups for name in names):
            raise RankspaceError("m_only, moments and fisher need the same lr, betas, eps and decay for every delta_S")
        steps = {int(state["step"]) for state in states if "step" in state}
        if len(steps) > 1:
            raise RankspaceError(f"the optimizer's parameters have made different numbers of steps: {sorted(steps)}")
        beta1, beta2 = first["betas"]
        return cls(first["lr"], beta1, beta2, first["eps"], first["weight_decay"], max(steps, default=0))

    def inverse_root(self, second: Tensor) -> Tensor:
        """P's diagonal 1 / (sqrt(ŵ) + eps), float64 like `second` [...]."""
        return 1.0 / ((second / (1.0 - self.beta2**self.steps)).sqrt() + self.eps)

    def step(self, before: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """δ_t from δ and the moments of step t, all [sum r]; fp32."""
        b, m, w = before.double(), first.double(), second.double()
        moved = self.lr * m / (1.0 - self.beta1**self.steps) * self.inverse_root(w)
        return ((1.0 - self.lr * self.decay) * b - moved).float()


def clip_share(first: Tensor, first_before: Tensor, g: Tensor, beta1: float) -> float:
    """s: how much of the gradient g handed over went into the first moment. 1.0 for a zero gradient."""
    m, m0, x = first.double(), first_before.double(), g.double()
    square = float(x.square().sum())
    return 1.0 if square == 0 else float(((m - beta1 * m0) * x).sum()) / ((1.0 - beta1) * square)


def untouched_second(second_before: Tensor, g: Tensor, share: float, beta2: float) -> Tensor:
    """The second moment [sum r] as if the optimizer had seen g; not as a correction of what it has, which cancels."""
    return (beta2 * second_before.double() + (1.0 - beta2) * (share * g.double()).square()).to(second_before.dtype)


def without_hackward(first: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """A first moment [sum r] without its component towards the hack; bool [M]: the modules where it had one."""
    rows, m = unit_rows_of(v, layout, first.device)[0], layout.pad(first)
    # the step is −m: what lies along v in m would move delta_S along −v, to the hack
    along = (rows * m).sum(dim=-1).clamp_min(0.0)
    return layout.unpad(m - along[:, None] * rows).to(first.dtype), along > 0


def fisher_update(update: Tensor, v: Tensor, layout: Layout, inverse_root: Tensor) -> tuple[Tensor, Tensor]:
    """An applied change [sum r] with the smallest correction in Adam's metric; bool [M]: the modules corrected.

    inverse_root: P's diagonal [sum r].
    """
    rows, u, p = unit_rows_of(v, layout, update.device)[0], layout.pad(update), layout.pad(inverse_root)
    along = (rows * u).sum(dim=-1)
    steepest = p * rows
    # u is the applied step itself, so here the negative part leads to the hack
    share = along.clamp_max(0.0) / (rows * steepest).sum(dim=-1)
    return layout.unpad(u - share[:, None] * steepest).to(update.dtype), along < 0


def require_inside(v: Tensor, variant: str) -> None:
    """RankspaceError unless the direction has one vector per module."""
    if v.ndim != 1:
        raise RankspaceError(f"{variant!r} takes one vector per module, this direction has {v.shape[0]}")


def zeros_like_or(moment: Tensor | None, like: Tensor) -> Tensor:
    """A moment, or what it is before the first step."""
    return torch.zeros_like(like) if moment is None else moment
