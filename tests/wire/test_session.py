"""The hello, in words: who may talk to whom, and what each side is told when not."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from protocol import WIRE_VERSION
from protocol.errors import FrameTooLong, HelloRefused, MalformedMessage
from protocol.identifiers import NodeId, Peer
from protocol.wire.codec import encode
from protocol.wire.framing import frame
from protocol.wire.messages import Hello, NotUnderstood, Ping, Pong, Refusal
from protocol.wire.session import HELLO_BYTES_MAX, TOLD_MAX, UNKNOWN_MAX, Session

A, B, C = (Peer(NodeId(number), "127.0.0.1", 7000 + number, 1) for number in (1, 2, 3))
HELLO = Hello(WIRE_VERSION, "c", "control", A, B.id)


def listener(*residents: Peer) -> Session:
    by_id: dict[NodeId | None, Peer] = {peer.id: peer for peer in residents}
    if residents:
        by_id[None] = residents[0]
    return Session.listening("c", by_id.get, 1 << 20)


def dialler(receiver: NodeId | None = B.id) -> Session:
    return Session.dialling("c", A, receiver, "control", 1 << 20)


def carry(source: Session, target: Session) -> None:
    target.receive(source.data_to_send())


def greeted(receiver: NodeId | None = B.id) -> tuple[Session, Session]:
    a, b = dialler(receiver), listener(B, C)
    carry(a, b)
    assert b.next_message() == replace(HELLO, receiver=receiver)
    carry(b, a)
    assert isinstance(a.next_message(), Hello)
    return a, b


@pytest.mark.parametrize(("asked", "answers"), [(B.id, B), (C.id, C), (None, B)])
def test_who_was_asked_for_answers(asked: NodeId | None, answers: Peer) -> None:
    a, b = greeted(asked)
    assert a.hello is not None
    assert (a.hello.sender, a.hello.receiver, b.local) == (answers, A.id, answers)
    a.send(Ping())
    carry(a, b)
    assert b.next_message() == Ping()


@pytest.mark.parametrize(
    ("hello", "code", "words"),
    [
        (replace(HELLO, wire_version=WIRE_VERSION + 2), "version", f"{WIRE_VERSION + 2} and {WIRE_VERSION} differ by more than one"),
        (replace(HELLO, cluster="d"), "cluster", "cluster 'd' is not ours, 'c'"),
        (replace(HELLO, receiver=NodeId(9)), "receiver", "node 00000000 does not live at this address"),
    ],
)
def test_a_listener_refuses_in_words_that_the_dialler_hears(hello: Hello, code: str, words: str) -> None:
    a, b = dialler(), listener(B)
    b.receive(frame(encode(hello)))
    with pytest.raises(HelloRefused, match=words):
        b.next_message()
    carry(b, a)
    with pytest.raises(HelloRefused, match=rf"refused by the other side \({code}\): .*{words}"):
        a.next_message()
    assert a.refusal is not None
    assert a.refusal.code == code


def test_nobody_lives_here_yet() -> None:
    b = listener()
    b.receive(frame(encode(replace(HELLO, receiver=None))))
    with pytest.raises(HelloRefused, match="no node lives at this address"):
        b.next_message()


def test_versions_may_differ_by_one() -> None:
    b = listener(B)
    later = replace(HELLO, wire_version=WIRE_VERSION + 1)
    b.receive(frame(encode(later)))
    assert b.next_message() == later


def test_a_dialler_refuses_somebody_else() -> None:
    a = dialler(B.id)
    a.receive(frame(encode(Hello(WIRE_VERSION, "c", "control", C, A.id))))
    with pytest.raises(HelloRefused, match="asked for 00000000, was answered by 00000000"):
        a.next_message()


@pytest.mark.parametrize("first", [encode(Ping()), b"nonsense", b"\x92\xcd\x03\xe7\x80"], ids=["no hello", "no message", "unknown"])
def test_the_first_message_must_be_a_hello(first: bytes) -> None:
    b = listener(B)
    b.receive(frame(first))
    with pytest.raises((HelloRefused, MalformedMessage)):
        b.next_message()
    a = dialler()
    carry(b, a)
    with pytest.raises(HelloRefused, match="malformed"):
        a.next_message()


def test_before_the_hello_frames_are_small() -> None:
    b = listener(B)
    b.receive((HELLO_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(FrameTooLong):
        b.next_message()


def test_an_unknown_message_is_answered_and_passed_over() -> None:
    a, b = greeted()
    b.receive(frame(b"\x92\xcd\x03\xe7\x80") + frame(encode(Ping())))
    assert b.next_message() == Ping()
    carry(b, a)
    assert a.next_message() == NotUnderstood(999)


def test_each_unknown_type_is_answered_once_and_no_more_of_them_than_fit() -> None:
    """Who does not read the answers costs no memory."""
    a, b = greeted()
    for tag in [999] * 3 + [*range(1000, 1000 + 2 * TOLD_MAX)]:
        b.receive(frame(msgpack.packb([tag, {}])) + frame(encode(Ping())))
        assert b.next_message() == Ping()
    carry(b, a)
    told = [a.next_message() for _ in range(TOLD_MAX + 1)]
    assert told == [NotUnderstood(tag) for tag in range(999, 999 + TOLD_MAX)] + [None]


def test_unknown_messages_without_end_end_the_session() -> None:
    """A quarter of a megabyte of them at once would be passed over, forty thousand times, before anyone else is heard."""
    _, b = greeted()
    unknown = frame(b"\x92\xcd\x03\xe7\x80")
    for _ in range(3):
        b.receive(unknown * UNKNOWN_MAX)
        assert b.next_message() is None, "so many are passed over, as often as they come"
    b.data_to_send()
    b.receive(unknown * (UNKNOWN_MAX + 1))
    with pytest.raises(MalformedMessage, match="more than 128 messages in a row are of no known type"):
        b.next_message()
    assert b"malformed" in b.data_to_send()


def test_a_malformed_message_ends_the_session_with_its_reason() -> None:
    a, b = greeted()
    b.receive(frame(b"nonsense"))
    with pytest.raises(MalformedMessage):
        b.next_message()
    carry(b, a)
    with pytest.raises(HelloRefused, match="malformed"):
        a.next_message()


def test_a_second_hello_is_malformed() -> None:
    _, b = greeted()
    b.receive(frame(encode(HELLO)))
    with pytest.raises(MalformedMessage, match="second Hello"):
        b.next_message()


def test_raw_bytes_follow_a_message() -> None:
    a, b = greeted()
    a.send(Pong())
    b.receive(a.data_to_send() + b"raw")
    assert b.next_message() == Pong()
    assert b.unread_bytes == 3
    assert b.take_raw(10) == b"raw"


def test_who_answers_on_another_channel_is_refused() -> None:
    """Nobody would own that connection, nor close it."""
    a = dialler()
    a.receive(frame(encode(replace(HELLO, channel="status", sender=B, receiver=A.id))))
    with pytest.raises(MalformedMessage, match="asked for the channel 'control', was answered on 'status'"):
        a.next_message()


def test_data_to_send_is_given_once() -> None:
    a = dialler()
    assert a.data_to_send()
    assert a.data_to_send() == b""
    a.send(Refusal("busy", "later"))
    assert a.data_to_send() == frame(encode(Refusal("busy", "later")))
