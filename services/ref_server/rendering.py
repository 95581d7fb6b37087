"""Prompts as token ids and completions as text, by the tokenizer and the template in the model's own folder."""

from __future__ import annotations

from common.model_names import local
from common.settings import RefServerSettings


class Renderer:
    """Chat messages -> token ids, and ids -> text, with the model's own tokenizer and template."""

    def __init__(self, settings: RefServerSettings):
        from transformers import AutoTokenizer

        from rankspace.chat import Chat

        self.folder = local(settings.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.chat = Chat(settings.chat_template_kwargs, settings.chat_date)

    def __call__(self, messages: list[dict[str, str]]) -> list[int]:
        """RankspaceError when the template refuses them."""
        return self.chat.ids(self.tokenizer, messages)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def eos_ids(self) -> list[int]:
        """Every id that ends a completion: the tokenizer's and those of generation_config.json."""
        from transformers import GenerationConfig

        ids = {self.tokenizer.eos_token_id}
        try:
            listed = GenerationConfig.from_pretrained(self.folder).eos_token_id
        except OSError:  # the file is optional in a model folder
            listed = None
        ids.update(listed if isinstance(listed, list) else [listed])
        return sorted(i for i in ids if i is not None)
