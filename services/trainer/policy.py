"""The policy under training: base model + delta_S in a DeepSpeed engine, and one optimizer step on it.

    rows ─> micro-batches ─> loss ─> backward (accumulate, reduce) ─> projection ─> clip ─> AdamW ─> new delta_S
                                                                     ds_hook        DeepSpeed

The loss is normalised by the whole step's number of sequences, so neither the number of ranks nor of micro-batches
changes the gradient.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common.model_names import local
from common.settings import TrainerSettings
from services.trainer.collate import TrainingSample
from services.trainer.directions import contrast, directions
from services.trainer.distributed import start_distributed, take_device
from services.trainer.loss_metrics import mean_by_tokens, require_finite
from services.trainer.micro_batches import micro_batches
from services.trainer.schedule import learning_rate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rankspace.adapter import Adapter
    from rankspace.batch import Batch
    from rankspace.ds_hook import ProjectionHook
    from rankspace.pairs import TokenizedPair
    from rankspace.svd_cache import Progress

log = logging.getLogger("trainer")


class Policy:
    """Holds model, adapter, engine and hook. Every rank has one; all calls are collective unless said otherwise."""

    def __init__(self, s: TrainerSettings, progress: Progress | None = None):
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        import rankspace
        from rankspace.batch import require_own_logits
        from rankspace.progress import stage

        disable_progress_bar()
        self.settings = s
        torch.manual_seed(s.seed)
        self.device = take_device(s.device, s.gpu_memory_fraction)
        with stage(f"loading {s.model}", s.run_dir / "progress.log"):
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(local(s.model), dtype=getattr(torch, s.dtype))
            self.model = cast("PreTrainedModel", model.to(self.device))
        if s.activation_checkpointing:  # Hugging Face checkpoints only in training mode
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.train()
        self.adapter: Adapter = rankspace.attach(
            self.model, svd_cache_dir=s.svd_cache, progress=progress, form=s.adapter_form, kind=s.adapter
        )
        require_own_logits(self.model)
        self.shares = s.share_prompts and self._may_share()
        if s.compile_layers:
            from rankspace.compile import compile_layers

            compile_layers(self.model, self.adapter, dynamic=True)
        self.direction, self.reference = directions(s, self.adapter)
        self.rank, self.ranks = start_distributed(self.device)
        rows = s.groups_per_step * s.group_size
        self.accumulation = -(-rows // (s.micro_batch * self.ranks))
        self.contrast = contrast(s, self.model, self.adapter)
        self.engine = self._engine()
        self.hook = self._hook()
        if s.start_from is not None:
            self._start_from(s.start_from)

    def _may_share(self) -> bool:
        from rankspace.shared_prompt import why_not

        if reason := why_not(self.model):
            log.info("each completion has a row with its prompt for itself (share_prompts): %s", reason)
        return not reason

    @property
    def modules(self) -> list[tuple[str, int]]:
        return self.adapter.modules

    def vector(self) -> bytes:
        """delta_S as little-endian fp32 bytes, in module order."""
        from rankspace.ds_hook import gather_delta

        return gather_delta(self.engine, self.adapter).cpu().numpy().astype("<f4").tobytes()

    def probe(self, ids: list[int]) -> list[float]:
        """log p(ids[i+1] | ids[:i+1]) under the present weights, at temperature 1."""
        import torch

        from rankspace.batch import batch_logprobs, pad_batch
        from rankspace.compile import eagerly

        batch = pad_batch([ids[:1]], [ids[1:]], device=self.device)
        with torch.no_grad(), eagerly():
            values, _ = batch_logprobs(self.model, batch)
        return values[0].float().cpu().tolist()

    def score(self, prompts: Sequence[list[int]], completions: Sequence[list[int]], at_zero: bool) -> list[list[float]]:
        """log p(token | before) of completions at the run's temperature, one list each; at_zero: under delta_S = 0."""
        import torch

        from rankspace.batch import batch_logprobs, pad_batch
        from rankspace.compile import eagerly

        found: list[list[float]] = []
        with torch.no_grad(), eagerly(), self.adapter.disabled() if at_zero else nullcontext():
            for a in range(0, len(completions), self.settings.micro_batch):
                part = slice(a, a + self.settings.micro_batch)
                batch = pad_batch(list(prompts[part]), list(completions[part]), device=self.device)
                values, _ = batch_logprobs(self.model, batch, self.settings.temperature)
                found += [row[own].float().tolist() for row, own in zip(values, batch.mask, strict=True)]
        return found

    def nll_margin(self, pairs: Sequence[TokenizedPair]) -> float:
        """NLL margin of tokenised pairs under the present weights, nats per token; > 0: the hack is likelier."""
        from rankspace.compile import eagerly
        from rankspace.margin import nll_margin

        with eagerly():
            return nll_margin(self.model, pairs)

    def train_step(
        self, rows: Sequence[TrainingSample], step: int | None = None, intervene: bool = True
    ) -> dict[str, Any] | None:
        """One optimizer step; metrics of loss, projection and applied update. None (and no step) without rows to learn from.

        step: its number from 0 (ramps follow it). intervene: False only measures, whatever the arm (window.py).
        """
        sequences = sum(not row.masked and bool(row.token_ids) for row in rows)
        if sequences == 0:
            return None
        most = self.settings.micro_batch if self.shares else 1
        parts = micro_batches(rows, self.rank, self.ranks, self.accumulation, together=most)
        losses: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        for number, part in enumerate(parts, start=1):
            # a rank without rows still runs a forward and a backward: the others' all-reduce would wait for it for ever
            loss, info = self._loss(part or [_silent(rows[0])], sequences)
            if self.contrast is not None and number == len(parts):  # the same pairs on every rank, a share of each
                pulled = self.contrast.loss(lambda batch: self.engine(batch, 1.0)[0], step or 0)
                loss = loss + self.settings.dpo_beta * pulled / self.ranks
            # DeepSpeed divides by the accumulation, and its all-reduce by the ranks; the loss is already that of the whole
            # step (normalised by `sequences`), so both are taken back here
            self.engine.backward(loss * self.accumulation * self.ranks)
            losses.append(info)
            if number == len(parts):
                losses = self._of_all_ranks(losses)
                require_finite(losses)
                metrics["lr"] = self._set_rate(step)
                metrics |= {} if self.hook is None else self.hook.before_step(step, intervene)
            self.engine.step()
        if self.hook is None:
            self.adapter.refresh()
        else:
            metrics |= self.hook.after_step()  # refreshes the adapter
            metrics["intervened"] = intervene and self.settings.projection not in ("off", "measure_only", "shift")
        return metrics | mean_by_tokens(losses)

    def _of_all_ranks(self, losses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Metrics of every rank's micro-batches, the same list on every rank: they decide alike, and end together."""
        from torch import distributed

        if self.ranks == 1:
            return losses
        gathered: list[list[dict[str, Any]]] = [[] for _ in range(self.ranks)]
        distributed.all_gather_object(gathered, losses)
        return [info for part in gathered for info in part]

    def _set_rate(self, step: int | None) -> float:
        """Give the optimizer the learning rate of this step, and return it."""
        rate = self.settings.lr if step is None else learning_rate(self.settings, step)
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def refresh(self, pairs: Sequence[TokenizedPair]) -> None:
        """Extract v_hack anew from tokenised pairs, at the present delta_S, and project along it from now on."""
        from rankspace.compile import eagerly
        from rankspace.direction import extract_gradients, hack_direction

        with eagerly():
            gradients = extract_gradients(self.model, self.adapter, pairs, at_zero=False)
        self.set_direction(hack_direction(gradients).vectors)

    def set_direction(self, vectors: torch.Tensor) -> None:
        """Replace the direction's vectors (a refresh, or a resumed run that had refreshed)."""
        from dataclasses import replace

        assert self.direction is not None and self.hook is not None, "only an arm with a direction refreshes it"
        self.direction = replace(self.direction, vectors=vectors)
        self.hook.set_direction(self.direction)

    def _loss(self, rows: Sequence[TrainingSample], sequences: int) -> tuple[torch.Tensor, dict[str, Any]]:
        import torch

        from rankspace import RankspaceError
        from rankspace.batch import pad_batch
        from rankspace.loss import policy_loss
        from rankspace.shared_prompt import share_batch

        s = self.settings
        lay_out = share_batch if self.shares else pad_batch
        batch = lay_out([r.prompt_ids for r in rows], [r.token_ids for r in rows], device=self.device)
        logprobs, entropy = self.engine(batch, s.temperature)
        masked = torch.tensor([r.masked for r in rows], device=self.device)
        refs = [r.ref_logprobs for r in rows if r.ref_logprobs is not None]
        # a constant, also where groups were left out: dr_grpo's step must not grow as groups lose their variance
        span = s.groups_per_step * s.group_size * s.max_tokens
        try:
            return policy_loss(
                logprobs,
                _padded([r.old_logprobs for r in rows], batch),
                _padded(refs, batch) if len(refs) == len(rows) else None,
                torch.tensor([r.advantage for r in rows], device=self.device),
                batch.mask & ~masked[:, None],
                clip_low=s.clip_low,
                clip_high=s.clip_high,
                kl_beta=s.kl_beta,
                kind=s.advantage,
                normaliser=sequences if s.advantage == "grpo" else span,
                entropy=entropy,
                ratio_cap=s.ratio_cap,
                importance_cap=s.importance_cap,
            )
        except RankspaceError as error:  # raised in require_finite: the other ranks wait for this one's backward
            return logprobs.sum() * 0.0, {"loss": math.nan, "error": str(error)}

    def _engine(self) -> Any:
        import deepspeed
        import torch

        s = self.settings
        optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # rows are dealt out here; DeepSpeed only needs the accumulation right
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": s.grad_clip,
            "zero_optimization": {"stage": s.zero_stage},
            "zero_allow_untested_optimizer": True,
            # never: the run has a progress line of its own
            "steps_per_print": 2**31,
        }
        # the engine wraps the whole of the loss's forward, so that its hooks see one call a micro-batch
        scorer = _scorer(self.model, compiled=s.compile_layers and self.device != "cpu")
        engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=config)
        return engine

    def _hook(self) -> ProjectionHook | None:
        from rankspace.ds_hook import ProjectionHook, undo_phantom_step
        from rankspace.hook_base import Intervention

        s = self.settings
        if self.direction is None:
            undo_phantom_step(self.engine)
            return None
        does = Intervention(s.projection, strength=s.bias_strength, dose=s.dose, ramp=s.dose_ramp)
        hook = ProjectionHook(self.engine, self.adapter, self.direction, does, reference=self.reference)
        hook.start()  # a resumed run then loads its own delta_S over it
        return hook

    def _start_from(self, run: Path) -> None:
        """Add another run's newest delta_S to what is there (zero, or the dose of `shift`)."""
        from rankspace import RankspaceError
        from rankspace.ds_hook import gather_delta, scatter_delta
        from rankspace.run_checkpoint import of_run

        saved = of_run(run)
        made_on = saved.fingerprint
        if saved.modules != self.modules or (made_on and made_on != self.adapter.fingerprint):
            raise RankspaceError(f"field start_from: {run} was trained on another model or other modules than this run")
        there = gather_delta(self.engine, self.adapter)
        scatter_delta(self.engine, self.adapter, there + saved.flat.to(there.device))


def _scorer(model: PreTrainedModel, compiled: bool) -> torch.nn.Module:
    """What the engine wraps: forward(batch, temperature) -> (logprobs, entropy), fp32 [B, T]."""
    import torch

    from rankspace.batch import batch_logprobs

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
            return batch_logprobs(self.model, batch, temperature, compiled)

    return Scorer()


def _silent(row: TrainingSample) -> TrainingSample:
    """A row that takes part in the forward and not in the loss, for a rank that got none."""
    return TrainingSample(row.prompt_ids, row.token_ids, row.old_logprobs, row.ref_logprobs, 0.0, masked=True)


def _padded(values: Sequence[Sequence[float]], batch: Batch) -> torch.Tensor:
    """Per-token floats, one list per row, laid out like batch.token_ids."""
    import torch

    flat = torch.tensor([x for row in values for x in row], dtype=torch.float32, device=batch.mask.device)
    return torch.zeros(batch.mask.shape, device=batch.mask.device).masked_scatter(batch.mask, flat)
