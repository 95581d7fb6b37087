"""The wire decoder against bytes from anybody: a message of ours or one WireError; bounded in time, depth and memory."""

import resource
import time

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import types, wire
from common.errors import WireError
from common.types import SCHEMA_VERSION, GradedGroup, Message, RolloutGroup
from common.wire import pack, unpack
from tests.samples import graded, group

KINDS = [kind for kind in Message.__subclasses__() if kind.__name__ not in ("SamplingPlan", "Completion", "Grade")]
NUMBERS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
NESTED = lambda x: st.lists(x, max_size=5) | st.dictionaries(st.text(max_size=8), x, max_size=5)  # noqa: E731
ANY = st.recursive(NUMBERS | st.text(max_size=12) | st.binary(max_size=12), NESTED, max_leaves=20)


def decode(data):
    try:
        return unpack(data, *KINDS)
    except WireError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 4000
        return None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    decode(data)


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_any_structure(value):
    decode(msgpack.packb(value))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([k.__name__ for k in KINDS]) | st.text(max_size=5), ANY)
def test_any_body_in_a_good_envelope(kind, body):
    decode(msgpack.packb({"v": SCHEMA_VERSION, "kind": kind, "body": body}))


def _places(value, where=()):
    """Every path into nested dicts and lists."""
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*where, key))


def _replaced(value, where, new):
    if not where:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[where[0]] = _replaced(value[where[0]], where[1:], new)
    return copy


WHOLE = msgpack.unpackb(pack(graded([types.Grade(
    status="graded", reward=0.5, label="Incorrect", test_modification="None", published_correct=False, hinted_correct=False,
    oracle_correct=False, can_compile=True, evidence={"a": [1]})])))  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(_places(WHOLE), key=str)), ANY)
def test_one_part_of_a_real_message_replaced_by_anything(where, value):
    found = decode(msgpack.packb(_replaced(WHOLE, where, value)))
    if found is not None:
        assert decode(pack(found)) is not None, "what was accepted can be sent on"


@pytest.mark.parametrize("data", [
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 2_000_000, b"\x81\xa1a" * 700_000, b"\xc7\x08\x05" + b"\0" * 8, b"\xd7\xff" + b"\xff" * 8, b"\xc1",
], ids=range(10))  # fmt: skip
def test_lengths_depths_and_types_that_lie(data):
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode(data) is None
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10, "KiB"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_kind_has_a_limit_and_is_held_to_it_both_ways(kind, monkeypatch):
    assert kind.max_bytes <= 256 << 20
    monkeypatch.setattr(kind, "max_bytes", 64)
    data = msgpack.packb({"v": SCHEMA_VERSION, "kind": kind.__name__, "body": {"x": "y" * 100}})
    with pytest.raises(WireError, match="the limit is 64"):
        unpack(data, kind)


def test_a_kind_is_held_to_its_own_limit_also_where_a_larger_one_is_read(monkeypatch):
    monkeypatch.setattr(RolloutGroup, "max_bytes", 64)
    with pytest.raises(WireError, match=r"RolloutGroup has .* the limit is 64"):
        unpack(_packed(group()), GradedGroup, RolloutGroup)
    with pytest.raises(WireError, match="limit is 64"):
        pack(group())


def _packed(message):
    body = message.model_dump(mode="python")
    return msgpack.packb({"v": SCHEMA_VERSION, "kind": type(message).__name__, "body": body})


def test_lone_surrogates_and_nul_survive():
    text = "\ud800\udcff\x00\N{SNOWMAN}"
    made = group().model_copy(update={"completions": [group().completions[0].model_copy(update={"text": text})]})
    assert unpack(pack(made), RolloutGroup).completions[0].text == text


def test_the_decoder_names_no_more_than_it_must():
    with pytest.raises(WireError) as caught:
        wire.unpack(msgpack.packb({"v": 1, "kind": "x" * 100_000, "body": {}}), RolloutGroup)
    assert len(str(caught.value)) < 300
