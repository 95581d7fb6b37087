"""The projection inside DeepSpeed: the only file that touches an engine's gradients.

Order of one optimizer step; who holds what:

    for micro-batch: engine.backward(loss)     DeepSpeed divides by the accumulation steps, accumulates, and at the
                                               boundary reduces over ranks (mean)
    hook.before_step()                         gather full gradients -> project -> write back       (this file)
    engine.step()                              DeepSpeed clips the *projected* gradient, AdamW, next parameters
    hook.after_step()                          measure the applied change, project it in the `update` variant

Under ZeRO 1, 2 and 3 `param.grad` is None at the boundary: code that reads it silently does nothing. Everything here
goes through the safe full-gradient API, on every rank (its calls are collective).

Guard. Raises when: the boundary is not reached; an adapter module has no gradient (frozen, outside the optimizer, or
never used in the forward); engine and adapter disagree in number of delta_S; gradients hold NaN or Inf; what was
written does not read back (checked at the first step, or every step with verify='always'). Does not cover: an
optimizer that was given the wrong parameters besides delta_S; gradients changed by others between the two calls.

Precision. Best: the base model in bf16, delta_S in fp32, DeepSpeed's own bf16 mode *off* (it then trains the fp32
parameters as they are). With `bf16.enabled` DeepSpeed casts delta_S itself to bf16, holds an fp32 master copy in its
optimizer, and (unless data_types.grad_accum_dtype is fp32) gradients in bf16: the projection is then exact only up to
bf16 rounding of each entry (relative 2^-9). `gather_delta` always returns the fp32 master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adam import INSIDE, Adam, Inside
from .adapter import PARAMETER, Adapter
from .direction import Direction
from .errors import RankspaceError
from .hook_base import Intervention, StepHook, whole_gradient
from .merge import split_flat
from .position import Placement
from .projection import Variant

Moment = Literal["exp_avg", "exp_avg_sq"]


class ProjectionHook(StepHook):
    """Projects delta_S's gradient once per optimizer step. See the top of this file for the order of calls.

    Args:
        engine: a DeepSpeedEngine whose model carries `adapter`.
        adapter, direction, variant, rescale, reference: as in `StepHook`.
        verify: read gradients back after writing: 'first' step only, 'always' or 'never'.

    Raises:
        RankspaceError: the direction or the engine does not belong to the adapter.
    """

    def __init__(
        self,
        engine: Any,
        adapter: Adapter,
        direction: Direction,
        variant: Variant | Placement | Inside | Intervention = "one_sided",
        rescale: bool | None = None,
        verify: Literal["first", "always", "never"] = "first",
        reference: Direction | None = None,
    ):
        super().__init__(adapter, direction, variant, rescale, reference)
        self.engine, self.verify = engine, verify
        self._require_same_modules()
        undo_phantom_step(engine)
        if self.does.variant in INSIDE:
            self._adam()

    def before_step(self, step: int | None = None, active: bool = True) -> dict[str, Any]:
        if not self.engine.is_gradient_accumulation_boundary():
            raise RankspaceError("projection before the accumulation boundary: call it only for the last micro-batch")
        return super().before_step(step, active)

    def _read(self) -> Tensor:
        return gather_grad(self.engine, self.adapter)

    def _write(self, projected: Tensor) -> None:
        scatter_grad(self.engine, self.adapter, projected)
        if self.verify != "never":
            self._read_back(projected)

    def _delta(self) -> Tensor:
        return gather_delta(self.engine, self.adapter)

    def _set(self, flat: Tensor) -> None:
        scatter_delta(self.engine, self.adapter, flat)

    def _moment(self) -> Tensor | None:
        return gather_moment(self.engine, self.adapter)

    def _set_moment(self, flat: Tensor) -> None:
        scatter_moment(self.engine, self.adapter, flat)

    def _second(self) -> Tensor:
        return gather_moment(self.engine, self.adapter, "exp_avg_sq")

    def _set_second(self, flat: Tensor) -> None:
        scatter_moment(self.engine, self.adapter, flat, "exp_avg_sq")

    def _adam(self) -> Adam:
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        return Adam.of(optimizer.param_groups, list(optimizer.state.values()))

    def _require_same_modules(self) -> None:
        seen = sum(name.rsplit(".", 1)[-1] == PARAMETER for name, _ in self.engine.module.named_parameters())
        if seen != len(self.adapter.modules):
            raise RankspaceError(
                f"the engine's model has {seen} delta_S, the adapter {len(self.adapter.modules)}: attach before"
                " deepspeed.initialize and pass this same model"
            )

    def _read_back(self, expected: Tensor) -> None:
        found = gather_grad(self.engine, self.adapter)
        dtype = _grad_dtype(self.engine, self.adapter)
        # a mode that keeps gradients in 16 bits rounds what was written; anything beyond that is a write that nobody reads
        tolerance = 4 * torch.finfo(dtype).eps * expected.abs().max().item()
        if (found - expected).abs().max().item() > tolerance:
            raise RankspaceError(
                "projected gradients did not arrive in the optimizer: this DeepSpeed mode is not supported"
            )
        if self.verify == "first":
            self.verify = "never"


def gather_grad(engine: Any, adapter: Adapter) -> Tensor:
    """The accumulated, reduced gradient of all delta_S, fp32 [sum r] on the engine's device. Collective.

    Raises:
        RankspaceError: modules without a gradient; says how many and names the first.
    """
    from deepspeed.utils import safe_get_full_grad

    mapped = _optimized_ids(engine)  # safe_get_full_grad raises for a parameter that the optimizer does not hold
    grads = [safe_get_full_grad(p) if p.requires_grad and id(p) in mapped else None for p in adapter.parameters()]
    return whole_gradient(
        adapter, grads, " has no gradient: pass every adapter.parameters() to the optimizer and leave them trainable"
    )


def scatter_grad(engine: Any, adapter: Adapter, flat: Tensor) -> None:
    """Write a full gradient [sum r], equal on every rank, where the optimizer will look for it. Collective."""
    from deepspeed.utils import safe_set_full_grad

    for parameter, part in zip(adapter.parameters(), split_flat(flat, adapter.modules), strict=True):
        staged = getattr(parameter, "_hp_grad", None)
        if staged is not None:
            # BF16_Optimizer (ZeRO-1 with fp32 accumulation): safe_get reads the fp32 buffer, but safe_set would
            # write the bf16 staging gradient that nobody reads any more
            staged.copy_(part.view_as(staged))
        else:
            safe_set_full_grad(parameter, _padded(parameter, part))


@torch.no_grad()
def gather_delta(engine: Any, adapter: Adapter) -> Tensor:
    """All delta_S in fp32 (the master copy where there is one), [sum r] on the engine's device. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    masters = _unfused_masters(engine)
    parts = []
    for parameter in adapter.parameters():
        value = masters.get(id(parameter))
        if value is None:
            value = safe_get_full_fp32_param(parameter)
        # no master: ZeRO-0 with fp32 delta_S, whose parameter is what the optimizer steps
        parts.append((parameter if value is None else value).detach().float().reshape(-1).clone())
    return torch.cat(parts)


@torch.no_grad()
def scatter_delta(engine: Any, adapter: Adapter, flat: Tensor) -> None:
    """Set all delta_S, master copies and model parameters alike, to `flat` [sum r], equal on every rank. Collective.

    Optimizer moments are left as they are. For resuming and for the `update` variant.
    """
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    masters = _unfused_masters(engine)
    parameters = adapter.parameters()
    parts = split_flat(flat.to(parameters[0].device), adapter.modules)
    # master copy first, then the model's: the next step starts from the master, the next forward from the model
    for parameter, part in zip(parameters, parts, strict=True):
        if id(parameter) in masters:
            masters[id(parameter)].copy_(part)
        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, _own_partition(parameter, part))
        else:
            safe_set_full_fp32_param(parameter, part)
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0, enabled=bool(partitioned)):
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data.copy_(part)
    adapter.refresh()


@torch.no_grad()
def gather_moment(engine: Any, adapter: Adapter, kind: Moment = "exp_avg") -> Tensor:
    """A moment of AdamW of all delta_S, by default the first, fp32 [sum r] on the engine's device. Collective.

    Raises:
        RankspaceError: the optimizer keeps none where it is looked for (another optimizer, or no step yet).
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    parts, masters = [], _unfused_masters(engine)
    for (name, _), parameter in zip(adapter.modules, adapter.parameters(), strict=True):
        whole = _whole_moment(engine, masters.get(id(parameter), parameter), kind)
        value = safe_get_full_optimizer_state(parameter, kind) if whole is None else whole
        if value is None:
            raise RankspaceError(f"the optimizer keeps no {kind} for {name}.delta_S: this arm needs AdamW")
        parts.append(value.detach().float().reshape(-1).clone())
    return torch.cat(parts)


@torch.no_grad()
def scatter_moment(engine: Any, adapter: Adapter, flat: Tensor, kind: Moment = "exp_avg") -> None:
    """Set a moment of AdamW of all delta_S to `flat` [sum r], equal on every rank. Collective."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    masters = _unfused_masters(engine)
    for parameter, part in zip(adapter.parameters(), split_flat(flat, adapter.modules), strict=True):
        whole = _whole_moment(engine, masters.get(id(parameter), parameter), kind)
        if whole is not None:
            whole.copy_(part)
        elif hasattr(parameter, "ds_id"):
            safe_set_local_optimizer_state(parameter, _own_partition(parameter, part), kind)
        else:
            safe_set_full_optimizer_state(parameter, part, kind)


def _whole_moment(engine: Any, master: Tensor, kind: Moment) -> Tensor | None:
    """The moment where ZeRO-0 leaves it whole with torch's own optimizer; None where ZeRO holds it in partitions."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    found: Tensor | None = optimizer.state.get(master, {}).get(kind)
    return found


@torch.no_grad()
def undo_phantom_step(engine: Any) -> None:
    """Forget the step that DeepSpeed takes on its own in ZeRO-0 with bf16.

    Its unfused optimizer calls AdamW once with zero gradients to make the state: the step counter (bias correction)
    starts one ahead and weight decay is applied once. Before the first real step the state is cleared and the masters
    are taken from the parameters again. Nothing to do in any other mode.
    """
    masters = _unfused_masters(engine)
    if not masters or engine.global_steps:
        return
    engine.optimizer.optimizer.state.clear()
    for parameter in engine.module.parameters():
        if id(parameter) in masters:
            masters[id(parameter)].copy_(parameter)


def _padded(parameter: Any, part: Tensor) -> Tensor:
    """`part`, with the zeros that ZeRO-3 adds when the rank count does not divide r (its setter cuts past the end)."""
    if not hasattr(parameter, "ds_id"):
        return part
    total = parameter.ds_tensor.numel() * torch.distributed.get_world_size(parameter.ds_process_group)
    return torch.nn.functional.pad(part, (0, total - part.numel()))


def _own_partition(parameter: Any, part: Tensor) -> Tensor:
    """This rank's slice of a full ZeRO-3 value."""
    n = parameter.ds_tensor.numel()
    return _padded(parameter, part).narrow(0, n * torch.distributed.get_rank(parameter.ds_process_group), n)


def _unfused_masters(engine: Any) -> dict[int, Tensor]:
    """id(parameter) -> fp32 master for ZeRO-0 with bf16, whose optimizer keeps them in parallel lists."""
    optimizer = engine.optimizer
    low, high = getattr(optimizer, "fp16_groups", None), getattr(optimizer, "fp32_groups", None)
    if low is None or high is None:
        return {}
    return {id(p): m for ps, ms in zip(low, high, strict=True) for p, m in zip(ps, ms, strict=True)}


def _optimized_ids(engine: Any) -> set[int]:
    """ids of the model parameters that the engine's optimizer updates, whichever wrapper it is."""
    optimizer = engine.optimizer
    for attribute in ("bit16_groups", "bf16_groups", "fp16_groups"):
        groups: Sequence[Sequence[Tensor]] | None = getattr(optimizer, attribute, None)
        if groups:
            return {id(p) for group in groups for p in group}
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _grad_dtype(engine: Any, adapter: Adapter) -> torch.dtype:
    parameter = adapter.parameters()[0]
    # the buffer of ZeRO-1 in bf16, else the plain .grad of ZeRO-0, else what the engine says it accumulates in
    staged: Tensor | None = getattr(parameter, "_hp_grad", None)
    if staged is not None:
        return staged.dtype
    if parameter.grad is not None:
        return parameter.grad.dtype
    accumulation: torch.dtype = engine.get_data_types()[1]
    return accumulation
