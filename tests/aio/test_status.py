"""A client asks a running process how it is, or to stop; whatever goes wrong is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.aio.process import UserError
from protocol.aio.status_client import request_status, request_stop
from protocol.identifiers import Address

Start = Callable[..., Any]


async def test_status_and_stop(start: Start) -> None:
    a = await start("a")
    stops: list[bool] = []
    a.connections.status_document = lambda: '{"agents": 3}'
    a.connections.stop = lambda: stops.append(True)
    assert await request_status(a.peer.address, "c", 5) == {"agents": 3}
    assert not stops
    assert await request_stop(a.peer.address, "c", 5) == {"agents": 3}
    assert stops == [True]
    assert not a.node.messages


async def test_a_large_document(start: Start) -> None:
    a = await start("a")
    a.connections.status_document = lambda: f'{{"text": "{"x" * 3_000_000}"}}'
    assert len((await request_status(a.peer.address, "c", 5))["text"]) == 3_000_000


async def test_nobody_is_there(free_port: Callable[[], int]) -> None:
    port = free_port()
    with pytest.raises(UserError, match=f"no status from 127.0.0.1:{port}: .*nobody listens there"):
        await request_status(Address("127.0.0.1", port), "c", 5)


async def test_somebody_hangs(hung_listener: Address) -> None:
    with pytest.raises(UserError, match=r"within 0\.1 s"):
        await request_status(hung_listener, "c", 0.1)


async def test_another_cluster(start: Start) -> None:
    a = await start("a")
    with pytest.raises(UserError, match="cluster 'd' is not ours, 'c'"):
        await request_status(a.peer.address, "d", 5)


async def test_a_process_that_offers_neither(start: Start) -> None:
    a = await start("a")
    with pytest.raises(UserError, match="StatusRequest is not served here"):
        await request_status(a.peer.address, "c", 5)
    a.connections.status_document = lambda: "{}"
    with pytest.raises(UserError, match="StopRequest is not served here"):
        await request_stop(a.peer.address, "c", 5)


async def test_what_is_no_json(start: Start) -> None:
    a = await start("a")
    a.connections.status_document = lambda: "{"
    with pytest.raises(UserError, match="is not JSON"):
        await request_status(a.peer.address, "c", 5)
