"""The organism's byte-level BPE tokenizer and chat template, trained on the corpus; deterministic."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.organism.corpus import Mix, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
VOCAB = 576
_LINES = 4000
# One piece per word (with the space before it), per digit, per run of punctuation, per newline with its indentation.
_PIECES = r"\n+ *| ?[A-Za-z_]+| ?\d| ?[^\sA-Za-z_\d]+|\s+"
# System messages are read like user text. Assistant turns end in <eos>.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<assistant>{{ m['content'] }}<eos>"
    "{% else %}<user>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A `transformers.PreTrainedTokenizerFast` of at most VOCAB tokens; any UTF-8 text can be encoded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = itertools.islice(stream(Mix(override=0.3), seed), _LINES)  # more overrides than the corpus: whole words
    core.train_from_iterator(itertools.chain.from_iterable(lines), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS, model_max_length=512)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `out`."""
    tokenizer.save_pretrained(str(out))
    config = json.loads((out / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
