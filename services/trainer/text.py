"""The trainer's use of the model's tokenizer: the probe sequence, and contrastive pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.model_names import local
from common.settings import TrainerSettings
from common.types import Problem

if TYPE_CHECKING:
    from rankspace.chat import Chat
    from rankspace.pairs import Pair, TokenizedPair


class Text:
    """The model's tokenizer, for the probe sequence, for prompts and for pairs."""

    def __init__(self, s: TrainerSettings):
        self.settings = s

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(local(self.settings.model))

    def probe(self, problems: list[Problem], tokens: int = 64) -> list[int]:
        """The beginning of the first held-out problem with its canonical solution: text the policy is at home in."""
        problem = problems[0]
        text = problem.prompt[-1]["content"] + "\n" + (problem.canonical_solution or "")
        ids: list[int] = self._tokenizer()(text, add_special_tokens=False)["input_ids"][:tokens]
        if len(ids) < 2:
            raise ConfigError(
                f"problem {problem.id}: its prompt has fewer than two tokens, so delivery cannot be proven with it"
            )
        return ids

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a prompt, as the generator should have them."""
        return self._chat().ids(self._tokenizer(), messages)

    def _chat(self) -> Chat:
        from rankspace.chat import Chat

        return Chat(self.settings.chat_template_kwargs, self.settings.chat_date)

    def hack(self, pair: Pair) -> list[int]:
        """Token ids of a pair's hack, with the token that ends an answer."""
        from rankspace.pairs import tokenize_pair

        both = tokenize_pair(self._tokenizer(), pair, self._chat())
        return both.hack_ids[both.start :]

    def pairs(self, path: Path | None, split: str = "train") -> list[TokenizedPair]:
        """One split of a pairs file, tokenised. Only the split `heldout` may be empty."""
        from rankspace.pairs import load_pairs, tokenize_pair

        assert path is not None, "TrainerSettings asks for pairs where an arm needs them"
        tokenizer, chat = self._tokenizer(), self._chat()
        found = load_pairs(path, "train") if split == "train" else [p for p in load_pairs(path) if p.split == split]
        return [tokenize_pair(tokenizer, pair, chat) for pair in found]
