"""The floor: what a message costs on this machine without any overlay, as one round trip between two bare processes on uvloop."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.local_cluster import HOST, free_ports
from scripts.overlay_bench.fleet import start_process

WARM_UP, TRIALS = 200, 3000
WITHIN_S = 60.0


class _Echo(asyncio.Protocol):
    """Sends back what comes."""

    def __init__(self, ended: asyncio.Future[None]) -> None:
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set_result(None)


class _Ask(asyncio.Protocol):
    """Sends a message, and the next one when the last has come back whole."""

    def __init__(self, message: bytes, done: asyncio.Future[None]) -> None:
        self.times_ms: list[float] = []
        self._message = message
        self._done = done
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._missing = len(self._message)
        self._sent_s = time.monotonic()
        self._transport.write(self._message)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing:
            return
        self.times_ms.append(1000 * (time.monotonic() - self._sent_s))
        if len(self.times_ms) < WARM_UP + TRIALS:
            self._send()
        else:
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the echo has ended"))


async def echo_ms(message_bytes: int) -> list[float]:
    """Round trips of a message of this size over loopback, one at a time, in milliseconds. From a loop of uvloop, like the other end's."""
    with socket.create_server((HOST, free_ports(1))) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        child = start_process([sys.executable, __file__, str(theirs.fileno())], theirs)
    try:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        transport, asking = await loop.create_connection(lambda: _Ask(bytes(message_bytes), done), sock=ours)
        async with asyncio.timeout(WITHIN_S):
            await done
        transport.close()
        return asking.times_ms[WARM_UP:]
    finally:
        child.kill()
        child.wait()


async def _echo(accepted: socket.socket) -> None:
    """The other process: until the connection ends."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    await loop.create_connection(lambda: _Echo(ended), sock=accepted)
    await ended


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_echo(socket.socket(fileno=int(sys.argv[1]))))
