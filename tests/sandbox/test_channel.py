"""The pipe's encoding: every plain value comes back exactly, foreign ones as what they hold, broken bytes as one error."""

import contextlib
import enum
import math
import struct
from collections import Counter, OrderedDict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sandbox.jail.channel import Chain, ChannelError, Decoder, Foreign, Items, Tree, decode, encode

LIMIT = 1 << 20
HASHABLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
LEAVES = (
    HASHABLE | st.complex_numbers(allow_nan=False) | st.binary().map(bytearray) | st.lists(st.floats(allow_nan=False))
)
VALUES = st.recursive(
    LEAVES | st.sets(HASHABLE) | st.frozensets(HASHABLE) | st.builds(range, st.integers(), st.integers()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(HASHABLE, inner),
    max_leaves=20,
)


def through(value):
    return decode(encode(value, LIMIT))


def exactly(a, b):
    """Equal, and of the same types all the way down (True is not 1, a tuple no list)."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, (list, tuple)):
        return all(map(exactly, a, b))
    if isinstance(a, dict):
        return all(map(exactly, a, b)) and all(map(exactly, a.values(), b.values()))
    return True


@given(VALUES)
def test_a_plain_value_comes_back_exactly(value):
    assert exactly(through(value), value)


@pytest.mark.parametrize(
    "value", [2**63 - 1, -(2**63), 2**63, [2**63], [2**63 - 1, -1], [True, 1], [1.0, 1], -0.0, "\ud800", [[]]]
)
def test_the_edges_of_the_short_forms(value):
    assert exactly(through(value), value)
    assert str(through(value)) == str(value)


def test_nan_comes_back_as_nan():
    assert math.isnan(through(math.nan)) and math.isnan(through([math.nan])[0])


class Colour(enum.IntEnum):
    RED = 1


class Lies(list):
    def __iter__(self):
        return iter("not this")

    def __len__(self):
        return 99


@pytest.mark.parametrize(
    ("value", "content"),
    [(Counter("aab"), {"a": 2, "b": 1}), (Colour.RED, 1), (Lies([1, "x"]), [1, "x"]), (OrderedDict(a=1), {"a": 1})],
)
def test_a_subclass_is_read_through_its_base(value, content):
    assert exactly(through(value), content)


class Node:
    def __init__(self, val, next=None):
        self.val, self.next = val, next


class Leaf:
    def __init__(self, val, left=None, right=None):
        self.val, self.left, self.right = val, left, right


def test_chains_and_trees_come_back_as_their_values():
    assert through(Node(1, Node("b", Node(None)))) == Chain((1, "b", None))
    tree = through([Leaf(1, Leaf(2), Leaf(3, None, Leaf(4)))])
    assert tree == [Tree((1, 2, 3, 4), bytes([3, 0, 2, 0]))]


def test_what_is_no_whole_chain_or_tree_is_foreign():
    ring = Node(1)
    ring.next = ring
    knot = Leaf(1)
    knot.left = knot
    half = Node(1, object())
    lone = Leaf(1, object())
    for value in (ring, knot, half, lone):
        assert through(value).type_name == type(value).__name__


class Trap:
    @property
    def next(self):
        raise RuntimeError("no")


def test_foreign_objects_are_names_that_equal_nothing():
    found = through([Trap(), object(), int])
    assert [type(x) for x in found] == [Foreign] * 3
    assert [x.type_name for x in found] == ["Trap", "object", "type"]
    assert found[1] != through(object()) and found[1] == found[1] and len({*found}) == 3


def test_iterables_keep_their_items_and_only_deques_can_be_equal():
    made = through(deque([1, 2]))
    assert made == through(deque([1, 2])) != through(deque([2, 1]))
    assert list(made) == [1, 2] and len(made) == 2
    generator = through(x for x in "ab")
    assert generator == generator and generator != Items("generator", ("a", "b")) and list(generator) == ["a", "b"]
    assert len({generator, made}) == 2


def test_the_encoder_keeps_its_budgets():
    cyclic = []
    cyclic.append(cyclic)
    with pytest.raises(ChannelError, match="too deeply"):
        encode(cyclic, LIMIT)
    with pytest.raises(ChannelError, match="too large"):
        encode("x" * 100, 50)
    with pytest.raises(ChannelError, match="too large"):
        encode([[]] * 100, LIMIT, max_nodes=50)


def u32(n):
    return struct.pack("<I", n)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "truncated"),
        (b"i" + u32(4) + b"\1", "truncated"),
        (b"l" + u32(2**32 - 1), "truncated"),
        (b"NN", "bytes after"),
        (b"q", "unknown tag"),
        (b"S" + u32(1) + b"l" + u32(0), "malformed value .TypeError"),
        (b"D" + u32(1) + b"l" + u32(0) + b"N", "malformed value .TypeError"),
        (b"s" + u32(1) + b"\xff", "malformed value .UnicodeDecodeError"),
        (b"rNNN", "malformed value .TypeError"),
        (b"r" + (b"i" + u32(1) + b"\0") * 3, "malformed value .ValueError"),
        (b"B" + u32(2) + b"\0\0" + b"NN", "shape does not fit"),
        (b"B" + u32(1) + b"\4" + b"N", "shape does not fit"),
        ((b"l" + u32(1)) * 300 + b"N", "too deeply"),
    ],
)
def test_broken_bytes_are_one_error(data, said):
    with pytest.raises(ChannelError, match=said):
        decode(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_that_error(data):
    with contextlib.suppress(ChannelError):
        decode(data)


def test_the_decoder_keeps_its_budgets():
    with pytest.raises(ChannelError, match="too many values"):
        Decoder(encode([1] * 100, LIMIT), max_nodes=50).value()
    many = encode([str(i) for i in range(600)], LIMIT)
    assert len(decode(many)) == 600
    with pytest.raises(ChannelError, match="too long"):
        decode(many, seconds=-1.0)
    for value in (set("abc"), {"a": 1}):
        with pytest.raises(ChannelError, match="too long"):
            decode(encode(value, LIMIT), seconds=-1.0)
