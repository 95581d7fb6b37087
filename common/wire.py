"""Messages <-> bytes: msgpack in an envelope {"v": schema version, "kind": class name, "body": fields}.

Decoding checks size, envelope, schema version, kind and every field; anything else is a `WireError` with the reason.
There is no pickle anywhere. Lone surrogates in model text survive the round trip.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
from pydantic import ValidationError

from common.errors import WireError
from common.settings import explain
from common.types import SCHEMA_VERSION, Message

M = TypeVar("M", bound=Message)


def pack(message: Message) -> bytes:
    """The bytes of one message. WireError when they exceed its kind's max_bytes."""
    envelope = {"v": SCHEMA_VERSION, "kind": type(message).__name__, "body": message.model_dump(mode="python")}
    try:
        # surrogatepass: a model writes lone surrogates, and grading must see what it wrote
        data: bytes = msgpack.packb(envelope, use_bin_type=True, unicode_errors="surrogatepass")
    except (OverflowError, ValueError, TypeError) as error:
        raise WireError(f"cannot pack {type(message).__name__}: {error}") from None
    if len(data) > message.max_bytes:
        raise WireError(f"{type(message).__name__} has {len(data)} bytes, the limit is {message.max_bytes}")
    return data


def unpack(data: bytes, *kinds: type[M]) -> M:
    """The message in `data`, which must be one of `kinds`; WireError naming what is wrong otherwise."""
    envelope = _envelope(data, max(k.max_bytes for k in kinds))
    kind = next((k for k in kinds if k.__name__ == envelope["kind"]), None)
    if kind is None:
        found = repr(envelope["kind"])[:60]
        raise WireError(f"message of kind {found}, expected {' or '.join(k.__name__ for k in kinds)}")
    if len(data) > kind.max_bytes:
        raise WireError(f"{kind.__name__} has {len(data)} bytes, the limit is {kind.max_bytes}")
    try:
        return kind.model_validate(envelope["body"])
    except ValidationError as error:
        raise WireError(f"{kind.__name__}: {explain(error, kind)}") from None


def _envelope(data: bytes, limit: int) -> dict[str, Any]:
    if len(data) > limit:
        raise WireError(f"message has {len(data)} bytes, the limit is {limit}")
    try:
        envelope = msgpack.unpackb(data, raw=False, unicode_errors="surrogatepass")
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {type(error).__name__} {error}"[:200]) from None
    if not isinstance(envelope, dict) or set(envelope) != {"v", "kind", "body"}:
        raise WireError("not one of our messages: the envelope must have exactly the fields v, kind, body")
    if envelope["v"] != SCHEMA_VERSION:
        raise WireError(
            f"schema version {envelope['v']!r}, this side speaks {SCHEMA_VERSION}: run one release everywhere"
        )
    return envelope
