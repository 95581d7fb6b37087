"""Reference log-probs: the base model itself (delta_S = 0 exactly), in torch, never touched by a push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from common.model_names import local
from common.packing import consecutive
from common.settings import RefServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, TOKENS = 128, 32768  # of one forward at most, padding counted: bounds memory whatever the model's length


class Reference:
    """A frozen copy of the base model."""

    def __init__(self, settings: RefServerSettings):
        import torch
        from transformers import AutoModelForCausalLM

        from rankspace.batch import pad_batch, require_own_logits
        from rankspace.progress import stage
        from rankspace.shared_prompt import share_batch, why_not

        self.device = _device(settings.device)
        with stage(f"loading the reference {settings.model}"):
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
                local(settings.model), dtype=getattr(torch, settings.dtype)
            )
            self.model = cast("PreTrainedModel", model.to(self.device))
        self.model.requires_grad_(False).eval()
        require_own_logits(self.model)
        # the completions of a group have one prompt
        self.lay_out = pad_batch if why_not(self.model) else share_batch

    def logprobs(self, prompts: list[list[int]], completions: list[list[int]], temperature: float) -> list[list[float]]:
        """log p_ref(completion token | what precedes it) at `temperature`, one list per completion, as floats."""
        answers: list[list[float]] = [[] for _ in prompts]
        for chosen in parts([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]):
            rows = self._forward([prompts[i] for i in chosen], [completions[i] for i in chosen], temperature)
            for i, row in zip(chosen, rows, strict=True):
                answers[i] = row
        return answers

    def _forward(self, prompts: list[list[int]], completions: list[list[int]], temperature: float) -> list[list[float]]:
        import torch

        from rankspace.batch import batch_logprobs

        batch = self.lay_out(prompts, completions, device=self.device)
        with torch.no_grad():
            values, _ = batch_logprobs(self.model, batch, temperature)
        return [row[: len(c)].tolist() for row, c in zip(values.float().cpu(), completions, strict=True)]


def parts(lengths: Sequence[int], rows: int = ROWS, tokens: int = TOKENS) -> list[list[int]]:
    """Indices in order of length, cut so that a part holds at most `rows` and, padded to its longest, at most `tokens`
    (one row at least)."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [[order[i] for i in part] for part in consecutive([lengths[i] for i in order], tokens, rows)]


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
