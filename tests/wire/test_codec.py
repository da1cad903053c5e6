"""Messages survive the wire; whatever else comes is refused with a typed error and nothing worse (P7)."""

from __future__ import annotations

import contextlib
from typing import get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, MalformedMessage, UnknownMessage
from protocol.identifiers import HOST_MAX, NodeId, Peer
from protocol.wire import messages
from protocol.wire.codec import ARRAY_MAX, decode, encode, pack, unpack
from protocol.wire.messages import TABLE, Message, NotUnderstood, Ping, StatusReply
from protocol.wire.values import DIGEST_BYTES, Progress, RecordSummary, SubtreeDigest

INTS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
st.register_type_strategy(NodeId, st.integers(min_value=0, max_value=2**128 - 1).map(NodeId))
st.register_type_strategy(int, INTS)
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(Peer, st.builds(Peer, host=st.text(max_size=HOST_MAX)))
DIGESTS = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
st.register_type_strategy(RecordSummary, st.builds(RecordSummary, digest=DIGESTS))
RECORD = RecordSummary(NodeId(1), NodeId(2), 3, 1, 2, 30, True, 100, bytes(range(DIGEST_BYTES)))
TAGS = {row.message: row.tag for row in TABLE}


@given(st.data())
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", get_args(Message), ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    message = data.draw(st.from_type(kind))
    assert decode(encode(message)) == message


def refused_or_read(data: bytes) -> None:
    """Any other exception fails the test."""
    with contextlib.suppress(MalformedMessage, UnknownMessage):
        decode(data)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_with_a_typed_error(data: bytes) -> None:
    refused_or_read(data)


NAMES = ["id", "tree", "body", "key", "tag", "path", "sender"]
VALUES = st.recursive(
    st.none() | st.booleans() | INTS | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=12,
)


@given(st.sampled_from(sorted(TAGS.values())), VALUES)
@settings(max_examples=300, deadline=None)
def test_right_tags_with_wrong_fields_are_refused_with_a_typed_error(tag: int, value: object) -> None:
    refused_or_read(msgpack.packb([tag, value]))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_is_refused_or_makes_another_message(data: st.DataObject) -> None:
    good = bytearray(encode(data.draw(st.from_type(messages.Alive))))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    refused_or_read(bytes(good))


def test_an_unknown_tag_is_named() -> None:
    with pytest.raises(UnknownMessage) as caught:
        decode(msgpack.packb([999, {}]))
    assert caught.value.tag == 999


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert decode(msgpack.packb([TAGS[NotUnderstood], {"tag": 5, "added_in_version_2": [1, {"deep": b""}]}])) == NotUnderstood(5)


PEER = {"id": bytes(16), "host": "h", "port": 1, "incarnation": 1}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (NotUnderstood, {"tag": "5"}, "NotUnderstood.tag"),
        (NotUnderstood, {"tag": True}, "NotUnderstood.tag"),
        (NotUnderstood, {"tag": 5.0}, "NotUnderstood.tag"),
        (NotUnderstood, {}, "tag: Field required"),
        (StatusReply, {"document": b"bytes"}, "StatusReply.document"),
        (messages.HoldingsQuery, {"request": 1, "owner": bytes(15), "tree": bytes(16)}, "HoldingsQuery.owner"),
        (messages.HoldingsQuery, {"request": 1, "owner": 7, "tree": bytes(16)}, "HoldingsQuery.owner"),
        (messages.LeafProbe, {"leaf_set": [PEER, {**PEER, "port": "1"}]}, "LeafProbe.leaf_set.1.port"),
        (messages.Refusal, {"code": "whim", "reason": ""}, "Refusal.code"),
        (messages.Route, {"key": bytes(16), "body": [TAGS[Ping], {}]}, "Ping (tag 15) does not travel here"),
        (messages.Datagram, {"payload": b""}, "does not travel here"),
    ],
)
def test_a_wrong_field_is_named(kind: type, fields: dict[str, object], said: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(msgpack.packb([TAGS[kind], fields]))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([15]),
        msgpack.packb([True, {}]),
        msgpack.packb([15, {1: 2}]),
        msgpack.packb([15, {}]) + b"x",
        msgpack.packb([15, {"more": msgpack.ExtType(3, b"x")}]),
        b"\xa2\xff\xff",
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\x00\x10\x00\x00" * 1000], ids=["arrays", "maps", "announced"]
)
def test_depth_and_announced_lengths_are_bounded(data: bytes) -> None:
    """A megabyte of opening brackets, or of arrays that say that they are long, costs an error and no memory."""
    with pytest.raises(MalformedMessage):
        decode(data)


def test_the_check_of_a_digest_may_be_any_xor_of_ids() -> None:
    for check in (NodeId(0), NodeId(2**128 - 1)):
        alive = messages.Alive(NodeId(1), SubtreeDigest(check=check), Progress())
        assert decode(encode(alive)) == alive


def test_what_the_wire_cannot_carry_is_our_error() -> None:
    with pytest.raises(LocalProtocolError):
        encode(NotUnderstood(2**65))
    with pytest.raises(LocalProtocolError):
        pack({"a": object()})


def test_plain_values_are_bounded() -> None:
    assert unpack(pack({"a": (1, 2.5, None)}), 100) == {"a": (1, 2.5, None)}
    with pytest.raises(MalformedMessage):
        unpack(pack(bytes(100)), 100)
    with pytest.raises(MalformedMessage):
        unpack(pack([0] * (ARRAY_MAX + 1)), 1 << 20)


def superseded(**fields: object) -> messages.Superseded:
    message = decode(msgpack.packb([TAGS[messages.Superseded], {"by": PEER | fields}]))
    assert isinstance(message, messages.Superseded)
    return message


def test_a_peer_that_comes_again_is_the_same_object() -> None:
    assert superseded().by is superseded().by
    assert superseded(incarnation=2).by == Peer(NodeId(0), "h", 1, 2)


@pytest.mark.parametrize("fields", [{"port": True}, {"incarnation": 1.0}, {"port": [1]}, {"host": b"h"}, {"host": 1}, {"id": bytes(15)}])
def test_a_peer_that_only_equals_a_known_one_is_refused(fields: dict[str, object]) -> None:
    superseded()
    with pytest.raises(MalformedMessage, match=r"Superseded\.by"):
        superseded(**fields)


def test_peers_with_long_hosts_are_refused() -> None:
    """Else what others send could fill this process, and messages of ours that name many (P7)."""
    assert superseded(host="h" * HOST_MAX).by is not None
    with pytest.raises(MalformedMessage, match=r"Superseded\.by.*a host has at most 255 characters, not 256"):
        superseded(host="h" * (HOST_MAX + 1))


@pytest.mark.parametrize("size", [0, 31, 33, 1_000_000])
def test_a_record_whose_digest_is_none_is_refused(size: int) -> None:
    encoded = bytearray(encode(messages.HoldingsReply(1, RECORD)))
    at = encoded.index(b"\xc4\x20" + RECORD.digest)
    encoded[at : at + 34] = b"\xc6" + size.to_bytes(4, "big") + bytes(size)
    with pytest.raises(MalformedMessage, match=f"a record's digest has 32 bytes, not {size}"):
        decode(bytes(encoded))


def test_a_full_list_of_members_fits() -> None:
    """Alive with `full`: the largest that goes up a tree."""
    members = tuple(messages.MemberInfo(Peer(NodeId(i), "10.0.0.1", 7000, 1), f"agent-{i}", "source", i) for i in range(4000))
    alive = messages.Alive(NodeId(1), SubtreeDigest(4000), Progress(), members, full=True)
    encoded = encode(alive)
    assert len(encoded) < 1 << 20
    assert decode(encoded) == alive
