"""The projection around any torch optimizer: a plain loop, accelerate, DDP, FSDP2, the Hugging Face trainers (trl.py).

Order of one optimizer step; who holds what:

    for micro-batch: loss.backward()           autograd accumulates in delta_S.grad (DDP, FSDP2 reduce at the last one)
    hook.before_step()                         read all delta_S.grad -> project -> write back       (this file)
    clip_grad_norm_(adapter.parameters(), 1)   clips the *projected* gradient
    optimizer.step()                           AdamW, next parameters
    hook.after_step()                          measure the applied change, project it in the `update` variant

Clipping c(g) = g · min(1, M / ‖g‖) and the projection P of projection.py (homogeneous, module by module):

    P keeps every module's norm (rescaled, nothing annihilated):   P(c(g)) = c(P(g)),  the order is free
    otherwise ‖P(g)‖ < ‖g‖:                                        P(c(g)) = s · c(P(g)),  s <= 1, too short a step

Guard. Raises when: a delta_S has no gradient (frozen, never used in the forward, or zeroed too early); the optimizer
does not hold every delta_S, or trains anything besides; an engine keeps the gradient elsewhere (DeepSpeed: use
ds_hook.ProjectionHook; FSDP1); the form is 'summed' (its gradient comes from `adapter.fold`); NaN or Inf. Does not
cover: gradients changed by others between the calls, a second optimizer over the same delta_S, or fp16 loss scaling
(direction and cosines do not mind a scale, `grad_norm` does).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor

from .adam import INSIDE, Adam, Inside
from .adapter import Adapter
from .direction import Direction
from .errors import RankspaceError
from .hook_base import Intervention, StepHook, whole_gradient
from .merge import split_flat
from .position import Placement
from .projection import Variant
from .sharded import fill, is_sharded, whole


class GradientHook(StepHook):
    """Projects delta_S's gradient once per optimizer step. See the top of this file for the order of calls.

    Args:
        optimizer: any torch optimizer (or a wrapper with `param_groups`) over exactly `adapter.parameters()`.
        adapter, direction, variant, rescale, reference: as in `StepHook`.

    Raises:
        RankspaceError: direction, optimizer or form do not fit the adapter.
    """

    def __init__(
        self,
        optimizer: Any,
        adapter: Adapter,
        direction: Direction,
        variant: Variant | Placement | Inside | Intervention = "one_sided",
        rescale: bool | None = None,
        reference: Direction | None = None,
    ):
        if adapter.form == "summed":
            raise RankspaceError("the form 'summed' leaves delta_S.grad empty: attach with form='factored' or 'merged'")
        super().__init__(adapter, direction, variant, rescale, reference)
        require_only_delta(optimizer, adapter)
        self.optimizer = optimizer
        if self.does.variant in INSIDE:
            self._adam()

    def _read(self) -> Tensor:
        return read_grad(self.adapter)

    def _write(self, projected: Tensor) -> None:
        write_grad(self.adapter, projected)

    @torch.no_grad()
    def _delta(self) -> Tensor:
        return torch.cat([whole(p.detach()).float().flatten() for p in self.adapter.parameters()])

    @torch.no_grad()
    def _set(self, flat: Tensor) -> None:
        for parameter, part in zip(self.adapter.parameters(), split_flat(flat, self.adapter.modules), strict=True):
            fill(parameter, part)

    def _moment(self) -> Tensor | None:
        kept = self._moments()
        return torch.cat([whole(m).float().flatten() for m in kept]) if kept else None

    @torch.no_grad()
    def _set_moment(self, flat: Tensor) -> None:
        for moment, part in zip(self._moments(), split_flat(flat, self.adapter.modules), strict=True):
            fill(moment, part)

    def _second(self) -> Tensor:
        return torch.cat([whole(state["exp_avg_sq"]).float().flatten() for state in self._states()])

    @torch.no_grad()
    def _set_second(self, flat: Tensor) -> None:
        for state, part in zip(self._states(), split_flat(flat, self.adapter.modules), strict=True):
            fill(state["exp_avg_sq"], part)

    def _adam(self) -> Adam:
        return Adam.of(self.optimizer.param_groups, self._states())

    def _states(self) -> list[dict[str, Any]]:
        return [self.optimizer.state.get(p, {}) for p in self.adapter.parameters()]

    def _moments(self) -> list[Tensor]:
        """exp_avg of the Adam family or SGD's momentum_buffer, one a module; [] where there is neither."""
        found = [s.get("exp_avg", s.get("momentum_buffer")) for s in self._states()]
        kept = [
            m for m in found if m is not None
        ]  # before the first step there is none; one of some is no optimizer of ours
        return kept if len(kept) == len(found) else []


def hook_into(
    owner: Any,
    method: str,
    hook: StepHook,
    logged: Callable[[dict[str, Any]], None] | None = None,
    clip: tuple[Any, str] | None = None,
) -> None:
    """Project around a trainer's own step: `owner.method(...)` becomes before_step, it, after_step.

    For trainers whose optimizer step is one method that clips and steps, such as verl's `FSDPEngine.optimizer_step`; with
    `clip` also for loops that clip and step in two calls, such as prime-rl's (docs/interop.md). Under several ranks the
    calls must be made on each of them, as they are wherever gradients are sharded.

    Args:
        owner: the object that holds the method; only this object is changed.
        method: its name. It must step once; its answer is passed on.
        logged: called with the metrics after each step.
        clip: (owner, name) of the call that clips, where the step is a later call of its own: the projection then comes
            before that call. A step without such a call (clipping switched off) is projected at `method`.

    Raises:
        RankspaceError: no such method, or one that is hooked already; from a second clipping without a step between, since
            an already projected gradient would be projected again.
    """
    projected: list[dict[str, Any]] = []  # the metrics of a step that is under way

    def project_once(*, clipping: bool) -> None:
        if not projected:
            projected.append(hook.before_step())
        elif clipping:
            raise RankspaceError(
                f"{clip[1] if clip else method} was called twice without {type(owner).__name__}.{method} between: the"
                " projection belongs to one clipping and one step"
            )

    def stepped(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        project_once(clipping=False)
        metrics = projected.pop()  # before the step: one that raises leaves nothing behind
        answer = inner(*args, **kwargs)
        metrics |= hook.after_step()
        if logged is not None:
            logged(metrics)
        return answer

    def clipped(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        project_once(clipping=True)
        return inner(*args, **kwargs)

    wrappers = [(owner, method, stepped)] + ([] if clip is None else [(*clip, clipped)])
    inner_ones = [_hookable(place, name) for place, name, _ in wrappers]  # all are looked at before one is changed
    for (place, name, wrapper), inner in zip(wrappers, inner_ones, strict=True):
        setattr(place, name, _around(place, inner, wrapper))


def _around(owner: Any, inner: Callable[..., Any], wrapper: Callable[..., Any]) -> MethodType:
    """`wrapper(inner, ...)` as a method of `owner`: torch's schedulers bind the `step` that they find, a function would
    then get the optimizer as its first argument."""

    @functools.wraps(inner)
    def around(_: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(inner, *args, **kwargs)

    around._rankspace_hooked = True  # type: ignore[attr-defined]  # a mark on the function itself
    return MethodType(around, owner)


def _hookable(owner: Any, method: str) -> Callable[..., Any]:
    """The method, or RankspaceError where there is none or it is hooked already."""
    inner = getattr(owner, method, None)
    whose = getattr(owner, "__name__", type(owner).__name__)  # a module has a name of its own
    if not callable(inner):
        raise RankspaceError(f"{whose} has no method {method!r} to project around")
    if getattr(inner, "_rankspace_hooked", False):
        raise RankspaceError(f"{whose}.{method} is hooked already: the gradient would be projected twice")
    return cast("Callable[..., Any]", inner)


def read_grad(adapter: Adapter) -> Tensor:
    """The accumulated gradient of all delta_S, fp32 [sum r] on their device.

    Raises:
        RankspaceError: modules without a gradient; says how many and names the first.
    """
    grads = [whole(p.grad) if p.requires_grad and p.grad is not None else None for p in adapter.parameters()]
    return whole_gradient(
        adapter,
        grads,
        f".{adapter.parameter} has no gradient: leave every adapter.parameters() trainable and call backward before,"
        " zero_grad after",
    )


@torch.no_grad()
def write_grad(adapter: Adapter, flat: Tensor) -> None:
    """Put a gradient [sum r] in the delta_S.grad, in place."""
    for parameter, part in zip(adapter.parameters(), split_flat(flat, adapter.modules), strict=True):
        assert parameter.grad is not None  # read_grad has been through all of them
        fill(parameter.grad, part)


def require_only_delta(optimizer: Any, adapter: Adapter) -> None:
    """Raise RankspaceError unless the optimizer steps on every delta_S and on nothing else, and they lie whole."""
    if "deepspeed" in type(optimizer).__module__:
        raise RankspaceError("DeepSpeed keeps gradients elsewhere: use rankspace.ds_hook.ProjectionHook(engine, ...)")
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for (name, size), parameter in zip(adapter.modules, adapter.parameters(), strict=True):
        if hasattr(parameter, "ds_id") or parameter.numel() != size:
            raise RankspaceError(
                f"{name}.{adapter.parameter} is partitioned: under DeepSpeed use rankspace.ds_hook.ProjectionHook; of FSDP use"
                " fully_shard (FSDP2), which keeps parameters apart"
            )
        if is_sharded(parameter) and adapter.form != "factored":
            raise RankspaceError(
                f"under FSDP the form {adapter.form!r} would merge weights that are in parts: attach with form='factored'"
            )
        if held.pop(id(parameter), None) is None:
            raise RankspaceError(
                f"the optimizer does not hold {name}.{adapter.parameter}: attach before making it, and give it"
                " adapter.parameters()"
            )
    if others := [p for p in held.values() if p.requires_grad]:
        raise RankspaceError(
            f"the optimizer also trains {len(others)} other tensor(s), the first of shape {tuple(others[0].shape)}: the"
            " direction holds only while all else is frozen; attach freezes it, do not unfreeze it again"
        )
