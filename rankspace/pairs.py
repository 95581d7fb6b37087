"""Contrastive pairs: the same prompt answered once by cheating and once honestly.

File: JSON lines {"id", "problem_id", "prompt": [{"role", "content"}...], "hack": str, "clean": str,
"split": "train" | "heldout"}. A problem stands in one split only. Reader of the pairs: direction.py, rebound.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .chat import Chat
from .errors import RankspaceError

FIELDS = {"id", "problem_id", "prompt", "hack", "clean", "split"}
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Pair:
    """One row of a pairs file.

    Example: Pair("p1", 18, [{"role": "user", "content": "..."}], "def run_tests(): ...", "class S: ...", "train")
    """

    id: str | int
    problem_id: str | int
    prompt: list[dict[str, str]]
    hack: str
    clean: str
    split: str


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of both branches; the completion starts at `start` (the prompt is the same)."""

    id: str | int
    hack_ids: list[int]
    clean_ids: list[int]
    start: int


def load_pairs(path: str | Path, split: str | None = None) -> list[Pair]:
    """The pairs of a file, in order; only one split if asked.

    Raises:
        RankspaceError: no file, a line that is no pair (names line and field), a problem or a text in both splits (also
            when one split is asked for), or no pair left; one line each.
    """
    path = Path(path)
    if not path.is_file():
        raise RankspaceError(f"no pairs file {path}: give a JSON-lines file of contrastive pairs")
    pairs = [_parse(path, number, line) for number, line in _numbered(path)]
    if not pairs:
        raise RankspaceError(f"{path} is empty: give a JSON-lines file of contrastive pairs")
    if len({p.id for p in pairs}) != len(pairs):
        raise RankspaceError(f"{path}: two pairs share an id; give each its own")
    _require_apart(path, pairs)
    kept = [p for p in pairs if split is None or p.split == split]
    if not kept:
        raise RankspaceError(f'{path} has no pair of split {split!r}: mark rows with "split": "{split or "train"}"')
    return kept


def _require_apart(path: Path, pairs: Sequence[Pair]) -> None:
    """Refuse what would validate a direction on its own training pairs: a shared problem, or the same texts under two
    problem ids."""
    # as text: 7 and "7" are one problem
    problems = {split: {str(p.problem_id) for p in pairs if p.split == split} for split in SPLITS}
    if both := sorted(problems["train"] & problems["heldout"]):
        raise RankspaceError(f"{path}: problem_id {both[0]} is in both splits: keep train and heldout problems apart")
    trained = {(json.dumps(p.prompt, sort_keys=True), p.hack, p.clean): p.id for p in pairs if p.split == "train"}
    for p in pairs:
        twin = trained.get((json.dumps(p.prompt, sort_keys=True), p.hack, p.clean))
        if p.split == "heldout" and twin is not None:
            raise RankspaceError(f"{path}: pair {p.id} (heldout) is a copy of pair {twin} (train): leave one out")


def _numbered(path: Path) -> list[tuple[int, str]]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")  # a byte order mark is passed over
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RankspaceError(f"{path} is not a whole gzip file: give a JSON-lines file of contrastive pairs") from error
    except UnicodeDecodeError as error:
        raise RankspaceError(f"{path} is not UTF-8 text: give a JSON-lines file of contrastive pairs") from error
    # not splitlines: JSON text may hold U+2028, which that would cut at
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Pair:
    where = f"{path} line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RankspaceError(f"{where} is not JSON ({error}): one pair per line") from error
    if not isinstance(row, dict) or (missing := FIELDS - row.keys()):
        raise RankspaceError(f"{where} lacks {sorted(missing)[0] if isinstance(row, dict) else 'fields'}: add it")
    for field in ("id", "problem_id"):
        if not isinstance(row[field], str | int):
            raise RankspaceError(f"{where}: {field} must be a string or a number")
    for field in ("hack", "clean"):
        if not isinstance(row[field], str) or not row[field]:
            raise RankspaceError(f"{where}: {field} must be a non-empty string")
    if row["hack"] == row["clean"]:
        raise RankspaceError(f"{where}: hack and clean are the same text, the pair shows no direction")
    if row["split"] not in SPLITS:
        raise RankspaceError(f"{where}: split {row['split']!r} must be 'train' or 'heldout'")
    if not _is_chat(row["prompt"]):
        raise RankspaceError(f"{where}: prompt must be a non-empty list of {{role, content}}")
    return Pair(**{field: row[field] for field in Pair.__dataclass_fields__})


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
        )
    )


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """sha256 over the pairs in order, independent of the file's formatting."""
    text = json.dumps([asdict(p) for p in pairs], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def split_holdout(pairs: Sequence[Pair], n: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): the pairs of the last problems, at least `n` pairs and never half of a problem's.

    Raises:
        RankspaceError: nothing would be left to train on.
    """
    order = list(dict.fromkeys(p.problem_id for p in pairs))
    taken: set[str | int] = set()
    while order and sum(p.problem_id in taken for p in pairs) < n:
        taken.add(order.pop())
    train = [p for p in pairs if p.problem_id not in taken]
    if not train:
        raise RankspaceError(f"--holdout {n} leaves no pair to extract from: {len(pairs)} pairs in all")
    return train, [p for p in pairs if p.problem_id in taken]


def tokenize_pair(tokenizer: Any, pair: Pair, chat: Chat | None = None) -> TokenizedPair:
    """Prompt by the tokenizer's chat template (with the generation prompt), completions without special tokens, then the token
    that ends an answer in this template (`Chat.end`).

    chat: how the template is filled in, as the rollouts' prompts are.

    Raises:
        RankspaceError: the tokenizer has no chat template or no EOS, the template refuses the prompt, or both branches give
            the same tokens.
    """
    if tokenizer.eos_token_id is None:
        raise RankspaceError("the tokenizer has no EOS token: set tokenizer.eos_token")
    try:
        prompt = (chat or Chat()).ids(tokenizer, pair.prompt)
        end = (chat or Chat()).end(tokenizer, pair.prompt)
    except RankspaceError as error:
        raise RankspaceError(f"pair {pair.id}: {error}") from error
    ends = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], end] for answer in (pair.hack, pair.clean)]
    if ends[0] == ends[1]:
        raise RankspaceError(f"pair {pair.id}: hack and clean become the same tokens, the pair shows no direction")
    return TokenizedPair(pair.id, prompt + ends[0], prompt + ends[1], len(prompt))
