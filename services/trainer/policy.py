"""The policy under training: base model + delta_S in a DeepSpeed engine, and one optimizer step on it.

    rows ─> micro-batches ─> loss ─> backward (accumulate, reduce) ─> projection ─> clip ─> AdamW ─> new delta_S
                                                                     ds_hook        DeepSpeed

The loss is normalised by the whole step's number of sequences, so neither the number of ranks nor of micro-batches
changes the gradient.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common.model_names import local
from common.settings import TrainerSettings
from services.trainer.collate import TrainingSample
from services.trainer.micro_batches import micro_batches
from services.trainer.schedule import learning_rate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rankspace.adapter import Adapter
    from rankspace.batch import Batch
    from rankspace.direction import Direction
    from rankspace.dpo import PairContrast
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
        self.device = _device(s.device, s.gpu_memory_fraction)
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
        if s.compile_layers:
            from rankspace.compile import compile_layers

            compile_layers(self.model, self.adapter, dynamic=True)
        self.direction, self.reference = _directions(s, self.adapter)
        self.rank, self.ranks = _start_distributed(self.device)
        rows = s.groups_per_step * s.group_size
        self.accumulation = -(-rows // (s.micro_batch * self.ranks))
        self.contrast = _contrast(s, self.model, self.adapter)
        self.engine = self._engine()
        self.hook = self._hook()
        if s.start_from is not None:
            self._start_from(s.start_from)

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
        parts = micro_batches(rows, self.rank, self.ranks, self.accumulation)
        losses: list[dict[str, Any]] = []
        metrics: dict[str, Any] = {}
        for number, part in enumerate(parts, start=1):
            loss, info = self._loss(part or [_silent(rows[0])], sequences)
            if self.contrast is not None and number == len(parts):  # the same pairs on every rank, a share of each
                pulled = self.contrast.loss(lambda batch: self.engine(batch, 1.0)[0], step or 0)
                loss = loss + self.settings.dpo_beta * pulled / self.ranks
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
        return metrics | _mean_by_tokens(losses)

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

        s = self.settings
        batch = pad_batch([r.prompt_ids for r in rows], [r.token_ids for r in rows], device=self.device)
        logprobs, entropy = self.engine(batch, s.temperature)
        masked = torch.tensor([r.masked for r in rows], device=self.device)
        refs = [r.ref_logprobs for r in rows if r.ref_logprobs is not None]
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
            "steps_per_print": 2**31,
        }
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


def _contrast(s: TrainerSettings, model: PreTrainedModel, adapter: Adapter) -> PairContrast | None:
    """The contrastive loss on the training pairs, with its reference log-probs taken now, at delta_S = 0."""
    if s.dpo_beta == 0:
        return None
    from transformers import AutoTokenizer

    from rankspace.chat import Chat
    from rankspace.compile import eagerly
    from rankspace.dpo import PairContrast
    from rankspace.pairs import load_pairs, tokenize_pair

    assert s.pairs is not None  # TrainerSettings has checked it
    tokenizer = AutoTokenizer.from_pretrained(local(s.model))
    chat = Chat(s.chat_template_kwargs, s.chat_date)
    pairs = [tokenize_pair(tokenizer, pair, chat) for pair in load_pairs(s.pairs, "train")]
    with eagerly():
        return PairContrast(model, adapter, pairs, s.dpo_gamma, s.dpo_pairs, s.seed)


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


def _directions(s: TrainerSettings, adapter: Adapter) -> tuple[Direction | None, Direction | None]:
    """(what the arm acts along, the v_hack that positions are measured against); None where there is none."""
    from rankspace import RankspaceError
    from rankspace.direction import load_direction, orthogonalised, random_direction, require_validated

    if s.direction == "none":
        return None, None
    reference = None if s.v_ref is None else load_direction(s.v_ref, adapter.modules, adapter.fingerprint)
    if reference is not None and reference.kind != "v_hack":
        raise RankspaceError(f"field v_ref: {s.v_ref} is of kind {reference.kind!r}, give a v_hack file")
    if s.direction == "random":
        direction = random_direction(adapter.modules, s.seed)
    else:
        assert s.v_hack is not None  # TrainerSettings has checked it
        direction = load_direction(s.v_hack, adapter.modules, adapter.fingerprint)
        require_validated(direction, s.gate)
    if s.orthogonal:
        assert reference is not None  # TrainerSettings has checked it
        direction = orthogonalised(direction, reference)
    if reference is None and direction.kind == "v_hack":
        reference = direction
    return direction, reference


def _silent(row: TrainingSample) -> TrainingSample:
    """A row that takes part in the forward and not in the loss, for a rank that got none."""
    return TrainingSample(row.prompt_ids, row.token_ids, row.old_logprobs, row.ref_logprobs, 0.0, masked=True)


def _padded(values: Sequence[Sequence[float]], batch: Batch) -> torch.Tensor:
    """Per-token floats, one list per row, laid out like batch.token_ids."""
    import torch

    flat = torch.tensor([x for row in values for x in row], dtype=torch.float32, device=batch.mask.device)
    return torch.zeros(batch.mask.shape, device=batch.mask.device).masked_scatter(batch.mask, flat)


def _mean_by_tokens(losses: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of all ranks' micro-batches as one; per-token means are weighted by tokens."""
    tokens = [m["n_tokens"] for m in losses]
    total = max(sum(tokens), 1.0)
    out = {
        k: sum(m[k] * n for m, n in zip(losses, tokens, strict=True)) / total
        for k in ("ratio_mean", "clip_frac", "kl", "entropy")
    }
    negative = sum(m["n_negative"] for m in losses)
    out["weight_capped"] = sum(m["weight_capped"] * m["n_negative"] for m in losses) / max(negative, 1.0)
    out["ratio_max"] = max(m["ratio_max"] for m in losses)
    return out | {"loss": sum(m["loss"] for m in losses)}


def require_finite(losses: list[dict[str, Any]]) -> None:
    """RankspaceError when a micro-batch's loss is NaN or Inf, before such a gradient moves anything."""
    from rankspace import RankspaceError

    for number, m in enumerate(losses, start=1):
        if "error" in m:
            raise RankspaceError(m["error"])
        if not math.isfinite(m["loss"]):
            raise RankspaceError(
                f"the loss of micro-batch {number} of {len(losses)} is {m['loss']}: the ratio to the policy that sampled goes"
                f" up to {m['ratio_max']:.3g}, KL to the reference is {m['kl']:.3g}; lower the learning rate, or max_staleness"
            )


def _device(name: str, memory_fraction: float | None = None) -> str:
    """The device, one card a rank, with this process's share of its memory capped where another service is on it too."""
    import torch

    from rankspace.gpu import avoid_cudnn_attention

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    avoid_cudnn_attention()
    if device.startswith("cuda"):
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(memory_fraction)
    return device


def _start_distributed(device: str) -> tuple[int, int]:
    """(rank, number of ranks). Alone unless a launcher (torchrun, deepspeed) says otherwise through the environment."""
    import torch

    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if "RANK" not in os.environ:  # after the import: seconds in which somebody else might take the port
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
    # gloo is enough; DeepSpeed would compile a shared-memory all-reduce first, for minutes on a fresh machine
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.startswith("cuda") else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
