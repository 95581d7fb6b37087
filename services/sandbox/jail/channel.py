"""Plain values over a pipe that the other end may lie on: a typed, length-capped encoding. Never pickle.

    value := 'N' | 'T' | 'F' | 'i' n bytes | 'd' 8 | 'c' 16 | 's' n bytes | 'b' n bytes | 'y' n bytes
           | ('l' | 't' | 'S' | 'Z') n value*n          list, tuple, set, frozenset
           | 'D' n (value value)*n                      dict
           | 'I' n 8*n | 'R' n 8*n                      list of 64-bit ints, list of doubles (one copy each way)
           | 'r' value value value                      range
           | 'L' n value*n                              a chain of .val/.next nodes
           | 'B' n shape value*n                        a tree of .val/.left/.right nodes, breadth first
           | 'U' n n name value*n                       something else that iterates: a deque, a generator, a view
           | 'x' n name                                 anything else: the name of its type
    n is a little-endian u32.

Subclasses are read through their base class (a Counter is its dict, an IntEnum its int), so no method of the
submission runs in the encoder and what counts is the content. Iterative both ways.
Covers, in the decoder: depth, node and byte budgets, a deadline (colliding hashes make sets quadratic), trailing bytes,
unhashable members. Does not cover: whether the value is *right*; a forged value is only an answer.
"""

from __future__ import annotations

import struct
import time
from array import array
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_DEPTH = 200
MAX_NODES = 600_000
DECODE_SECONDS = 2.0  # of CPU time

_U32 = struct.Struct("<I")
_F64 = struct.Struct("<d")
_C128 = struct.Struct("<dd")


class ChannelError(Exception):
    """Bytes that are not one value within the budgets, or a value that has no encoding within them."""


@dataclass(frozen=True)
class Chain:
    """The values of a linked list, head first."""

    values: tuple


@dataclass(frozen=True)
class Tree:
    """A binary tree, breadth first; bit 0 of shape[i] says that node i has a left child, bit 1 a right one."""

    values: tuple
    shape: bytes


@dataclass(frozen=True)
class Items:
    """What an iterable without plain content holds. Two deques may be equal; nothing else of this kind is."""

    type_name: str
    values: tuple

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Items) and self.type_name == other.type_name == "deque" and self.values == other.values
        )

    __hash__ = object.__hash__

    def __iter__(self):  # the trusted side may write list(...) or sorted(...) around it
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


# The encoder runs beside the submission, which may have patched builtins: everything it calls is bound here.
_len, _type, _iter, _next, _set, _map, _id = len, type, iter, next, set, map, id
_getattr, _isinstance = getattr, isinstance
_int, _float, _complex, _str, _bytes, _bytearray, _bool = int, float, complex, str, bytes, bytearray, bool
_list, _tuple, _dict, _frozenset, _range, _islice, _array = list, tuple, dict, frozenset, range, islice, array
_Exception, _OverflowError, _StopIteration = Exception, OverflowError, StopIteration
_mro = type.__dict__["__mro__"].__get__
_name = type.__dict__["__name__"].__get__
_MISSING, _WHOLE = object(), slice(None)
_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range}
)
_INTS, _FLOATS = {int}, {float}


def _base(value: Any) -> type | None:
    """The builtin type whose content `value` has, by its real class (not `__class__`)."""
    cls = _type(value)
    if cls in _PLAIN:
        return cls
    for parent in _mro(cls):
        if parent in _PLAIN:
            return parent
    return None


def type_name(value: Any) -> str:
    """Name of the real class, at most 80 characters, whatever the class does."""
    return _str(_name(_type(value)))[:80]


def _counted(tag: bytes, body: bytes) -> bytes:
    return tag + _U32.pack(_len(body)) + body


def _scalar(value: Any, base: type) -> bytes | None:
    if base is _type(None):
        return b"N"
    if base is _bool:
        return b"T" if value is True else b"F"
    if base is _int:
        number = _int.__index__(value)
        return _counted(b"i", _int.to_bytes(number, (_int.bit_length(number) + 8) // 8, "little", signed=True))
    if base is _float:
        return b"d" + _F64.pack(value)
    if base is _complex:
        return b"c" + _C128.pack(_complex.real.__get__(value), _complex.imag.__get__(value))
    if base is _str:
        return _counted(b"s", _str.encode(value, "utf-8", "surrogatepass"))
    if base is _bytes:
        return _counted(b"b", _bytes.__getitem__(value, _WHOLE))
    if base is _bytearray:
        return _counted(b"y", _bytes(_bytearray.__getitem__(value, _WHOLE)))
    return None


def _bulk(items: list) -> bytes | None:
    """A list of machine ints or of floats in one copy, or None."""
    kinds = _set(_map(_type, items))
    try:
        if kinds == _INTS:
            return b"I" + _U32.pack(_len(items)) + _array("q", items).tobytes()
        if kinds == _FLOATS:
            return b"R" + _U32.pack(_len(items)) + _array("d", items).tobytes()
    except _OverflowError:
        pass
    return None


def _chain(head: Any, budget: int) -> list | None:
    """Values of a .val/.next chain; None when it is cyclic, too long or not a chain all the way."""
    values, seen, node = [], _set(), head
    while node is not None:
        value, after = _getattr(node, "val", _MISSING), _getattr(node, "next", _MISSING)
        if value is _MISSING or after is _MISSING or _id(node) in seen or _len(values) >= budget:
            return None
        seen.add(_id(node))
        values.append(value)
        node = after
    return values


def _tree(root: Any, budget: int) -> tuple[list, bytes] | None:
    queue, shape, seen = [root], _bytearray(), {_id(root)}
    for node in queue:
        bits = 0
        for bit, side in ((1, "left"), (2, "right")):
            child = _getattr(node, side, _MISSING)
            if child is _MISSING or _getattr(node, "val", _MISSING) is _MISSING:
                return None
            if child is not None:
                if _id(child) in seen or _len(queue) >= budget:
                    return None
                seen.add(_id(child))
                queue.append(child)
                bits |= bit
        shape.append(bits)
    return [node.val for node in queue], _bytes(shape)


def _nodes(value: Any, budget: int) -> tuple[bytes, Any]:
    """Header and members of a foreign object: a chain, a tree, or just its type's name."""
    try:
        if _getattr(value, "next", _MISSING) is not _MISSING and (values := _chain(value, budget)) is not None:
            return b"L" + _U32.pack(_len(values)), values
        if _getattr(value, "left", _MISSING) is not _MISSING and (tree := _tree(value, budget)) is not None:
            return b"B" + _U32.pack(_len(tree[0])) + tree[1], tree[0]
        name = _str.encode(type_name(value), "utf-8", "replace")
        if _getattr(value, "__iter__", _MISSING) is not _MISSING and not _isinstance(value, type):
            items = _list(_islice(_iter(value), budget + 1))
            return b"U" + _U32.pack(_len(items)) + _U32.pack(_len(name)) + name, items
    except _Exception:  # an attribute of the submission's own class raised: it has no plain content
        pass
    return _counted(b"x", _str.encode(type_name(value), "utf-8", "replace")), ()


def _members(value: Any, base: type | None, budget: int) -> tuple[bytes, Any]:
    """(bytes to write, members still to encode)."""
    if base is _list or base is _tuple:
        items = _list(base.__iter__(value))
        if base is _list and (bulk := _bulk(items)) is not None:
            return bulk, ()
        return (b"l" if base is _list else b"t") + _U32.pack(_len(items)), items
    if base is _dict:
        pairs = _list(_dict.items(value))
        return b"D" + _U32.pack(_len(pairs)), [part for pair in pairs for part in pair]
    if base is not None and base is not _range:  # set, frozenset
        items = _list(base.__iter__(value))
        return (b"Z" if base is _frozenset else b"S") + _U32.pack(_len(items)), items
    if base is _range:
        return b"r", (value.start, value.stop, value.step)
    return _nodes(value, budget)


def encode(value: Any, max_bytes: int, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH) -> bytes:
    """The bytes of one value. Raises ChannelError when a budget is passed (a cyclic container passes every one)."""
    out, stack, nodes = _bytearray(), [_iter((value,))], 0
    while stack:
        item = _next(stack[-1], _MISSING)
        if item is _MISSING:
            stack.pop()
            continue
        nodes += 1
        base = _base(item)
        scalar = _scalar(item, base) if base is not None else None
        if scalar is not None:
            out += scalar
        else:
            head, members = _members(item, base, max_nodes)
            out += head
            if members:
                stack.append(_iter(members))
        if _len(out) > max_bytes or nodes > max_nodes:
            raise ChannelError("result too large")
        if _len(stack) > max_depth:
            raise ChannelError("result nested too deeply (or cyclic)")
    return _bytes(out)


# ------------------------------------------------------------------------------------------------- the trusted end

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
        return _U32.unpack(self._take(4))[0]

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

    def _array(self, code: str) -> list:
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
        frames: list[tuple[bytes, int, list, bytes]] = []  # tag, members wanted, members so far, shape of a tree
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

    def _open(self, tag: bytes, depth: int) -> tuple[bytes, int, list, bytes]:
        if depth >= self.max_depth:
            raise ChannelError("value nested too deeply")
        if tag == b"r":
            return tag, 3, [], b""
        if tag not in b"ltSZDLBU":
            raise ChannelError("unknown tag")
        count = self._count()
        shape = b""
        if tag in (b"B", b"U"):
            shape = bytes(self._take(count if tag == b"B" else self._count()))
        if count > len(self.data) - self.at:  # every member takes at least one byte
            raise ChannelError("truncated value")
        return tag, count * 2 if tag == b"D" else count, [], shape

    def _close(self, tag: bytes, _wanted: int, items: list, shape: bytes) -> Any:
        if tag in (b"S", b"Z"):
            return _BUILD[tag](self._gather(items))
        if tag in _BUILD:
            return _BUILD[tag](items)
        if tag == b"D":
            return self._dict(items)
        if tag == b"r":
            return range(*items)
        if tag == b"L":
            return Chain(tuple(items))
        if tag == b"U":
            return Items(str(shape[:200], "utf-8", "replace"), tuple(items))
        if sum(bin(bits & 3).count("1") for bits in shape) != max(0, len(shape) - 1) or any(b > 3 for b in shape):
            raise ChannelError("a tree whose shape does not fit")
        return Tree(tuple(items), shape)

    def _gather(self, items: list) -> set:
        """A set, giving up in time when the hashes were made to collide."""
        result: set = set()
        for start in range(0, len(items), 256):
            result.update(items[start : start + 256])
            if time.thread_time() > self.deadline:
                raise ChannelError("result took too long to read")
        return result

    def _dict(self, items: list) -> dict:
        result: dict = {}
        for start in range(0, len(items), 512):
            part = items[start : start + 512]
            result.update(zip(part[::2], part[1::2], strict=True))
            if time.thread_time() > self.deadline:
                raise ChannelError("result took too long to read")
        return result


_CONSTANT = {b"N": None, b"T": True, b"F": False}
_BYTES = {
    b"s": lambda part: str(part, "utf-8", "surrogatepass"),
    b"b": bytes,
    b"y": bytearray,
    b"x": lambda part: Foreign(str(part[:200], "utf-8", "replace")),
}


def decode(data: bytes, seconds: float = DECODE_SECONDS) -> Any:
    """One value, exact builtin types (plus Chain, Tree, Items, Foreign). Raises ChannelError."""
    return Decoder(data, seconds=seconds).value()
