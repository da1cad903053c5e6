"""One TCP connection: a Session on an asyncio transport.

A link is read in one of two ways. A control link *pushes*: each message goes to the function given to deliver(), as it comes. A
bulk or status link is *pulled*: its one user awaits receive(), and receive_into() for bytes that are no messages, which the
kernel then writes straight into the caller's buffers (no copy, which is why this is a BufferedProtocol). A pulled link that
nobody reads stops reading from the socket. Raw bytes that stop moving, in either direction, end the link.

Whatever ends a link ends it once, with one reason, in words.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast
from weakref import WeakKeyDictionary

from protocol.aio.alarm import Alarm
from protocol.errors import RemoteProtocolError
from protocol.identifiers import Peer
from protocol.wire.messages import Hello, Message, NotUnderstood, Refusal
from protocol.wire.session import Session

logger = logging.getLogger(__name__)

INLET_BYTES = 256 * 1024
PIECE_BYTES = 1 << 20
"""Raw bytes are written in pieces of this size, so that a slow reader is noticed between two of them."""
TURN_BYTES_MAX = 1 << 20
"""After so many raw bytes everything else on the loop has its turn: messages on other links wait no longer than it takes to read this."""
TURN_MESSAGES_MAX = 128
"""The same for messages: a quarter of a megabyte, read at once, may hold forty thousand."""
WRITE_BUFFER_BYTES_MAX = 512 * 1024
"""More than this waiting in the transport, and the link says that it is full."""
READ_AHEAD_BYTES_MAX = 1 << 20
"""A pulled link that holds this much unread stops reading."""


class LinkClosed(ConnectionError):
    """The link ended before what was awaited came; the message says why."""


def _inlet(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The buffer that all links of one loop read into: each read is consumed before the next begins."""
    view = _INLETS.get(loop)
    if view is None:
        view = _INLETS[loop] = memoryview(bytearray(INLET_BYTES))
    return view


_INLETS: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


class LinkOwner(Protocol):
    """Who made a link and hears of it. Called from the loop."""

    def link_made(self, link: Link) -> None:
        """Connected; no hello yet."""

    def link_greeted(self, link: Link) -> None:
        """The other side's hello is through: the link may now be used."""

    def link_ended(self, link: Link, reason: str) -> None:
        """The connection is gone."""


class Link(asyncio.BufferedProtocol):
    """One connection. Its owner hears of it at most three times: made, greeted, ended; what was made also ends."""

    def __init__(
        self,
        session: Session,
        owner: LinkOwner,
        hello_timeout_s: float,
        close_timeout_s: float,
        *,
        inbound: bool,
    ) -> None:
        self.session = session
        self.inbound = inbound
        self.paused = False  # the transport's buffer is full
        self.used_at = 0.0  # loop time of the last byte in either direction
        self.on_writable: Callable[[], None] | None = None
        self._owner = owner
        self._hello_timeout_s = hello_timeout_s
        self._close_timeout_s = close_timeout_s
        self._loop = asyncio.get_running_loop()
        self._inlet = _inlet(self._loop)
        self._transport: asyncio.Transport | None = None
        self._timer: Alarm | None = None  # the hello's deadline, later that of a slow close
        self._ended = False
        # Made when somebody waits: few do, and there are many links.
        self._until_ready: asyncio.Future[None] | None = None
        self._until_closed: asyncio.Future[None] | None = None
        self._deliver: Callable[[Message], None] | None = None
        self._reader: asyncio.Future[None] | None = None  # who awaits bytes
        self._writer: asyncio.Future[None] | None = None  # who awaits room
        self._targets: deque[memoryview] = deque()  # where raw bytes go, as far as they are not filled
        self._arrived: Callable[[int], None] | None = None  # told of raw bytes
        self._turn_bytes = 0  # raw ones, since others had their turn
        self._reading_paused = False
        self._parting = False
        self._reason = ""

    # --- what users of a link call ------------------------------------------------------------------------------------

    @property
    def peer(self) -> Peer:
        """The other side, as its hello named it; only after the hello."""
        assert self.session.hello is not None
        return self.session.hello.sender

    @property
    def local(self) -> Peer:
        """Which of our nodes this link belongs to; only after the hello."""
        assert self.session.local is not None
        return self.session.local

    @property
    def closing(self) -> bool:
        """Also where it was cut, which the transport does not know of."""
        return self._transport is None or self._ended or self._transport.is_closing()

    @property
    def reason(self) -> str:
        """Why the link has ended or is ending, in words."""
        return self._reason

    @property
    def transport(self) -> asyncio.Transport | None:
        """For tests and statistics."""
        return self._transport

    async def ready(self) -> None:
        """Until the hello is through. LinkClosed where the link ended before."""
        if self.session.hello is not None:
            return
        if self._ended:
            raise LinkClosed(self._reason)
        self._until_ready = self._until_ready or self._loop.create_future()
        await asyncio.shield(self._until_ready)

    async def closed(self) -> None:
        """Until the link has ended."""
        if self._ended:
            return
        self._until_closed = self._until_closed or self._loop.create_future()
        await asyncio.shield(self._until_closed)

    def deliver(self, receiver: Callable[[Message], None]) -> None:
        """Push mode from now on: every message, those already here included, goes to `receiver`."""
        self._deliver = receiver
        self._pump()

    def send(self, message: Message, raw: bytes = b"") -> None:
        """Queues one message, and a few raw bytes that follow it at once; nothing where the link is closing."""
        self.session.send(message)
        self._flush()
        if raw:
            self.send_frame(raw)

    def send_frame(self, data: bytes) -> None:
        """One message that was encoded and framed already."""
        if self._transport is not None and not self.closing:
            self.used_at = self._loop.time()
            self._transport.write(data)

    async def receive(self) -> Message:
        """Pull mode: the next message. LinkClosed at the end; RemoteProtocolError, the link closed, for one that is no message."""
        while True:
            message = self._next()
            if message is not None:
                return message
            await self._bytes()

    async def receive_into(self, targets: deque[memoryview], arrived: Callable[[int], None], stall_max_s: float) -> None:
        """Pull mode: fills the targets, one after the other, with the raw bytes that follow the last message.

        arrived(count) is called as bytes come, from the transport's own call: it must be quick, may append to targets, and may abort
        the link. LinkClosed where the bytes end early, or do not come for stall_max_s.
        """
        while targets and (early := self.session.take_raw(len(targets[0]))):
            targets[0][: len(early)] = early
            self._advance(targets, len(early))
            arrived(len(early))
        self._targets, self._arrived = targets, arrived
        try:
            with self._watched(stall_max_s):
                while targets:
                    await self._bytes()
        finally:
            self._targets, self._arrived = deque(), None

    async def send_raw(self, data: memoryview, stall_max_s: float) -> None:
        """Writes bytes that are no message, no faster than the other side reads. LinkClosed where the link ends meanwhile, or where
        nothing leaves for stall_max_s."""
        with self._watched(stall_max_s):
            for start in range(0, len(data), PIECE_BYTES):
                while self.paused and not self._ended:
                    self._writer = self._loop.create_future()
                    await self._writer
                if self._transport is None or self.closing:
                    raise LinkClosed(self._reason or "closed")
                self.used_at = self._loop.time()
                self._transport.write(data[start : start + PIECE_BYTES])

    def refuse(self, refusal: Refusal) -> None:
        """Says why, then closes."""
        self.send(refusal)
        self.close(refusal.reason)

    def part(self, last_word: Refusal) -> None:
        """Asks the other side to end the link. What it has under way still arrives, which a close from here would destroy; it has
        `close_timeout_s`."""
        self._parting = True
        self._reason = self._reason or last_word.reason
        self.send(last_word)
        self._set_timer(self._close_timeout_s, lambda: self.abort(last_word.reason))

    def close(self, reason: str) -> None:
        """Ends the link when what was written has left; after `close_timeout_s`, at once."""
        self._reason = self._reason or reason
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.close()
        self._set_timer(self._close_timeout_s, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Ends the link now; what was not sent is lost."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    @property
    def parted(self) -> bool:
        """We asked for the end of this link, or the other side did because it has too many: no sign of anybody's death."""
        refusal = self.session.refusal
        return self._parting or (self.session.hello is not None and refusal is not None and refusal.code == "busy")

    def cut(self, reason: str) -> None:
        """The transport is gone and will not say so. Nothing where it was never made, or has said so."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self.connection_lost(None)

    # --- what the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an assertion: uvloop's transports do not derive from asyncio's.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        # On both sides, or small messages wait 40 ms for the other side's delayed acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer(self._hello_timeout_s, lambda: self.abort(f"no hello within {self._hello_timeout_s:g} s"))
        self._owner.link_made(self)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._targets[0][: TURN_BYTES_MAX - self._turn_bytes] if self._targets else self._inlet

    def buffer_updated(self, nbytes: int) -> None:
        self.used_at = self._loop.time()
        if self._targets and self._arrived is not None:
            self._advance(self._targets, nbytes)
            self._arrived(nbytes)
            if not self._targets:
                self._wake_reader()
            self._turn_bytes += nbytes
            if self._turn_bytes >= TURN_BYTES_MAX:
                self._end_turn()
            return
        self.session.receive(self._inlet[:nbytes])
        if self.session.hello is None and not self._greeted():
            return
        self._pump()
        self._wake_reader()
        if self._deliver is None and self._transport is not None and self.session.unread_bytes > READ_AHEAD_BYTES_MAX:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended:
            return  # it was cut
        self._ended = True
        self._reason = self._reason or (f"connection lost: {exc}" if exc is not None else "closed by the other side")
        if self._timer is not None:
            self._timer.cancel()
        if self._until_ready is not None and not self._until_ready.done():
            self._until_ready.set_exception(LinkClosed(self._reason))
            self._until_ready.exception()  # who waited may be gone, which is no mistake
        if self._until_closed is not None:
            self._until_closed.set_result(None)
        self._wake_reader()
        self._wake_writer()
        self._deliver = self.on_writable = None
        self._owner.link_ended(self, self._reason)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake_writer()
        if self.on_writable is not None:
            self.on_writable()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _greeted(self) -> bool:
        """Whether the hello has come, after this read; a wrong one closes the link."""
        try:
            message = self._next()
        except RemoteProtocolError:
            return False
        if not isinstance(message, Hello):
            return False
        if self._timer is not None:
            self._timer.cancel()
        if self._until_ready is not None:
            self._until_ready.set_result(None)
        self._owner.link_greeted(self)
        return True

    def _next(self) -> Message | None:
        try:
            return self.session.next_message()
        except RemoteProtocolError as error:
            logger.log(logging.DEBUG if self.parted else logging.WARNING, "%s: dropped: %s", self, error)
            self._flush()
            self.close(str(error))
            raise
        finally:
            self._flush()

    def _pump(self) -> None:
        """Delivers what is here: after TURN_MESSAGES_MAX messages others have their turn."""
        for _ in range(TURN_MESSAGES_MAX):
            if self._deliver is None or self.closing:
                return
            try:
                message = self._next()
            except RemoteProtocolError:
                return
            if message is None:
                return
            if isinstance(message, NotUnderstood):
                logger.warning("%s: the other side does not know message tag %d: is it older?", self, message.tag)
            else:
                self._deliver(message)
        self._end_turn()

    def _flush(self) -> None:
        data = self.session.data_to_send()
        if data:
            self.send_frame(data)

    async def _bytes(self) -> None:
        """Until something was read, or the target is full."""
        if self._ended:
            raise LinkClosed(self._reason)
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        self._reader = self._loop.create_future()
        await self._reader

    def _end_turn(self) -> None:
        """Nothing is read until others have had their turn."""
        if self._transport is not None and not self.closing:
            self._transport.pause_reading()
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_bytes = 0
        if self._transport is not None and not self.closing and not self._reading_paused:
            self._transport.resume_reading()
        self._pump()

    @staticmethod
    def _advance(targets: deque[memoryview], count: int) -> None:
        if count < len(targets[0]):
            targets[0] = targets[0][count:]
        else:
            targets.popleft()

    @contextmanager
    def _watched(self, stall_max_s: float) -> Iterator[None]:
        """Meanwhile the link is aborted when no byte has moved for so long."""
        self.used_at = self._loop.time()
        alarm: Alarm

        def look() -> None:
            nonlocal alarm
            due = self.used_at + stall_max_s
            if self._loop.time() < due:
                alarm = Alarm(self._loop, due, look)
            else:
                self.abort(f"no byte has moved for {stall_max_s:g} s")

        alarm = Alarm(self._loop, self.used_at + stall_max_s, look)
        try:
            yield
        finally:
            alarm.cancel()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def _set_timer(self, seconds: float, act: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Alarm(self._loop, self._loop.time() + seconds, act, seconds)

    def __str__(self) -> str:
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        where = f"{name[0]}:{name[1]}" if name else "not connected"
        hello = self.session.hello
        return f"link with {hello.sender}" if hello is not None else f"link with {where}"
