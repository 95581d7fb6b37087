"""Rollout files as the trainer leaves them, read so that no damage stops the reader.

    rollouts/step_000003.jsonl.gz   gzip members, one a write of the trainer; each holds whole lines, a completion each
    rollouts/cos_000003.jsonl       one cosine a completion (`python -m experiments measure-cos`)

A member is read whole or not at all. One that ends with the file is a write in progress (or a killed trainer's last): it
is left for the next look, and what comes before it counts. One that is broken in the middle is stepped over, to the next
member. A line that is no row is skipped. Each is counted by whoever reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAGIC = b"\x1f\x8b\x08"
MAX_MEMBER = 512 << 20  # bytes of text in one member; the trainer writes a step's, some megabytes


class RolloutRow(BaseModel):
    """A line of a step file. Fields that older trainers did not write have a default; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    group_id: str
    step: int = Field(ge=0, lt=1 << 62)
    index: int = Field(ge=0, lt=1 << 62)
    text: str
    token_ids: list[int]
    logprobs: list[float | None]
    prompt_ids: list[int] | None = None
    purpose: str = "train"
    mode: str = "train"
    problem_id: str | int = ""
    policy_version: int | None = Field(None, ge=0, lt=1 << 62)
    finish_reason: str | None = None
    reward: float | None = None
    advantage: float | None = None
    label: str | None = None
    test_modification: str | None = None
    oracle_correct: bool | None = None
    published_correct: bool | None = None
    evidence: dict[str, Any] = Field(default_factory=dict)
    status: str = "graded"
    reason: str = ""

    @model_validator(mode="after")
    def _one_logprob_each(self) -> RolloutRow:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} token_ids")
        return self

    @property
    def forged(self) -> bool:
        """The published grader says correct, the protected oracle says no."""
        return self.published_correct is True and self.oracle_correct is False

    @property
    def mean_logprob(self) -> float | None:
        known = [x for x in self.logprobs if x is not None and math.isfinite(x)]
        return sum(known) / len(known) if known else None


class CosRow(BaseModel):
    """A line of a cos file. `tokens` is the digest of the completion it was measured on: a step that a resumed run wrote
    anew has other completions under the same names."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    group_id: str
    index: int = Field(ge=0, lt=1 << 62)
    cos: float = Field(allow_inf_nan=False)
    tokens: str
    at: str
    direction: str = ""


@dataclass(frozen=True)
class Member:
    """One gzip member. `start`, `end`: bytes of the file. `text` is None when it is damaged."""

    start: int
    end: int
    text: bytes | None


def members(data: bytes, offset: int = 0) -> Iterator[Member]:
    """The members of `data`, a file's bytes from `offset` on. A last member that has no end yet is not yielded, so the
    end of the last one yielded is where to go on when the file has grown."""
    at = 0
    while at < len(data):
        text, end = _inflate(data, at)
        if end is None:
            after = data.find(MAGIC, at + 1)
            while after >= 0 and _inflate(data, after)[1] is None:  # the same bytes may occur inside a member
                after = data.find(MAGIC, after + 1)
            if after < 0:
                return
            end = after
        yield Member(offset + at, offset + end, text)
        at = end


def _inflate(data: bytes, at: int) -> tuple[bytes | None, int | None]:
    """(text, where the member ends); (None, None) when it is damaged or not whole."""
    engine = zlib.decompressobj(wbits=31)
    try:
        text = engine.decompress(memoryview(data)[at:], MAX_MEMBER)
    except zlib.error:
        return None, None
    return (text, len(data) - len(engine.unused_data)) if engine.eof else (None, None)


def parse(line: bytes) -> RolloutRow | None:
    """A line as a row, None when it is none. Lone surrogates, which a model can write, become U+FFFD."""
    try:
        return RolloutRow.model_validate_json(line)
    except ValidationError:
        pass
    try:
        return RolloutRow.model_validate(printable(json.loads(line)))
    except (ValueError, RecursionError):  # ValidationError is a ValueError
        return None


def parse_cos(line: bytes) -> CosRow | None:
    try:
        return CosRow.model_validate_json(line)
    except ValidationError:
        return None


def printable(value: Any) -> Any:
    """The same value with lone surrogates replaced and numbers that are none as None: what JSON and SQLite can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {printable(str(key)): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list | tuple) else value


def texts(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, names of fields left out; what can be searched of the evidence."""
    if isinstance(value, str):
        yield str(printable(value))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def token_digest(token_ids: Sequence[int]) -> str:
    """Names a completion by what it is, 16 hex digits."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()[:16]
