"""What every hook does around one optimizer step, wherever the gradient lies: hook.py (torch), ds_hook.py (DeepSpeed).

before_step    g = read()  ->  g' = project(g)  ->  write(g')         once, on the whole reduced gradient
after_step     u = delta_S after − before;  `update` variant: delta_S = before + project_update(u)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter
from .direction import Direction
from .errors import RankspaceError
from .projection import UNPROJECTED, Layout, Variant, drift_cosine, project, project_update, update_cosine


class StepHook:
    """The projection once per optimizer step. Subclasses say where gradient and parameters lie.

    Args:
        adapter: whose delta_S train. direction: v_hack or a control; checked against the adapter's modules.
        variant, rescale: as in `projection.project`; `update` leaves the gradient alone and projects the applied
            change of the parameters instead.

    Raises:
        RankspaceError: the direction does not belong to the adapter, or the variant does not fit it.
    """

    def __init__(self, adapter: Adapter, direction: Direction, variant: Variant, rescale: bool | None):
        direction.require(adapter.modules)
        self.adapter, self.direction, self.variant, self.rescale = adapter, direction, variant, rescale
        self.layout = Layout.of(adapter.modules)
        self._before: Tensor | None = None
        # an impossible variant or direction fails here, not at step 1
        project(torch.zeros(self.layout.size), direction.vectors, self.layout, variant, rescale)

    def set_direction(self, direction: Direction) -> None:
        """Project against another direction from the next step on (v_hack refreshed during training)."""
        direction.require(self.adapter.modules)
        if direction.vectors.ndim != self.direction.vectors.ndim:
            raise RankspaceError("a refreshed direction must have as many vectors per module as the one before")
        self.direction = direction

    def before_step(self) -> dict[str, Any]:
        """After the last backward of an optimizer step, before clipping; under DeepSpeed on every rank, at the
        accumulation boundary.

        Returns:
            the metrics of `projection.project`; norms are those of the whole reduced gradient before clipping.

        Raises:
            RankspaceError: modules without a gradient (says how many, names the first), or NaN or Inf.
        """
        self.adapter.require_fresh()
        projected, metrics = project(self._read(), self.direction.vectors, self.layout, self.variant, self.rescale)
        if self.variant not in UNPROJECTED:
            self._write(projected)
        self._before = self._delta()
        return metrics

    def after_step(self) -> dict[str, Any]:
        """Right after optimizer.step() or engine.step(); under DeepSpeed on every rank.

        Returns:
            the metrics of `projection.update_cosine` for the change as applied (in the `update` variant: after its
            projection, with `raw_update_cos_mean` for the optimizer's own), and `drift_cos_mean`, the same cosine for
            everything since delta_S = 0.
        """
        if self._before is None:
            raise RankspaceError("after_step without before_step: call both around the optimizer's step")
        before, self._before = self._before, None
        update, v, extra = self._delta() - before, self.direction.vectors, {}
        if self.variant == "update":
            update, raw = project_update(update, v, self.layout, "subspace" if v.ndim == 2 else "one_sided")
            self._set(before + update)
            extra = {"raw_update_cos_mean": raw["cos_mean"]}
        self.adapter.refresh()
        extra["drift_cos_mean"] = float(drift_cosine(before + update, v, self.layout).mean())
        return update_cosine(update, v, self.layout) | extra

    def _read(self) -> Tensor:
        """The whole gradient of all delta_S, fp32 [sum r]."""
        raise NotImplementedError

    def _write(self, projected: Tensor) -> None:
        """Put a gradient [sum r] where the optimizer will look for it."""
        raise NotImplementedError

    def _delta(self) -> Tensor:
        """All delta_S in fp32, [sum r], a copy."""
        raise NotImplementedError

    def _set(self, flat: Tensor) -> None:
        """Set all delta_S to `flat` [sum r]."""
        raise NotImplementedError


def whole_gradient(adapter: Adapter, grads: Sequence[Tensor | None], what_to_do: str) -> Tensor:
    """The modules' gradients, in adapter order, as one fp32 [sum r].

    Raises:
        RankspaceError: some are None; says how many and names the first, followed by `what_to_do`.
    """
    names = [name for name, _ in adapter.modules]
    missing = [name for name, g in zip(names, grads, strict=True) if g is None]
    if missing:
        raise RankspaceError(
            f"the projection sees {len(names) - len(missing)} of {len(names)} modules, {missing[0]}{what_to_do}"
        )
    return torch.cat([g.detach().float().reshape(-1) for g in grads if g is not None])
