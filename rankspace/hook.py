"""The projection around any torch optimizer: a plain loop, accelerate, DDP, the Hugging Face trainers (trl.py).

Order of one optimizer step; who holds what:

    for micro-batch: loss.backward()           autograd accumulates in delta_S.grad (DDP reduces at the last one)
    hook.before_step()                         read all delta_S.grad -> project -> write back       (this file)
    clip_grad_norm_(adapter.parameters(), 1)   clips the *projected* gradient
    optimizer.step()                           AdamW, next parameters
    hook.after_step()                          measure the applied change, project it in the `update` variant

Clipping c(g) = g · min(1, M / ‖g‖) and the projection P of projection.py (homogeneous, module by module):

    P keeps every module's norm (rescaled, nothing annihilated):   P(c(g)) = c(P(g)),  the order is free
    otherwise ‖P(g)‖ < ‖g‖:                                        P(c(g)) = s · c(P(g)),  s <= 1, too short a step

Guard. Raises when: a delta_S has no gradient (frozen, never used in the forward, or zeroed too early); the optimizer
does not hold every delta_S, or trains anything besides; an engine keeps the gradient elsewhere (DeepSpeed: use
ds_hook.ProjectionHook; FSDP); the form is 'summed' (its gradient comes from `adapter.fold`); NaN or Inf. Does not
cover: gradients changed by others between the calls, a second optimizer over the same delta_S, or fp16 loss scaling
(direction and cosines do not mind a scale, `grad_norm` does).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .direction import Direction
from .errors import RankspaceError
from .merge import split_flat
from .projection import UNPROJECTED, Layout, Variant, project, project_update, update_cosine


class GradientHook:
    """Projects delta_S's gradient once per optimizer step. See the top of this file for the order of calls.

    Args:
        optimizer: any torch optimizer (or a wrapper with `param_groups`) over exactly `adapter.parameters()`.
        direction: v_hack or a control; checked against the adapter's modules.
        variant, rescale: as in `projection.project`; `update` leaves the gradient alone and projects the applied
            change of the parameters instead.

    Raises:
        RankspaceError: direction, optimizer or form do not fit the adapter.
    """

    def __init__(
        self,
        optimizer: Any,
        adapter: Adapter,
        direction: Direction,
        variant: Variant = "one_sided",
        rescale: bool | None = None,
    ):
        direction.require(adapter.modules)
        if adapter.form == "summed":
            raise RankspaceError("the form 'summed' leaves delta_S.grad empty: attach with form='factored' or 'merged'")
        self.adapter, self.direction, self.variant, self.rescale = adapter, direction, variant, rescale
        self.layout = Layout.of(adapter.modules)
        require_only_delta(optimizer, adapter)
        # an impossible variant or direction fails here, not at step 1
        project(torch.zeros(self.layout.size), direction.vectors, self.layout, variant, rescale)
        self._before: Tensor | None = None

    def before_step(self) -> dict[str, Any]:
        """After the last backward of an optimizer step, before clipping.

        Returns:
            the metrics of `projection.project`; norms are those of the whole gradient before clipping.

        Raises:
            RankspaceError: modules without a gradient (says how many, names the first), or NaN or Inf.
        """
        self.adapter.require_fresh()
        projected, metrics = project(
            read_grad(self.adapter), self.direction.vectors, self.layout, self.variant, self.rescale
        )
        if self.variant not in UNPROJECTED:
            write_grad(self.adapter, projected)
        self._before = self._delta()
        return metrics

    def after_step(self) -> dict[str, Any]:
        """Right after optimizer.step().

        Returns:
            the metrics of `projection.update_cosine` for the change as applied (in the `update` variant: after its
            projection, with `raw_update_cos_mean` for the optimizer's own).
        """
        if self._before is None:
            raise RankspaceError("after_step without before_step: call both around optimizer.step()")
        before, self._before = self._before, None
        update, v, extra = self._delta() - before, self.direction.vectors, {}
        if self.variant == "update":
            update, raw = project_update(update, v, self.layout, "subspace" if v.ndim == 2 else "one_sided")
            self._set(before + update)
            extra = {"raw_update_cos_mean": raw["cos_mean"]}
        self.adapter.refresh()
        return update_cosine(update, v, self.layout) | extra

    @torch.no_grad()
    def _delta(self) -> Tensor:
        """All delta_S in fp32 on their device, [sum r], a copy."""
        return torch.cat([p.detach().float() for p in self.adapter.parameters()])

    @torch.no_grad()
    def _set(self, flat: Tensor) -> None:
        for parameter, part in zip(self.adapter.parameters(), split_flat(flat, self.adapter.modules), strict=True):
            parameter.copy_(part)


def read_grad(adapter: Adapter) -> Tensor:
    """The accumulated gradient of all delta_S, fp32 [sum r] on their device.

    Raises:
        RankspaceError: modules without a gradient; says how many and names the first.
    """
    names = [name for name, _ in adapter.modules]
    grads = [p.grad if p.requires_grad else None for p in adapter.parameters()]
    missing = [name for name, g in zip(names, grads, strict=True) if g is None]
    if missing:
        raise RankspaceError(
            f"the projection sees {len(names) - len(missing)} of {len(names)} modules, {missing[0]}.delta_S has no"
            " gradient: leave every adapter.parameters() trainable and call backward before, zero_grad after"
        )
    return torch.cat([g.detach().float().reshape(-1) for g in grads if g is not None])


@torch.no_grad()
def write_grad(adapter: Adapter, flat: Tensor) -> None:
    """Put a gradient [sum r] in the delta_S.grad, in place."""
    for parameter, part in zip(adapter.parameters(), split_flat(flat, adapter.modules), strict=True):
        assert parameter.grad is not None  # read_grad has been through all of them
        parameter.grad.copy_(part.view_as(parameter.grad))


def require_only_delta(optimizer: Any, adapter: Adapter) -> None:
    """Raise RankspaceError unless the optimizer steps on every delta_S and on nothing else, and they lie whole."""
    if "deepspeed" in type(optimizer).__module__:
        raise RankspaceError("DeepSpeed keeps gradients elsewhere: use rankspace.ds_hook.ProjectionHook(engine, ...)")
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for (name, size), parameter in zip(adapter.modules, adapter.parameters(), strict=True):
        if hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") or parameter.numel() != size:
            raise RankspaceError(
                f"{name}.delta_S is partitioned: under DeepSpeed use rankspace.ds_hook.ProjectionHook; FSDP is not"
                " supported, delta_S is small enough for plain data parallelism"
            )
        if held.pop(id(parameter), None) is None:
            raise RankspaceError(
                f"the optimizer does not hold {name}.delta_S: attach before making it, and give it adapter.parameters()"
            )
    if others := [p for p in held.values() if p.requires_grad]:
        raise RankspaceError(
            f"the optimizer also trains {len(others)} other tensor(s), the first of shape {tuple(others[0].shape)}: the"
            " direction holds only while all else is frozen; attach freezes it, do not unfreeze it again"
        )
