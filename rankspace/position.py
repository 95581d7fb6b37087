"""Where delta_S stands along v, and the arms that put it there.

    a[m]         = delta_S[m] · v[m]              per module, v[m] unit; a > 0: away from the hack
    displacement = Σ_m a[m] / sqrt(M)             component of the whole delta_S along the unit vector of all v[m]
    drift_cos    = mean_m −a[m] / ‖delta_S[m]‖    sign of a gradient: > 0 towards the hack (see `update_cosine`)

Placements act on the parameters after the optimizer's step, δ ← δ + (a' − a) v, dose m >= 0 per module:

    leash       a' = min(max(a, 0), m)            m = 0: nothing along v, exact two-sided removal at the parameters
    setpoint    a' = m · min(1, (t + 1) / T)      t: step from 0, T: steps of the ramp; whatever the gradient wants
    shift       δ starts at m·v; no later step is touched

Where a' ≠ a the first moment loses its component too, exp_avg ← exp_avg − (exp_avg·v) v: it would wind up against the
placement otherwise. The second moment is per entry, not a direction, and is left alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import RankspaceError
from .projection import Layout, unit_rows_of

Placement = Literal["leash", "setpoint", "shift"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)


def position_metrics(
    delta: Tensor, update: Tensor, own: Tensor, reference: Tensor | None, layout: Layout
) -> dict[str, float]:
    """What a step says about where delta_S is. One host sync.

    Args:
        delta: [sum r] after the step. update: [sum r] the step's change. own, reference: [sum r] or [k, sum r] (of k
            vectors the first) directions; without a reference its three values are missing.

    Returns:
        floats `drift_cos_mean`, `displacement_own`, `delta_norm`, and against the reference `drift_ref_cos_mean`,
        `update_ref_cos_mean`, `displacement_ref`. Displacements and the norm are in units of delta_S.
    """
    d, u = layout.pad(delta), layout.pad(update)
    d_norm, u_norm = (x.norm(dim=-1).clamp_min(1e-300) for x in (d, u))
    names, values = ["delta_norm"], [d.norm()]
    for suffix, v in (("own", own), ("ref", reference)):
        if v is None:
            continue
        rows = unit_rows_of(v, layout, delta.device)[0]
        a = (rows * d).sum(dim=-1)
        names += [f"drift_{suffix}_cos_mean", f"update_{suffix}_cos_mean", f"displacement_{suffix}"]
        values += [-(a / d_norm).mean(), -((rows * u).sum(dim=-1) / u_norm).mean(), a.sum() / len(a) ** 0.5]
    found = dict(zip(names, torch.stack(values).tolist(), strict=True))
    found["drift_cos_mean"] = found.pop("drift_own_cos_mean")
    del found["update_own_cos_mean"]  # `update_cosine` has it, with the modules
    return found


def placed(
    delta: Tensor, v: Tensor, layout: Layout, placement: Placement, dose: float, ramp: int = 1, step: int = 0
) -> tuple[Tensor, Tensor]:
    """delta_S with its component along v put where the placement wants it.

    Args:
        delta: [sum r]. v: [sum r], unit per module (made exact here). dose: m per module, in units of delta_S.
        ramp: steps over which `setpoint` rises from 0 to m. step: number of the optimizer step just made, from 0.

    Returns:
        (delta' [sum r] in the dtype of delta, moved bool [M]: where a' ≠ a).
    """
    rows, d = unit_rows_of(v, layout, delta.device)[0], layout.pad(delta)
    a = (rows * d).sum(dim=-1)
    if placement == "leash":
        target = a.clamp(0.0, dose)
    elif placement == "setpoint":
        target = torch.full_like(a, dose * min(1.0, (step + 1) / ramp))
    else:
        target = a  # shift: acts once, before the first step
    moved = target != a
    result = torch.where(moved[:, None], d + (target - a)[:, None] * rows, d)
    return layout.unpad(result).to(delta.dtype), moved


def without_component(moment: Tensor, v: Tensor, layout: Layout, moved: Tensor) -> Tensor:
    """A first moment [sum r] without its component along v in the modules of `moved` (bool [M])."""
    rows, x = unit_rows_of(v, layout, moment.device)[0], layout.pad(moment)
    along = (rows * x).sum(dim=-1) * moved
    return layout.unpad(x - along[:, None] * rows).to(moment.dtype)


def shifted(v: Tensor, layout: Layout, dose: float) -> Tensor:
    """m·v, fp32 [sum r]: where the arm `shift` starts."""
    return layout.unpad(dose * unit_rows_of(v, layout, v.device)[0]).float()


def require_placement(v: Tensor, placement: str, dose: float, ramp: int) -> None:
    """RankspaceError unless the direction has one vector per module and dose and ramp make sense."""
    if v.ndim != 1:
        raise RankspaceError(f"{placement!r} takes one vector per module, this direction has {v.shape[0]}")
    if not 0 <= dose < float("inf") or ramp < 1:
        raise RankspaceError(f"{placement!r} needs dose >= 0 and ramp >= 1, not {dose} and {ramp}")
