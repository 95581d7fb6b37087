"""Reference log-probs: the base model itself (delta_S = 0 exactly), in torch, never touched by a push."""

from __future__ import annotations

from common.settings import RefServerSettings


class Reference:
    """A frozen copy of the base model."""

    def __init__(self, settings: RefServerSettings, micro_batch: int = 128):
        import torch
        from transformers import AutoModelForCausalLM

        self.device = _device(settings.device)
        self.micro_batch = micro_batch
        self.model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype)).to(
            self.device
        )
        self.model.requires_grad_(False).eval()

    def logprobs(self, prompts: list[list[int]], completions: list[list[int]], temperature: float) -> list[list[float]]:
        """log p_ref(completion token | what precedes it) at `temperature`, one list per completion, as floats."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
        answers: list[list[float]] = [[] for _ in prompts]
        for start in range(0, len(order), self.micro_batch):
            chosen = order[start : start + self.micro_batch]
            rows = self._forward([prompts[i] for i in chosen], [completions[i] for i in chosen], temperature)
            for i, row in zip(chosen, rows, strict=True):
                answers[i] = row
        return answers

    def _forward(self, prompts: list[list[int]], completions: list[list[int]], temperature: float) -> list[list[float]]:
        import torch

        from rankspace.batch import batch_logprobs, pad_batch

        batch = pad_batch(prompts, completions, device=self.device)
        with torch.no_grad():
            values, _ = batch_logprobs(self.model, batch, temperature)
        return [row[: len(c)].tolist() for row, c in zip(values.float().cpu(), completions, strict=True)]


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
