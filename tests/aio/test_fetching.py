"""One fetch from two holders, when both have news in one turn of the loop: only transports of our own can make that happen."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any

import pytest

from protocol import WIRE_VERSION
from protocol.aio.fetching import Fetching, Wanted
from protocol.aio.link import Link
from protocol.assembly import Assembly
from protocol.chunks import bind, front_of
from protocol.identifiers import Peer, agent_id, tree_id
from protocol.parameters import OverlayParameters
from protocol.wire.codec import decode, encode
from protocol.wire.framing import FrameReader, frame
from protocol.wire.messages import Hello
from protocol.wire.moving import BulkAccept, BulkFetch, BulkWant
from protocol.wire.session import Session
from protocol.wire.values import RecordSummary

ME = Peer(agent_id("c", "me"), "127.0.0.1", 1, 1)
DIGEST, DATA = bind([[os.urandom(16 << 20)]])
RECORD = RecordSummary(agent_id("c", "owner"), tree_id("main", "t"), 1, 1, 0, 0, True, len(DATA), DIGEST)
FRONT = front_of(RECORD, DATA)
AT_ONCE = 512 << 10
PARAMETERS = OverlayParameters()


class Owner:
    def link_made(self, link: Link) -> None:
        pass

    def link_greeted(self, link: Link) -> None:
        pass

    def link_ended(self, link: Link, reason: str) -> None:
        pass


class Socket:
    def setsockopt(self, *_: Any) -> None:
        pass


class Holder:
    """A transport, and the holder at its other end, which gives what it was asked for when it is told to."""

    def __init__(self, name: str) -> None:
        self.peer = Peer(agent_id("c", name), "127.0.0.1", 2, 1)
        self.owed: deque[memoryview] = deque()
        self._closing = self._paused = False
        self._coming: deque[memoryview] = deque()
        self._reader = FrameReader(1 << 20)
        self.link = Link(Session.dialling("c", ME, self.peer.id, "bulk", 1 << 20), Owner(), 9, 9, inbound=False)
        self.link.connection_made(self)  # type: ignore[arg-type]
        self._feed(frame(encode(Hello(WIRE_VERSION, "c", "bulk", self.peer, ME.id))))

    @property
    def left(self) -> int:
        return sum(map(len, self.owed))

    def give(self, size: int) -> None:
        while self.owed and size > 0:
            part = self.owed.popleft()
            if len(part) > size:
                self.owed.appendleft(part[size:])
            self._feed(part[:size])
            size -= len(part)

    def reset(self) -> None:
        self._closing = True
        self.link.connection_lost(ConnectionResetError())

    def _feed(self, data: bytes | memoryview) -> None:
        self._coming.append(memoryview(data))
        self._pump()

    def _pump(self) -> None:
        while self._coming and not self._paused and not self._closing:
            data, room = self._coming.popleft(), self.link.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            if len(data) > size:
                self._coming.appendleft(data[size:])
            self.link.buffer_updated(size)

    # --- a transport ---

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return Socket() if name == "socket" else None

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self._pump)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.link.connection_lost, None)

    def write(self, data: bytes) -> None:
        self._reader.feed(data)
        while (payload := self._reader.next_frame()) is not None:
            match decode(payload):
                case BulkFetch():
                    offer = frame(encode(BulkAccept(RECORD, FRONT.bounds[0]))) + bytes(DATA[: FRONT.bounds[0]])
                    asyncio.get_running_loop().call_soon(self._feed, offer)
                case BulkWant(runs):
                    self.owed += [memoryview(DATA)[FRONT.bounds[first] : FRONT.bounds[first + count]] for first, count in runs]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("reset_first", [True, False])
async def test_what_a_holder_leaves_is_asked_of_one_that_has_just_ended_its_own(reset_first: bool) -> None:
    """The last of one holder comes in the turn of the loop in which the other breaks off."""
    stays, breaks = Holder("stays"), Holder("breaks")
    links = {holder.peer: holder.link for holder in (stays, breaks)}

    async def open_link(_: Peer, peer: Peer) -> Link:
        return links[peer]

    async def assemble(summary: RecordSummary, front: bytearray) -> Assembly:
        return Assembly(summary, front)

    wanted = Wanted(RECORD.owner, RECORD.tree, 1)
    fetching = Fetching(open_link, assemble, ME, [stays.peer, breaks.peer], wanted, PARAMETERS)
    began = asyncio.get_running_loop().time()
    running = asyncio.create_task(fetching.run())
    while not (stays.owed and breaks.owed):
        await turns()
    # Until all has been asked for: then the one that breaks off gives no more.
    while True:
        before = stays.left + breaks.left
        stays.give(AT_ONCE)
        await turns()
        if stays.left <= AT_ONCE:
            break
        if stays.left + breaks.left > before - AT_ONCE:
            breaks.give(AT_ONCE)
            await turns()
    assert breaks.owed

    def both() -> None:
        for news in (breaks.reset, lambda: stays.give(stays.left))[:: 1 if reset_first else -1]:
            news()

    asyncio.get_running_loop().call_soon(both)
    await turns()
    async with asyncio.timeout(PARAMETERS.transfer_timeout_s(len(DATA))):
        while not running.done():
            stays.give(AT_ONCE)
            await asyncio.sleep(0.001)
    assert bytes((await running).data) == bytes(DATA)
    assert asyncio.get_running_loop().time() - began < PARAMETERS.transfer_timeout_s(len(DATA))
