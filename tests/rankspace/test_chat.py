"""Chat templates: switches, dates, and what refuses a prompt."""

from __future__ import annotations

import pytest

from experiments.design.presets import ORGANISM_MODEL
from rankspace import Pair, RankspaceError, tokenize_pair
from rankspace.chat import Chat

ASK = [{"role": "user", "content": "Given n"}]
# As Qwen3 does it: without the switch the thought is left to the model.
THINKING = "{{ messages[0]['content'] }}<assistant>" + (
    "{% if enable_thinking is defined and enable_thinking is false %}<nothink>{% endif %}"
)
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{% endif %}Today Date: {{ date_string }}\n{{ messages[0]['content'] }}"
)


@pytest.fixture
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ORGANISM_MODEL)


def test_a_switch_reaches_the_template_and_pairs_as_rollouts(tokenizer):
    tokenizer.chat_template = THINKING
    off = Chat({"enable_thinking": False})
    assert Chat().text(tokenizer, ASK) == "Given n<assistant>"
    assert off.text(tokenizer, ASK) == "Given n<assistant><nothink>"
    pair = Pair("p", 1, ASK, "x", "y", "train")
    assert tokenize_pair(tokenizer, pair, off).hack_ids[: len(off.ids(tokenizer, ASK))] == off.ids(tokenizer, ASK)
    assert tokenize_pair(tokenizer, pair).start < tokenize_pair(tokenizer, pair, off).start


def test_a_switch_that_the_template_does_not_read_is_refused(tokenizer):
    tokenizer.chat_template = THINKING
    Chat({"enable_thinking": False}).require_read(tokenizer)
    with pytest.raises(RankspaceError, match="does not read 'enable_thinkng'"):
        Chat({"enable_thinkng": False}).require_read(tokenizer)
    with pytest.raises(RankspaceError, match="'messages' is decided here"):
        Chat({"messages": []})


@pytest.mark.parametrize("template", [LLAMA, "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"])
def test_a_template_is_told_a_fixed_day(tokenizer, template):
    tokenizer.chat_template = template
    assert "26 Jul 2024" in Chat().text(tokenizer, ASK)
    assert "01 Feb 2025" in Chat(date="2025-02-01").text(tokenizer, ASK)
    with pytest.raises(RankspaceError, match="2025-02-30"):
        Chat(date="2025-02-30")


def test_a_users_own_date_string_comes_first(tokenizer):
    tokenizer.chat_template = LLAMA
    assert "some day" in Chat({"date_string": "some day"}).text(tokenizer, ASK)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x",
         "System role not supported"),
        ("{{ messages[9]['content'] + 1 }}", "refuses the prompt"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% if %}", "refuses the prompt"),
    ],
)  # fmt: skip
def test_a_template_error_is_one_line(tokenizer, template, words):
    tokenizer.chat_template = template
    asked = [{"role": "system", "content": "s"}, *ASK]
    with pytest.raises(RankspaceError, match=words) as caught:
        Chat().ids(tokenizer, asked)
    assert "\n" not in str(caught.value)
    with pytest.raises(RankspaceError, match="pair p: the chat template"):
        tokenize_pair(tokenizer, Pair("p", 1, asked, "x", "y", "train"))
