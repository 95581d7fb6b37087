"""The projection in Hugging Face trainers: TRL's GRPOTrainer, and every other built on transformers.Trainer.

    trainer = trl.GRPOTrainer(model=model, ...)             model: already carries the adapter (rankspace.attach)
    trainer.add_callback(rankspace.trl.ProjectionCallback(adapter, direction))
    trainer.train()

Order of one optimizer step; who holds what:

    for micro-batch: backward                 accelerate accumulates, DDP reduces at the last one
    clip                                      transformers; switched off, because it comes before the callback
    on_pre_optimizer_step                     project, then clip by the same args.max_grad_norm     (this file)
    optimizer.step()
    on_optimizer_step                         measure the applied change, project it in the `update` variant
    on_step_end                               raises if no projection happened
    on_log                                    "projection/..." means of the steps since the last log

`hook.py` says when the order of projecting and clipping matters; taking the clipping over makes it right for every
variant. `grad_norm` in the trainer's logs is that of the gradient before the projection.

Guard. Refuses, in one line each: DeepSpeed under accelerate (its step happens inside backward, before any callback),
FSDP1, fp16 loss scaling, TRL's vLLM generation without `send_merged` (trl_vllm.py: TRL sends the model's own parameters,
so vLLM would sample from the base model for ever), an optimizer that trains anything besides delta_S. Does not cover:
other callbacks that change gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .adapter import Adapter
from .direction import Direction
from .errors import RankspaceError
from .hack_watch import CleanRuns, HackWatch
from .hook import GradientHook
from .hook_base import Intervention
from .lora import LoraAdapter
from .position import Placement
from .projection import Variant
from .trl_vllm import SENDING, send_merged

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise RankspaceError("rankspace.trl needs transformers: pip install 'trl>=1.0' 'transformers>=4.56'") from error

__all__ = ["AlarmCallback", "ProjectionCallback", "log_rows", "send_merged"]

PREFIX = "projection/"
LOGGED = {
    "kl": "kl_all", "entropy": "entropy", "completions/mean_length": "length_mean", "reward": "reward_mean",
    **{PREFIX + name: name for name in ("update_cos_mean", "displacement_own", "update_ref_cos_mean", "displacement_ref")},
}  # fmt: skip
"""{key of the trainer's logs: key of a row}. TRL's KL is over all completions of the step."""


class ProjectionCallback(TrainerCallback):
    """Projects delta_S's gradient once per optimizer step of a Hugging Face trainer. See the top of this file.

    Args:
        adapter: made by `rankspace.attach` on the very model that the trainer gets, before the trainer is made.
        direction: v_hack or a control; checked against the adapter's modules.
        variant, rescale, reference: as in `hook_base.StepHook`.

    `metrics` holds those of the last step, with the per-module tensors `cos`, `null_std` and `update_cos`.

    Raises:
        RankspaceError: here, when direction and adapter do not fit; from trainer.train(), what the guard refuses.
    """

    def __init__(
        self,
        adapter: Adapter,
        direction: Direction,
        variant: Variant | Placement | Intervention = "one_sided",
        rescale: bool | None = None,
        reference: Direction | None = None,
    ):
        direction.require(adapter.modules)
        self.adapter, self.direction, self.variant, self.rescale = adapter, direction, variant, rescale
        self.reference = reference
        self.metrics: dict[str, Any] = {}
        self._hook: GradientHook | None = None
        self._max_norm: float | None = None
        self._projected = False
        self._unlogged: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer, model = kwargs["optimizer"], kwargs["model"]
        _refuse_unsupported(args, optimizer, self.adapter)
        _require_same_modules(model, self.adapter)
        self._hook = GradientHook(optimizer, self.adapter, self.direction, self.variant, self.rescale, self.reference)
        if state.global_step == 0:
            self._hook.start()
        if self._max_norm is None:  # else an interrupted train() has left it with us
            self._max_norm = float(args.max_grad_norm)
        args.max_grad_norm = 0.0
        self._projected = False
        self.adapter.refresh()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hook is None or args.max_grad_norm != 0.0:
            raise RankspaceError("ProjectionCallback joined a running training: add it before trainer.train()")
        self.metrics = self._hook.before_step(state.global_step)
        if self._max_norm:
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self._max_norm)
        self._projected = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hook is not None and self._projected:
            self.metrics |= self._hook.after_step()
            self._unlogged.append({k: float(v) for k, v in self.metrics.items() if isinstance(v, (int, float))})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._projected:
            raise RankspaceError("an optimizer step went by without projection: this transformers has no"
                                 " on_pre_optimizer_step, install 4.46 or newer")  # fmt: skip
        self._projected = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs or not self._unlogged:
            return
        rows, self._unlogged = self._unlogged, []
        means = {PREFIX + key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        logs.update(means)
        if state.log_history:
            state.log_history[-1].update(means)  # the trainer copied its logs there a moment ago

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._max_norm is not None:
            args.max_grad_norm, self._max_norm = self._max_norm, None


class AlarmCallback(TrainerCallback):
    """A `HackWatch` over the trainer's logs, one row a log: stops the training at the first alarm, or only says so.

    Add it after the ProjectionCallback, whose cosines it reads (variant "measure_only" leaves the gradient alone), and log
    as often as the clean runs did. A resumed training goes on from the logs of the checkpoint.

    Args:
        clean, false_alarm_rate: as in `HackWatch`. Clean runs: `calibrate([log_rows(t.state.log_history) for t in ...])`.
        stop: False goes on after an alarm.
        keys: further {key of the logs: key of a row}, such as {"rewards/forged/mean": "forged_rate"}.

    `watch.alarm` is the alarm, or None.
    """

    def __init__(
        self,
        clean: CleanRuns | Path | str,
        false_alarm_rate: float = 0.05,
        stop: bool = True,
        keys: Mapping[str, str] | None = None,
    ):
        self.stop, self.keys = stop, dict(keys or {})
        self.watch = HackWatch(clean, false_alarm_rate)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch = HackWatch(self.watch.clean, self.watch.false_alarm_rate)
        for row in log_rows(state.log_history, self.keys):
            self.watch.step(row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        for row in log_rows([{**(logs or {}), "step": state.global_step}], self.keys):
            alarm = self.watch.step(row)
            if logs is not None:
                logs["alarm_ratio"] = self.watch.ratio
            if alarm is not None:
                logging.getLogger("rankspace").warning("%s", alarm)
                control.should_training_stop = control.should_training_stop or self.stop


def log_rows(history: Sequence[Mapping[str, Any]], keys: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Rows for HackWatch from a trainer's log_history: those with a loss; its step n is row n - 1."""
    named = LOGGED | dict(keys or {})
    return [
        {"step": int(logs["step"]) - 1} | {row: logs[key] for key, row in named.items() if key in logs}
        for logs in history
        if "loss" in logs
    ]


def _refuse_unsupported(args: Any, optimizer: Any, adapter: Adapter) -> None:
    layers = (optimizer, getattr(optimizer, "optimizer", None))
    if any("deepspeed" in type(layer).__module__ for layer in layers):
        raise RankspaceError(
            "under DeepSpeed accelerate steps inside backward, before any callback: train without DeepSpeed (only delta_S"
            " has optimizer state), or use rankspace.ds_hook.ProjectionHook in a loop of your own"
        )
    if getattr(args, "fp16", False):
        raise RankspaceError("fp16=True scales the loss and skips steps: use bf16=True, delta_S itself stays fp32")
    # of a PEFT model TRL sends the merged weights by itself
    if getattr(args, "use_vllm", False) and adapter not in SENDING and not isinstance(adapter, LoraAdapter):
        raise RankspaceError(
            "use_vllm=True sends vLLM the base weights without delta_S, so the policy would never change there: call"
            " rankspace.trl.send_merged(trainer, adapter) before trainer.train(), or set use_vllm=False"
        )


def _require_same_modules(model: Any, adapter: Adapter) -> None:
    """The trainer's model must carry the adapter's own delta_S: a copy would train, and nothing be projected."""
    there = {id(p) for name, p in model.named_parameters() if name.endswith(f".{adapter.parameter}")}
    mine = {id(p) for p in adapter.parameters()}
    if there != mine:
        raise RankspaceError(
            f"the trainer's model has {len(there)} {adapter.parameter}, {len(there & mine)} of them of this adapter's"
            f" {len(mine)}: attach to the model object that the trainer gets, and give it no peft_config"
        )
