"""One connection without its I/O: bytes in, messages out, and the hello that comes before all else.

Both sides begin with a Hello. The dialler sends its own at once and names whom it wants (`receiver`, or nobody in particular).
The listener, which may serve several nodes, answers with the Hello of the node that was asked for. Each side checks the other's:

1. wire versions differ by at most 1            else Refusal "version"
2. the cluster is ours                          else Refusal "cluster"
3. the receiver named in it lives here          else Refusal "receiver"
4. the listener's Hello is of whom we asked for else Refusal "receiver"

Whoever refuses says so in words, then closes; the other side raises the same words. Until the hello is through, frames are
small. After it, the first message of each unknown type is answered with NotUnderstood and the connection stays, unless there is nothing
else for UNKNOWN_MAX of them at once; that, and anything else that is malformed, is answered with Refusal "malformed" and ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from protocol import WIRE_VERSION
from protocol.errors import HelloRefused, MalformedMessage, RemoteProtocolError, UnknownMessage
from protocol.identifiers import NodeId, Peer
from protocol.wire.codec import decode, encode
from protocol.wire.framing import FrameReader, frame
from protocol.wire.messages import Channel, Hello, Message, NotUnderstood, Refusal

UNKNOWN_MAX = 128
"""Unknown messages one after the other with nothing else between them: a newer version sends none as often."""
TOLD_MAX = 64
"""Unknown types of which one connection's other side is told: who does not read the answers costs no more memory than these."""
HELLO_BYTES_MAX = 16 * 1024
"""A hello is some 150 bytes; this leaves room for the credentials to come."""

Residents = Callable[[NodeId | None], Peer | None]
"""Who lives at a listener: the peer of this id (of the default node for None), or None."""


class Session:
    """One side of one connection. Make it with dialling() or listening()."""

    def __init__(self, cluster: str, residents: Residents, frame_bytes_max: int) -> None:
        self._cluster = cluster
        self._residents = residents
        self._frame_bytes_max = frame_bytes_max  # in force after the hello
        self._reader = FrameReader(HELLO_BYTES_MAX)
        self._out = bytearray()
        self._asked: NodeId | None = None  # dialler only: who must answer
        self._channel: Channel | None = None  # dialler only: on which the answer must be
        self._said_hello = False
        self._told: frozenset[int] = frozenset()  # which types we do not know
        self.hello: Hello | None = None  # the other side's, once checked
        self.refusal: Refusal | None = None  # the other side's, where that is what ended the session
        self.local: Peer | None = None  # which of our nodes this connection belongs to; a listener learns it from the hello

    @classmethod
    def dialling(cls, cluster: str, local: Peer, receiver: NodeId | None, channel: Channel, frame_bytes_max: int) -> Session:
        """The dialler's side; its Hello is ready to be sent."""
        session = cls(cluster, lambda identifier: local if identifier in (None, local.id) else None, frame_bytes_max)
        session.local, session._asked, session._channel = local, receiver, channel
        session._say_hello(local, channel, receiver)
        return session

    @classmethod
    def listening(cls, cluster: str, residents: Residents, frame_bytes_max: int) -> Session:
        """The listener's side; it waits for the other's Hello."""
        return cls(cluster, residents, frame_bytes_max)

    def receive(self, data: bytes | memoryview) -> None:
        """Bytes from the connection; next_message() reads them."""
        self._reader.feed(data)

    def next_message(self) -> Message | None:
        """The next message, the checked Hello first; None where more bytes are needed.

        RemoteProtocolError (HelloRefused, MalformedMessage, FrameTooLong): send data_to_send(), which holds our Refusal if
        it was we who refused, then close. An unknown message is answered here and passed over.
        """
        unknown = 0
        while True:
            try:
                payload = self._reader.next_frame()
                if payload is None:
                    return None
                message = decode(payload)
                return message if self.hello is not None and not isinstance(message, Hello | Refusal) else self._greet(message)
            except UnknownMessage as error:
                if self.hello is None:
                    self.send(Refusal("malformed", "the first message must be a Hello"))
                    raise HelloRefused(f"the first message is no Hello: {error}") from error
                unknown += 1
                if unknown > UNKNOWN_MAX:
                    reason = f"more than {UNKNOWN_MAX} messages in a row are of no known type"
                    self.send(Refusal("malformed", reason))
                    raise MalformedMessage(reason) from error
                if error.tag not in self._told and len(self._told) < TOLD_MAX:
                    self._told |= {error.tag}
                    self.send(NotUnderstood(error.tag))
            except HelloRefused:
                raise
            except RemoteProtocolError as error:
                self.send(Refusal("malformed", str(error)))
                raise

    def send(self, message: Message) -> None:
        """Queues one message for data_to_send()."""
        self._out += frame(encode(message))

    def data_to_send(self) -> bytes:
        """What is to be written to the connection now; it is not given twice."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def take_raw(self, count_max: int) -> bytes:
        """Up to count_max bytes that came after the last message and are not messages themselves (a record's)."""
        return self._reader.take(count_max)

    @property
    def unread_bytes(self) -> int:
        """Bytes received that no message was made of yet."""
        return len(self._reader)

    def _greet(self, message: Message) -> Message:
        """Rules 1 to 4, for the other side's first message; and what may not come later."""
        if isinstance(message, Refusal):
            self.refusal = message
            raise HelloRefused(f"refused by the other side ({message.code}): {message.reason}")
        if self.hello is not None:
            raise MalformedMessage("a second Hello")
        if not isinstance(message, Hello):
            raise MalformedMessage(f"the first message is {type(message).__name__}, not Hello")
        if abs(message.wire_version - WIRE_VERSION) > 1:
            versions = f"{message.wire_version} and {WIRE_VERSION}"
            self._refuse("version", f"wire versions {versions} differ by more than one: upgrade the older side")
        if message.cluster != self._cluster:
            self._refuse("cluster", f"cluster {message.cluster!r} is not ours, {self._cluster!r}")
        local = self._residents(message.receiver)
        if local is None:
            wanted = "no node lives" if message.receiver is None else f"node {message.receiver.short} does not live"
            self._refuse("receiver", f"{wanted} at this address")
        if self._asked is not None and message.sender.id != self._asked:
            self._refuse("receiver", f"asked for {self._asked.short}, was answered by {message.sender.id.short}")
        if self._channel is not None and message.channel != self._channel:
            raise MalformedMessage(f"asked for the channel {self._channel!r}, was answered on {message.channel!r}")
        self.hello, self.local = message, local
        self._reader.frame_bytes_max = self._frame_bytes_max
        if not self._said_hello and local is not None:
            self._say_hello(local, message.channel, message.sender.id)
        return message

    def _say_hello(self, local: Peer, channel: Channel, receiver: NodeId | None) -> None:
        self._said_hello = True
        self.send(Hello(WIRE_VERSION, self._cluster, channel, local, receiver))

    def _refuse(self, code: Literal["version", "cluster", "receiver"], reason: str) -> None:
        self.send(Refusal(code, reason))
        raise HelloRefused(reason)
