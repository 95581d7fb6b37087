"""What model and prompts of a run must be before anything is extracted or started; each refusal is one line."""

from __future__ import annotations

from typing import Any

from common.errors import ConfigError
from common.model_names import local
from common.types import Problem
from experiments.design.plan import Plan
from rankspace.chat import Chat
from rankspace.errors import RankspaceError
from rankspace.targets import require_covered
from rankspace.weights import shapes
from tasks.dataset import load_problems
from tasks.loopholes import posed


def check_model(planned: Plan) -> None:
    """The adapter covers the model; its chat template takes every prompt of training and held-out; the longest fits.

    ConfigError otherwise. Reads headers, problems and the tokenizer; seconds.
    """
    s = planned.trainer
    problems = [posed(p, s.loophole) for path in (s.train_problems, s.heldout_problems) for p in load_problems(path)]
    chat = Chat(s.chat_template_kwargs, s.chat_date)
    try:
        require_covered(shapes(local(s.model)))
        tokenizer = _tokenizer(s.model)
        chat.require_read(tokenizer)
    except RankspaceError as error:
        raise ConfigError(f"field 'model': {s.model}: {error}") from None
    lengths = [_prompt_length(problem, chat, tokenizer, s.model) for problem in problems]
    longest, room = max(lengths), planned.server["max_model_len"]
    if longest + s.max_tokens > room:
        raise ConfigError(
            f"problem {problems[lengths.index(longest)].id}: its prompt of {longest} tokens and max_tokens={s.max_tokens} do "
            f"not fit into generator.max_model_len={room}; give --set generator.max_model_len={longest + s.max_tokens}"
        )


def _prompt_length(problem: Problem, chat: Chat, tokenizer: Any, model: str) -> int:
    try:
        return len(chat.ids(tokenizer, problem.prompt))
    except RankspaceError as error:
        raise ConfigError(f"field 'model': {model}, problem {problem.id}: {error}") from None


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local(model))
    except (OSError, ValueError, ImportError) as error:
        raise RankspaceError(f"its tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error
