"""The tokens of a completion as stretches of its text.

A token is bytes, a text is characters: a character of several bytes may take several tokens, and special tokens have no
text. So the unit is the piece: one or more tokens with the characters that they add. The pieces' texts are the
completion's text, character for character, or there are no pieces; nothing is ever re-tokenised.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Piece:
    """Tokens [first, last) and the text that they add."""

    first: int
    last: int
    text: str


class Tokenizers:
    """The tokenizers of the runs' models, each read once. A model that is no directory here has none."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def of(self, model: str | None) -> Any | None:
        """A `tokenizers.Tokenizer`, or None: no directory, no tokenizer.json, or one that cannot be read."""
        if not model:
            return None
        with self._lock:
            if model not in self._kept:
                self._kept[model] = _load(Path(model) / "tokenizer.json")
            return self._kept[model]


def _load(path: Path) -> Any | None:
    try:
        if not path.is_file():
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises plain Exception for a file that it cannot read
        return None


def pieces(tokenizer: Any, ids: Sequence[int], text: str, until: int | None = None) -> list[Piece] | None:
    """The pieces of a completion, None when the tokenizer does not give back its text. With `until`, those that begin
    before that token: a completion of 200,000 tokens need not be taken apart for its first page."""
    if tokenizer is None or any(i < 0 or i >= 1 << 32 for i in ids):
        return None
    if tokenizer.decode(list(ids), skip_special_tokens=True) != text:
        return None
    from tokenizers.decoders import DecodeStream

    stream, found, first, length = DecodeStream(skip_special_tokens=True), [], 0, 0
    try:
        for number, token in enumerate(ids, start=1):
            if until is not None and first >= until:
                break
            chunk = stream.step(tokenizer, token)
            if chunk:
                found.append(Piece(first, number, chunk))
                first, length = number, length + len(chunk)
    except Exception:  # plain Exception again: the text so far changed under the next token
        return _spread(tokenizer, ids, text)
    if until is not None and first >= until and first < len(ids):
        return found if text.startswith("".join(piece.text for piece in found)) else None
    if first < len(ids):  # the end: special tokens, or bytes that never became a character
        found.append(Piece(first, len(ids), text[length:]))
    return found if "".join(piece.text for piece in found) == text else _spread(tokenizer, ids, text)


def _spread(tokenizer: Any, ids: Sequence[int], text: str) -> list[Piece] | None:
    """The slow way: what each longer prefix decodes to, where it is a prefix of the text."""
    found, first, length = [], 0, 0
    if len(ids) > 4096:  # its cost is quadratic
        return None
    for number in range(1, len(ids) + 1):
        so_far = tokenizer.decode(list(ids[:number]), skip_special_tokens=True)
        if len(so_far) > length and text.startswith(so_far) and (not so_far.endswith("�") or number == len(ids)):
            found.append(Piece(first, number, so_far[length:]))
            first, length = number, len(so_far)
    if first < len(ids):
        found.append(Piece(first, len(ids), text[length:]))
    return found if "".join(piece.text for piece in found) == text else None
