"""Accepting: several in a turn, and who has given up stands in nobody's way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine

from protocol.aio.listener import ACCEPTED_AT_ONCE, Listener


class Accepted(asyncio.Protocol):
    """Tells of the connections that were taken."""

    def __init__(self, taken: asyncio.Queue[asyncio.BaseTransport]) -> None:
        self._taken = taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._taken.put_nowait(transport)


async def test_those_that_gave_up_are_passed_over(free_port: Callable[[], int]) -> None:
    """A queue of dials that timed out while the process was busy, and one behind them that still waits."""
    taken: asyncio.Queue[asyncio.BaseTransport] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[object, object, None]) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work))  # type: ignore[arg-type]

    listener = Listener(lambda: Accepted(taken), lambda: None, spawn)
    address = await listener.listen("127.0.0.1", free_port())
    # No await until all stand in the queue: the loop is busy.
    for _ in range(10 * ACCEPTED_AT_ONCE):
        socket.create_connection(address).close()
    with socket.create_connection(address) as patient:
        async with asyncio.timeout(2):
            first = await taken.get()
        await asyncio.gather(*tasks)
        assert first.get_extra_info("peername") == patient.getsockname()
        assert taken.empty()
        first.close()
    listener.close()
    listener.close()
