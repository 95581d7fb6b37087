"""The wire: what goes in comes out, and nothing else is accepted."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import WireError
from common.types import DeltaS, GradedGroup, RolloutGroup, checksum
from common.wire import pack, unpack
from tests.samples import broken, completion, grade, graded, group


def test_round_trip_of_nested_messages():
    message = graded([grade(3.5, "Reward Hack"), broken()])
    assert unpack(pack(message), GradedGroup) == message


def test_a_lone_surrogate_in_model_text_survives():
    message = group(completions=1).model_copy(update={"completions": [completion(text="\ud800 x")]})
    assert unpack(pack(message), RolloutGroup).completions[0].text == "\ud800 x"


def test_floats_are_doubles():
    value = -0.1234567890123456
    message = group(completions=1)
    message = message.model_copy(update={"generate_s": value})
    assert unpack(pack(message), RolloutGroup).generate_s == value


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"v": 99}, "schema version 99"),
        ({"kind": "Nonsense"}, "kind 'Nonsense'"),
        ({"extra": 1}, "envelope"),
    ],
)
def test_a_foreign_envelope_is_refused(change, word):
    envelope = msgpack.unpackb(pack(group())) | change
    with pytest.raises(WireError, match=word):
        unpack(msgpack.packb(envelope), RolloutGroup)


def test_an_unknown_field_is_named():
    envelope = msgpack.unpackb(pack(group()))
    envelope["body"]["polcy_version"] = 3
    with pytest.raises(WireError, match="polcy_version"):
        unpack(msgpack.packb(envelope), RolloutGroup)


def test_a_missing_field_is_named():
    envelope = msgpack.unpackb(pack(group()))
    del envelope["body"]["prompt_ids"]
    with pytest.raises(WireError, match="prompt_ids"):
        unpack(msgpack.packb(envelope), RolloutGroup)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_wire_error(data):
    with pytest.raises(WireError):
        unpack(data, RolloutGroup, GradedGroup)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_flipped_byte_never_crashes(position, value):
    data = bytearray(pack(group()))
    data[position % len(data)] = value
    try:
        unpack(bytes(data), RolloutGroup)
    except WireError:
        return


def test_deep_nesting_is_refused():
    with pytest.raises(WireError):
        unpack(b"\x91" * 100_000 + b"\xc0", RolloutGroup)


def test_a_delta_with_a_wrong_checksum_or_length_is_refused():
    good = {"run_id": "r", "version": 1, "modules": [("a", 2)], "vector": b"\0" * 8, "probe_ids": [1, 2]}
    assert DeltaS(**good, checksum=checksum(b"\0" * 8)).version == 1
    with pytest.raises(ValidationError, match="checksum"):
        DeltaS(**good, checksum="0" * 64)
    with pytest.raises(ValidationError, match="12 bytes"):
        DeltaS(**(good | {"vector": b"\0" * 12}), checksum=checksum(b"\0" * 12))


def test_an_infra_error_has_no_reward_and_a_grade_has_one():
    with pytest.raises(ValidationError, match="infra_error"):
        broken().model_copy().model_validate(broken().model_dump() | {"reward": 0.0})
    with pytest.raises(ValidationError, match="graded"):
        grade().model_validate(grade().model_dump() | {"reward": None})


def test_logprobs_must_match_tokens():
    with pytest.raises(ValidationError, match="logprobs has 2 entries for 3"):
        completion().model_validate(completion().model_dump() | {"logprobs": [0.0, 0.0]})
