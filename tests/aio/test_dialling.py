"""One dial that is given up at the worst moment: nothing may stay open, and its owner must hear of the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from protocol.aio.dialling import DialFailed, dial
from protocol.aio.link import Link
from protocol.parameters import OverlayParameters
from protocol.wire.session import Session


class Owner:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def link_made(self, link: Link) -> None:
        self.heard.append("made")

    def link_greeted(self, link: Link) -> None:
        self.heard.append("greeted")

    def link_ended(self, link: Link, reason: str) -> None:
        self.heard.append(f"ended: {reason}")


class AtTheWorstMoment(Link):
    """Has the dial cancelled in the very turn of the loop in which its connection is made: after the transport has told the link, and
    before create_connection() has returned. uvloop then closes the transport, and tells the link nothing more."""

    dialler: asyncio.Task[Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.dialler.cancel()


async def test_a_dial_cancelled_as_it_connects_ends_its_link(start: Callable[..., Any]) -> None:
    b, owner, links = await start("b"), Owner(), []
    me = (await start("a")).peer

    def make() -> Link:
        session = Session.dialling("c", me, b.peer.id, "control", OverlayParameters().control_frame_bytes_max)
        links.append(AtTheWorstMoment(session, owner, 5.0, 5.0, inbound=False))
        links[0].dialler = dialler
        return links[0]

    dialler = asyncio.create_task(dial(make, b.peer.address, 5.0))
    with pytest.raises(asyncio.CancelledError):
        await dialler
    async with asyncio.timeout(2):
        await links[0].closed()
    assert [said.split(":")[0] for said in owner.heard] == ["made", "ended"]
    assert links[0].closing


async def test_a_dial_to_no_address_says_so(start: Callable[..., Any]) -> None:
    b = await start("b")
    with pytest.raises(DialFailed, match="ports are 1 to 65535"):
        await dial(lambda: pytest.fail("no link is made"), b.peer.address._replace(port=0), 1.0)
