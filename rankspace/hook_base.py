"""What every hook does around one optimizer step, wherever the gradient lies: hook.py (torch), ds_hook.py (DeepSpeed).

before_step    g = read()  ->  g' = project(g)  ->  write(g')         once, on the whole reduced gradient
after_step     u = delta_S after − before;  `update` variant: delta_S = before + project_update(u)
               placements (position.py): delta_S and first moment put where the arm wants them
               inside AdamW (adam.py): moments changed and delta_S computed anew from them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adam import (
    INSIDE,
    Adam,
    Inside,
    clip_share,
    fisher_update,
    require_inside,
    untouched_second,
    without_hackward,
    zeros_like_or,
)
from .adapter import Adapter
from .direction import Direction
from .errors import RankspaceError
from .position import PLACEMENTS, Placement, placed, position_metrics, require_placement, shifted, without_component
from .projection import STRENGTH, UNWRITTEN, Layout, Variant, project, project_update, update_cosine


@dataclass(frozen=True)
class Intervention:
    """Everything an arm does to gradients and parameters.

    variant: a gradient map of `projection.project`, a placement of position.py (which leaves the gradient alone), or one
        of adam.py, which acts inside AdamW.
    rescale: overrides the variant's own choice. strength: of `bias`, share of the gradient norm.
    dose: of the placements, per module in units of delta_S. ramp: of `setpoint`, optimizer steps.
    """

    variant: Variant | Placement | Inside = "one_sided"
    rescale: bool | None = None
    strength: float = STRENGTH
    dose: float = 0.0
    ramp: int = 1


class StepHook:
    """An intervention once per optimizer step. Subclasses say where gradient, parameters and moments lie.

    Args:
        adapter: whose delta_S train. direction: v_hack or a control; checked against the adapter's modules.
        variant: its name, or an `Intervention` where more than the name is to be said; `update` leaves the gradient
            alone and projects the applied change of the parameters instead.
        rescale: as in `projection.project`; only beside a name.
        reference: the v_hack that positions are measured against besides `direction` (`position_metrics`), never
            acted on; it stays when `direction` is refreshed.

    Raises:
        RankspaceError: a direction does not belong to the adapter, or the variant does not fit it.
    """

    def __init__(
        self,
        adapter: Adapter,
        direction: Direction,
        variant: Variant | Placement | Inside | Intervention,
        rescale: bool | None,
        reference: Direction | None = None,
    ):
        for one in (direction, reference):
            if one is not None:
                one.require(adapter.modules)
        self.adapter, self.direction, self.reference = adapter, direction, reference
        self.does = variant if isinstance(variant, Intervention) else Intervention(variant, rescale)
        self.layout = Layout.of(adapter.modules)
        self._before: Tensor | None = None
        self._handed: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # of m_only: g, g', both moments before
        self._step, self._active = -1, True
        # an impossible variant or direction fails here, not at step 1
        self._project(torch.zeros(self.layout.size))
        if self.does.variant in PLACEMENTS:
            require_placement(direction.vectors, self.does.variant, self.does.dose, self.does.ramp)
        if self.does.variant in INSIDE:
            require_inside(direction.vectors, self.does.variant)

    @property
    def variant(self) -> Variant | Placement | Inside:
        return self.does.variant

    def set_direction(self, direction: Direction) -> None:
        """Project against another direction from the next step on (v_hack refreshed during training)."""
        direction.require(self.adapter.modules)
        if direction.vectors.ndim != self.direction.vectors.ndim:
            raise RankspaceError("a refreshed direction must have as many vectors per module as the one before")
        self.direction = direction

    def start(self) -> None:
        """Before the first step of a run that is not resumed: `shift` puts delta_S at dose · v. Else nothing."""
        if self.does.variant == "shift":
            self._set(shifted(self.direction.vectors, self.layout, self.does.dose))
            self.adapter.refresh()

    def before_step(self, step: int | None = None, active: bool = True) -> dict[str, Any]:
        """After the last backward of an optimizer step, before clipping; under DeepSpeed on every rank, at the
        accumulation boundary.

        Args:
            step: number of the optimizer step from 0 (a resumed run knows it); None counts the calls.
            active: False measures this step and leaves it alone, whatever the variant.

        Returns:
            the metrics of `projection.project`; norms are those of the whole reduced gradient before clipping.

        Raises:
            RankspaceError: modules without a gradient (says how many, names the first), or NaN or Inf.
        """
        self.adapter.require_fresh()
        self._step, self._active = self._step + 1 if step is None else step, active
        gradient = self._read()
        projected, metrics = self._project(gradient)
        if self._gradient_variant() not in UNWRITTEN:
            self._write(projected)
        self._before, self._handed = self._delta(), None
        if active and self.does.variant == "m_only":
            begun = self._adam().steps > 0
            first, second = (self._moment(), self._second()) if begun else (None, None)
            self._handed = gradient, projected, zeros_like_or(first, gradient), zeros_like_or(second, gradient)
        return metrics

    def after_step(self) -> dict[str, Any]:
        """Right after optimizer.step() or engine.step(); under DeepSpeed on every rank.

        Returns:
            the metrics of `projection.update_cosine` for the change as applied (after what `update` or a placement did
            to it; `update` adds `raw_update_cos_mean` for the optimizer's own; placements, `moments` and `fisher` add
            `placed_share`, the share of modules that they moved), and those of `position.position_metrics`.
        """
        if self._before is None:
            raise RankspaceError("after_step without before_step: call both around the optimizer's step")
        before, self._before = self._before, None
        v, delta, extra = self.direction.vectors, self._delta(), {}
        if self._active and self.does.variant == "update":
            update, raw = project_update(delta - before, v, self.layout, "subspace" if v.ndim == 2 else "one_sided")
            delta = before + update
            self._set(delta)
            extra = {"raw_update_cos_mean": raw["cos_mean"]}
        elif self._active and self.does.variant in ("leash", "setpoint"):
            delta, extra = self._place(delta)
        elif self._active and self.does.variant in INSIDE:
            delta, extra = self._again(before, delta)
        self.adapter.refresh()
        reference = None if self.reference is None else self.reference.vectors
        extra |= position_metrics(delta, delta - before, v, reference, self.layout)
        return update_cosine(delta - before, v, self.layout) | extra

    def _gradient_variant(self) -> Variant:
        """The gradient map of this step: placements leave the gradient alone, and of those inside AdamW all but m_only."""
        if self._active and self.does.variant == "m_only":
            return "one_sided"
        if not self._active or self.does.variant in (*PLACEMENTS, *INSIDE):
            return "off"
        return self.does.variant  # type: ignore[return-value]  # a gradient map

    def _project(self, g: Tensor) -> tuple[Tensor, dict[str, Any]]:
        does = self.does
        return project(g, self.direction.vectors, self.layout, self._gradient_variant(), does.rescale, does.strength)

    def _place(self, delta: Tensor) -> tuple[Tensor, dict[str, float]]:
        does, v = self.does, self.direction.vectors
        delta, moved = placed(delta, v, self.layout, does.variant, does.dose, does.ramp, self._step)  # type: ignore[arg-type]
        self._set(delta)
        moment = self._moment()
        if moment is not None:
            self._set_moment(without_component(moment, v, self.layout, moved))
        return delta, {"placed_share": float(moved.double().mean())}

    def _again(self, before: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, float]]:
        """AdamW's step as the arms of adam.py want it, from the moments it has left."""
        adam, v, variant = self._adam(), self.direction.vectors, self.does.variant
        first, second = self._moment(), self._second()
        assert first is not None  # `_adam` has refused what is no AdamW
        extra: dict[str, float] = {}
        if variant == "fisher":
            update, moved = fisher_update(delta - before, v, self.layout, adam.inverse_root(second.double()))
            delta = before + update
            extra = {"placed_share": float(moved.double().mean())}
        elif variant == "moments":
            first, moved = without_hackward(first, v, self.layout)
            self._set_moment(first)
            delta = adam.step(before, first, second)
            extra = {"placed_share": float(moved.double().mean())}
        else:
            assert self._handed is not None  # set by before_step of the same step
            g, projected, earlier, second = self._handed
            share = clip_share(first, earlier, projected, adam.beta1)
            second = untouched_second(second, g, share, adam.beta2)
            self._set_second(second)
            delta = adam.step(before, first, second)
        self._set(delta)
        return delta, extra

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

    def _moment(self) -> Tensor | None:
        """The optimizer's first moment of all delta_S, fp32 [sum r], a copy; None where it keeps none."""
        raise NotImplementedError

    def _set_moment(self, flat: Tensor) -> None:
        """Set that moment to `flat` [sum r]."""
        raise NotImplementedError

    def _second(self) -> Tensor:
        """AdamW's second moment of all delta_S, fp32 [sum r], a copy."""
        raise NotImplementedError

    def _set_second(self, flat: Tensor) -> None:
        """Set that moment to `flat` [sum r]."""
        raise NotImplementedError

    def _adam(self) -> Adam:
        """The optimizer's hyperparameters and step count. RankspaceError where it is no AdamW."""
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
