"""The pipe's encoding: every plain value comes back exactly, foreign ones as what they hold, broken bytes as one error."""

import contextlib
import enum
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

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


class Mapping(dict):
    def items(self):
        return [("not", "this")]


@pytest.mark.parametrize(
    ("value", "content"),
    [(Colour.RED, 1), (Lies([1, "x"]), [1, "x"]), (Mapping(a=1), {"a": 1})],
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


Point = namedtuple("Point", "x count")


class Queue(deque):
    def __iter__(self):
        return iter("not this")


class Tally(Counter):
    def __eq__(self, other):
        return True

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [
        deque([1, "b", None]),
        Counter("aab"),
        Counter(a=0, b=-1),
        OrderedDict([("b", 1), ("a", 2)]),
        defaultdict(int, a=1),
        defaultdict(list, a=[1]),
        Point(3, 4),
        [deque([Counter("a")]), (Point(1, deque()),)],
    ],
)
def test_a_collection_comes_back_as_its_kind(value):
    back = through(value)
    assert back == value and type(back).__name__ == type(value).__name__ and repr(back) == repr(value)


def test_kinds_compare_as_they_do_in_plain_python():
    assert through(OrderedDict(a=1, b=2)) != OrderedDict(b=2, a=1)
    assert through(OrderedDict(a=1, b=2)) == {"b": 2, "a": 1}
    assert through(Counter(a=1, b=0)) == Counter("a") and through(Counter(a=1, b=0)) != {"a": 1}
    assert through(Counter("aab")).most_common(1) == [("a", 2)] and through(Counter("a"))["z"] == 0
    assert through(defaultdict(int))[5] == 0
    assert through(Point(1, 2)).count == 2 == through(Point(1, 2))[1] and through(Point(1, 2)) == (1, 2)
    assert through(deque([5, 6]))[-1] == 6 and through(deque([1])) != [1]


def test_views_of_dicts_compare_as_sets_do():
    plain = {0: "a", 1: [2]}
    assert through(plain.keys()) == {0, 1} and through(plain.keys()) != [0, 1] and list(through(plain.keys())) == [0, 1]
    assert through({1: 2}.items()) == {(1, 2)} and through(OrderedDict(a=1).keys()) == {"a"}
    assert list(through(plain.values())) == ["a", [2]] and through(plain.values()) != ["a", [2]]


def test_a_class_of_the_programs_own_is_read_by_what_it_inherits():
    assert list(through(Queue([1, 2]))) == [1, 2]
    assert through(Tally("ab")) != Counter("aa") and type(through(Tally("ab"))) is Counter


@pytest.mark.parametrize("fields", [("class",), ("x", "x"), ("_a",), ("1",), (3,), "xy", ("x", "y", "z")])
def test_a_named_tuple_of_odd_names_is_a_tuple(fields):
    made = type("P", (tuple,), {"_fields": fields})((1, 2))
    assert through(made) == (1, 2) and type(through(made)) is tuple


@pytest.mark.parametrize(
    "data", [b"K", b"Kd", b"KdN", b"KclxxxxN", b"KzN", b"Kni\x01\0\0\0\1", b"Kft\0\0\0\0", b"Kmt\0\0\0\0"]
)
def test_a_forged_kind_is_refused(data):
    with pytest.raises(ChannelError):
        decode(data)


def test_kinds_of_wrong_content_are_refused():
    for kind, content in ((b"n", ("P",)), (b"n", (3, 4, 5)), (b"f", (None,)), (b"m", [1]), (b"k", [[]])):
        with pytest.raises(ChannelError):
            decode(b"K" + kind + encode(content, 1 << 10))


def test_generators_keep_their_items_and_equal_nothing():
    generator = through(x for x in "ab")
    assert generator == generator and generator != Items("generator", ("a", "b")) and list(generator) == ["a", "b"]


def test_a_subtree_that_hangs_twice_is_told_twice():
    shared = Leaf(2, Leaf(3))
    assert through(Leaf(1, shared, shared)) == Tree((1, 2, 2, 3, 3), bytes([3, 1, 1, 0, 0]))


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
