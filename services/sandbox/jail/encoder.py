"""The job's end of the channel (channel.py): one value to bytes, beside a submission that may have patched anything.

kinds: a collection whose class means more than its content, and the content that is sent for it

    d deque: list            c Counter: dict      o OrderedDict: dict, in order      f defaultdict: (factory's name, dict)
    n a named tuple: (name, fields, values)       k, v, m dict views of keys, values, items: list

Covers: budgets of bytes, nodes and depth (a cyclic container passes every one). Everything it calls is bound at import.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from itertools import islice
from typing import Any

MAX_DEPTH = 200
MAX_NODES = 600_000

_U32 = struct.Struct("<I")
_F64 = struct.Struct("<d")
_C128 = struct.Struct("<dd")


class ChannelError(Exception):
    """Bytes that are not one value within the budgets, or a value that has no encoding within them."""


# The submission may have patched builtins or emptied them: everything that is called or caught below is bound here.
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


def _base(value: Any) -> Any:
    """The builtin type whose content `value` has, by its real class (not `__class__`)."""
    cls = _type(value)
    if cls in _PLAIN:
        return cls
    for parent in _mro(cls):
        if parent in _PLAIN:
            return parent
    return None


_KINDS = {
    deque: b"d",
    Counter: b"c",
    OrderedDict: b"o",
    defaultdict: b"f",
    type({}.keys()): b"k",
    type({}.values()): b"v",
    type({}.items()): b"m",
}
_deque, _ordered = deque, OrderedDict
_factory: Any = vars(defaultdict)["default_factory"].__get__
_FACTORIES = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    list: "list",
    tuple: "tuple",
    dict: "dict",
    set: "set",
}


def _kind(value: Any) -> tuple[bytes, Any] | None:
    """(kind, content) of a collection that is more than its content."""
    classes = _mro(_type(value))
    for parent in classes:
        kind = _KINDS.get(parent)
        if kind is None:
            continue
        if kind == b"d":
            return kind, _list(_deque.__iter__(value))
        if kind == b"o":
            return kind, _dict(_ordered.items(value))
        if kind == b"c":
            return kind, _dict(_dict.items(value))
        if kind == b"f":
            factory = _factory(value)
            plain = _type(factory) is _type  # a class whose own class is the usual one: its hash is no code of theirs
            return kind, (_FACTORIES.get(factory) if plain else None, _dict(_dict.items(value)))
        return kind, _list(parent.__iter__(value))
    if _tuple in classes and (fields := _fields(classes[0])) is not None:
        return b"n", (_str(_name(classes[0]))[:80], fields, _tuple(_tuple.__iter__(value)))
    return None


def _fields(cls: type) -> Any:  # a tuple of names, or None
    try:
        names: Any = _getattr(cls, "_fields", None)
    except _Exception:
        return None
    if _type(names) is not _tuple:
        return None
    for name in names:
        if _type(name) is not _str:
            return None
    return names


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


def _bulk(items: list[Any]) -> bytes | None:
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


def _chain(head: Any, budget: int) -> list[Any] | None:
    """Values of a .val/.next chain; None when it is cyclic, too long or not a chain all the way."""
    values: list[Any] = []
    seen, node = _set(), head
    while node is not None:
        value, after = _getattr(node, "val", _MISSING), _getattr(node, "next", _MISSING)
        if value is _MISSING or after is _MISSING or _id(node) in seen or _len(values) >= budget:
            return None
        seen.add(_id(node))
        values.append(value)
        node = after
    return values


def _tree(root: Any, budget: int) -> tuple[list[Any], bytes] | None:
    """Nodes that hang in several places are told as often: what is no tree all the way (a cycle) passes the budget."""
    queue, shape = [root], _bytearray()
    for node in queue:
        bits = 0
        for bit, side in ((1, "left"), (2, "right")):
            child = _getattr(node, side, _MISSING)
            if child is _MISSING or _getattr(node, "val", _MISSING) is _MISSING:
                return None
            if child is not None:
                if _len(queue) >= budget:
                    return None
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
        if _getattr(value, "__iter__", _MISSING) is not _MISSING and not _isinstance(value, _type):
            items = _list(_islice(_iter(value), budget + 1))
            return b"U" + _U32.pack(_len(items)) + _U32.pack(_len(name)) + name, items
    except _Exception:  # an attribute of the submission's own class raised: it has no plain content
        pass
    return _counted(b"x", _str.encode(type_name(value), "utf-8", "replace")), ()


def _members(value: Any, base: Any, budget: int) -> tuple[bytes, Any]:
    """(bytes to write, members still to encode)."""
    if _type(value) not in _PLAIN and (kind := _kind(value)) is not None:
        return b"K" + kind[0], (kind[1],)
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
