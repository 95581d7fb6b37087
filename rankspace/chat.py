"""Chat messages as token ids: the one place that fills in a chat template, so that rollouts and pairs see the same prompt.

A template may take switches (Qwen3: enable_thinking) and may ask for today's date (strftime_now, date_string: Llama 3.1,
gpt-oss); the date is always `date`, because a prompt that changes at midnight is another experiment.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import RankspaceError

DATE = "2024-07-26"  # what Llama's own templates fall back to
OURS = frozenset({"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
                  "return_tensors", "return_dict", "padding", "truncation", "max_length", "strftime_now"})  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """How prompts are rendered. kwargs: variables of the template; date: YYYY-MM-DD, the day a template is told it is.

    Example: Chat({"enable_thinking": False})
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE

    def __post_init__(self) -> None:
        if taken := sorted(OURS & self.kwargs.keys()):
            raise RankspaceError(f"chat_template_kwargs: {taken[0]!r} is decided here; leave it out")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise RankspaceError(f"chat_date {self.date!r} must be a day like {DATE}") from None

    def text(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages in the template of the tokenizer, up to where the answer begins.

        Raises:
            RankspaceError: the tokenizer has no template, or the template refuses these messages; its first line.
        """
        template = template_of(tokenizer)
        if not template:
            raise RankspaceError("the tokenizer has no chat template: use an instruction-tuned model or set one")
        values = dict(self.kwargs) | self._day(template)
        try:
            text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, **values)
        except Exception as error:  # a template is a program of its own, and fails in ways of its own
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RankspaceError(f"the chat template refuses the prompt: {first[:200]}") from error
        return str(text)

    def ids(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of `text`. RankspaceError as there, or when nothing comes out."""
        # the template has written the first special token already; a second one would be another prompt
        found = tokenizer(self.text(tokenizer, messages), add_special_tokens=False)["input_ids"]
        if not found:
            raise RankspaceError("the chat template makes nothing of the prompt")
        return [int(i) for i in found]

    def end(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> int:
        """Id of the token that ends an answer: the special token that the template puts after one, else EOS.

        Rollouts of Gemma and Phi-3.5 end with a turn's end that is not the tokenizer's EOS; a pair must end as they do.
        """
        # an answer that no template has in its own words
        answer, eos = "a0b1c2d3", int(tokenizer.eos_token_id)
        told = [*messages, {"role": "assistant", "content": answer}]
        try:
            values = dict(self.kwargs) | self._day(template_of(tokenizer))
            text = str(tokenizer.apply_chat_template(told, tokenize=False, **values))
        except Exception:  # a template that takes no answers says nothing of their end
            return eos
        after = text.rpartition(answer)[2] if answer in text else ""
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        return int(ids[0]) if ids and ids[0] in special else eos

    def require_read(self, tokenizer: Any) -> None:
        """Raise RankspaceError for a variable that the template does not read: a misspelt switch switches nothing."""
        template = template_of(tokenizer)
        for name in self.kwargs:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise RankspaceError(
                    f"the model's chat template does not read {name!r}; correct chat_template_kwargs (--set "
                    "'chat_template_kwargs={}' gives none)"
                )

    def _day(self, template: str) -> dict[str, Any]:
        """The variables through which this template would ask for the date."""
        day, values = datetime.date.fromisoformat(self.date), dict[str, Any]()
        if "strftime_now" in template:
            values["strftime_now"] = day.strftime
        if "date_string" in template and "date_string" not in self.kwargs:
            values["date_string"] = day.strftime("%d %b %Y")
        return values


def template_of(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template; '' without one."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, Mapping):  # several by name
        found = found.get("default")
    return found or ""
