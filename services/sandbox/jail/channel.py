"""Plain values over a pipe that the other end may lie on: a typed, length-capped encoding. Never pickle.

    value := 'N' | 'T' | 'F' | 'i' n bytes | 'd' 8 | 'c' 16 | 's' n bytes | 'b' n bytes | 'y' n bytes
           | ('l' | 't' | 'S' | 'Z') n value*n          list, tuple, set, frozenset
           | 'D' n (value value)*n                      dict
           | 'I' n 8*n | 'R' n 8*n                      list of 64-bit ints, list of doubles (one copy each way)
           | 'r' value value value                      range
           | 'L' n value*n                              a chain of .val/.next nodes
           | 'B' n shape value*n                        a tree of .val/.left/.right nodes, breadth first
           | 'K' kind value                             a collection that is more than its content: see `kinds` in encoder.py
           | 'U' n n name value*n                       something else that iterates: a generator, a map, a deque of your own
           | 'x' n name                                 anything else: the name of its type
    n is a little-endian u32.

Subclasses are read through their base class (an IntEnum is its int), so no method of the submission runs in the encoder
(encoder.py) and what counts is the content; deque, Counter, OrderedDict, defaultdict, named tuples and views of dicts are
built again here, as *our* classes, so that `[0]`, `.x` and `==` mean what they mean there. Iterative both ways.
Covers, in the decoder: depth, node and byte budgets, a deadline (colliding hashes make sets quadratic), trailing bytes,
unhashable members. Does not cover: whether the value is *right*; a forged value is only an answer.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from services.sandbox.jail.encoder import MAX_DEPTH, MAX_NODES, ChannelError, encode, type_name

__all__ = ["Chain", "ChannelError", "Foreign", "Items", "Tree", "decode", "encode", "type_name"]

DECODE_SECONDS = 2.0  # of CPU time

_U32 = struct.Struct("<I")
_F64 = struct.Struct("<d")
_C128 = struct.Struct("<dd")


@dataclass(frozen=True)
class Chain:
    """The values of a linked list, head first."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Tree:
    """A binary tree, breadth first; bit 0 of shape[i] says that node i has a left child, bit 1 a right one."""

    values: tuple[Any, ...]
    shape: bytes


@dataclass(frozen=True)
class Items:
    """What an iterable without plain content holds. Equal to nothing but itself, as generators are."""

    type_name: str
    values: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[Any]:  # the trusted side may write list(...) or sorted(...) around it
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Foreign:
    """A result whose type has no plain content. Equal to nothing but itself."""

    type_name: str

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


@lru_cache(maxsize=64)
def _record(name: str, fields: tuple[str, ...]) -> type:
    return namedtuple(name, fields)  # refuses what is no name


def _named(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        made: tuple[Any, ...] = _record(name, fields)(*values)
        return made
    except (ValueError, TypeError):  # names that only a class made by hand can have
        return tuple(values)


def _default(factory: str | None, content: dict[Any, Any]) -> defaultdict[Any, Any]:
    made: defaultdict[Any, Any] = defaultdict(_FACTORIES.get(factory))
    made.update(content)
    return made


_FACTORIES: dict[str | None, type] = {kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict, set)}
_KINDS: dict[bytes, Callable[[Any], Any]] = {
    b"d": deque,
    b"c": Counter,
    b"o": OrderedDict,
    b"f": lambda parts: _default(*parts),
    b"n": lambda parts: _named(*parts),
    b"k": lambda keys: dict.fromkeys(keys).keys(),
    b"m": lambda pairs: dict(pairs).items(),
    b"v": lambda values: dict(enumerate(values)).values(),
}


_BUILD = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}


class Decoder:
    """Reads one value from bytes written by a process that may be hostile."""

    def __init__(
        self, data: bytes, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH, seconds: float = DECODE_SECONDS
    ) -> None:
        self.data, self.at = memoryview(data), 0
        self.max_nodes, self.max_depth, self.nodes = max_nodes, max_depth, 0
        self.deadline = time.thread_time() + seconds

    def _take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ChannelError("truncated value")
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def _count(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def _leaf(self, tag: bytes) -> Any:
        """A value without members; raises KeyError for the tag of a container."""
        if tag in _CONSTANT:
            return _CONSTANT[tag]
        if tag == b"i":
            return int.from_bytes(self._take(self._count()), "little", signed=True)
        if tag == b"d":
            return _F64.unpack(self._take(8))[0]
        if tag == b"c":
            return complex(*_C128.unpack(self._take(16)))
        if tag in _BYTES:
            return _BYTES[tag](self._take(self._count()))
        return self._array({b"I": "q", b"R": "d"}[tag])

    def _array(self, code: str) -> list[Any]:
        items = array(code, bytes(self._take(8 * self._count()))).tolist()
        self._spend(len(items))
        return items

    def _spend(self, count: int) -> None:
        self.nodes += count
        if self.nodes > self.max_nodes:
            raise ChannelError("too many values")

    def value(self) -> Any:
        """The one value in the data. Raises ChannelError."""
        try:
            result = self._value()
        except (UnicodeDecodeError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise ChannelError(f"malformed value ({type(error).__name__})") from None
        if self.at != len(self.data):
            raise ChannelError("bytes after the value")
        return result

    def _value(self) -> Any:
        frames: list[tuple[bytes, int, list[Any], bytes]] = []  # tag, members wanted, members so far, shape of a tree
        while True:
            self._spend(1)
            if self.nodes & 0xFF == 0 and time.thread_time() > self.deadline:
                raise ChannelError("result took too long to read")
            tag = bytes(self._take(1))
            try:
                item = self._leaf(tag)
            except KeyError:
                frames.append(self._open(tag, len(frames)))
                item = None
            else:
                if not frames:
                    return item
                frames[-1][2].append(item)
            while frames and len(frames[-1][2]) == frames[-1][1]:
                item = self._close(*frames.pop())
                if not frames:
                    return item
                frames[-1][2].append(item)

    def _open(self, tag: bytes, depth: int) -> tuple[bytes, int, list[Any], bytes]:
        if depth >= self.max_depth:
            raise ChannelError("value nested too deeply")
        if tag == b"r":
            return tag, 3, [], b""
        if tag == b"K":
            return tag, 1, [], bytes(self._take(1))
        if tag not in b"ltSZDLBU":
            raise ChannelError("unknown tag")
        count = self._count()
        shape = b""
        if tag in (b"B", b"U"):
            shape = bytes(self._take(count if tag == b"B" else self._count()))
        if count > len(self.data) - self.at:  # every member takes at least one byte
            raise ChannelError("truncated value")
        return tag, count * 2 if tag == b"D" else count, [], shape

    def _close(self, tag: bytes, _wanted: int, items: list[Any], shape: bytes) -> Any:
        if tag in (b"S", b"Z"):
            return _BUILD[tag](self._gather(items))
        if tag in _BUILD:
            return _BUILD[tag](items)
        if tag == b"D":
            return self._dict(items)
        if tag == b"r":
            return range(*items)
        if tag == b"K":
            return self._kind(shape, items[0])
        if tag == b"L":
            return Chain(tuple(items))
        if tag == b"U":
            return Items(str(shape[:200], "utf-8", "replace"), tuple(items))
        if sum(bin(bits & 3).count("1") for bits in shape) != max(0, len(shape) - 1) or any(b > 3 for b in shape):
            raise ChannelError("a tree whose shape does not fit")
        return Tree(tuple(items), shape)

    def _kind(self, kind: bytes, content: Any) -> Any:
        """The collection that `content` (a list, dict or tuple as encoder.py sends it) is the content of."""
        if type(content) is not _CONTENT.get(kind) or time.thread_time() > self.deadline:
            raise ChannelError("a collection whose content does not fit")
        return _KINDS[kind](content)

    def _gather(self, items: list[Any]) -> set[Any]:
        """A set, giving up in time when the hashes were made to collide."""
        result: set[Any] = set()
        for start in range(0, len(items), 256):
            result.update(items[start : start + 256])
            if time.thread_time() > self.deadline:
                raise ChannelError("result took too long to read")
        return result

    def _dict(self, items: list[Any]) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for start in range(0, len(items), 512):
            part = items[start : start + 512]
            result.update(zip(part[::2], part[1::2], strict=True))
            if time.thread_time() > self.deadline:
                raise ChannelError("result took too long to read")
        return result


_CONTENT: dict[bytes, type] = {
    b"d": list,
    b"c": dict,
    b"o": dict,
    b"f": tuple,
    b"n": tuple,
    b"k": list,
    b"m": list,
    b"v": list,
}
_CONSTANT = {b"N": None, b"T": True, b"F": False}
_BYTES: dict[bytes, Callable[[memoryview], Any]] = {
    b"s": lambda part: str(part, "utf-8", "surrogatepass"),
    b"b": bytes,
    b"y": bytearray,
    b"x": lambda part: Foreign(str(part[:200], "utf-8", "replace")),
}


def decode(data: bytes, seconds: float = DECODE_SECONDS) -> Any:
    """One value, exact builtin types (plus Chain, Tree, Items, Foreign). Raises ChannelError."""
    return Decoder(data, seconds=seconds).value()
