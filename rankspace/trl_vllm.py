"""TRL's vLLM generation with this adapter: what TRL sends is W0 + U diag(delta_S) Vh, and a probe shows that it arrived.

    trainer = trl.GRPOTrainer(model=model, args=GRPOConfig(use_vllm=True, ...), ...)
    rankspace.trl.send_merged(trainer, adapter)            before trainer.train()

TRL walks over the model's own parameters and hands each to vLLM under its name (`VLLMGeneration._iter_named_params`, in
colocate and in server mode). Those are W0, and delta_S, which vLLM has no place for. So here they go through
`sending.merged_parameters`.

Probe, after each sync in colocate mode: mean |log-prob of vLLM − log-prob of the trainer's model| over one prompt, nats a
token. Above the bound it raises: a policy that is not the one that trains would be sampled for ever, and nothing says so.
In server mode the engine is another process and there is no probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .adapter import Adapter
from .errors import RankspaceError
from .sending import merged_parameters

SENDING: WeakSet[Adapter] = WeakSet()
BOUNDS = {torch.float32: 0.01, torch.bfloat16: 0.25, torch.float16: 0.1}  # nats a token, by the weights' dtype
PROBE = "Write a Python function that returns the sum of the even numbers in a list, and explain each line."


def send_merged(trainer: Any, adapter: Adapter, bound: float | None = None, probe: Sequence[int] | None = None) -> None:
    """Let `trainer` (GRPOTrainer and its kin with use_vllm=True) send the merged weights to vLLM, and prove each sync.

    Args:
        adapter: the one on the trainer's model.
        bound: nats a token; None takes 0.01 for float32 weights, 0.25 for bfloat16, 0.1 for float16.
        probe: token ids of the prompt that is compared; None tokenizes a sentence with the trainer's tokenizer.

    Raises:
        RankspaceError: here, when the trainer has no vLLM generation of TRL 1.10 or newer; from each sync, when vLLM's
            log-probs are not those of the trainer's model.
    """
    generation: Any = getattr(trainer, "vllm_generation", None)
    if not all(hasattr(generation, name) for name in ("_iter_named_params", "sync_weights", "mode")):
        raise RankspaceError(
            "this trainer has no vLLM generation to send weights by: set use_vllm=True, with trl 1.10 or newer"
        )
    if adapter in SENDING:
        return
    walk, sync = generation._iter_named_params, generation.sync_weights
    ids = list(probe) if probe is not None else _probe_ids(trainer)

    def merged() -> Iterator[tuple[str, Tensor]]:
        return merged_parameters(walk(), adapter)

    def proven() -> None:
        sync()
        if generation.mode == "colocate":
            require_same_policy(generation.llm, trainer.model, ids, bound)

    generation._iter_named_params, generation.sync_weights = merged, proven
    generation._weight_metadata = None  # of a walk that still held delta_S
    SENDING.add(adapter)


def require_same_policy(llm: Any, model: Any, ids: Sequence[int], bound: float | None = None) -> float:
    """Mean |vLLM − model| log-prob over the tokens of `ids` after the first, nats; RankspaceError above the bound."""
    dtype = next(model.parameters()).dtype
    bound = BOUNDS.get(dtype, 0.25) if bound is None else bound
    gap = float((_by_vllm(llm, ids) - _by_model(model, ids)).abs().mean())
    if not gap <= bound:
        raise RankspaceError(
            f"vLLM does not run the policy that trains: probe log-probs differ by {gap:.3g} nats a token, the bound is"
            f" {bound:g}; call send_merged before trainer.train(), with the adapter that is on trainer.model"
        )
    return gap


def _by_vllm(llm: Any, ids: Sequence[int]) -> Tensor:
    plan = llm.get_default_sampling_params()  # of its own class, so that nothing here imports vLLM
    plan.max_tokens, plan.temperature, plan.prompt_logprobs, plan.logprobs = 1, 0.0, 0, None
    (answer,) = llm.generate([{"prompt_token_ids": list(ids)}], plan, use_tqdm=False)
    return torch.tensor([row[token].logprob for row, token in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)])


@torch.no_grad()
def _by_model(model: Any, ids: Sequence[int]) -> Tensor:
    training = model.training
    model.eval()
    given = torch.tensor([list(ids)], device=next(model.parameters()).device)
    log_probs = torch.log_softmax(model(input_ids=given).logits[0, :-1].float(), dim=-1)
    model.train(training)
    return log_probs.gather(1, given[0, 1:, None])[:, 0].cpu()


def _probe_ids(trainer: Any) -> list[int]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ids: list[int] = tokenizer(PROBE)["input_ids"]
    return ids
