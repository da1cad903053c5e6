"""The floor of a transfer: the same bytes through a bare BufferedProtocol on uvloop, from another process, into memory that
the caller chooses: what was received into before is warm, and new memory may have to come from the host first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator

import uvloop

from scripts.local_cluster import HOST, free_ports


class _Sender(asyncio.Protocol):
    """Writes as many bytes as the eight bytes that it is sent say."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(memoryview(DATA)[: int.from_bytes(data, "big")])  # type: ignore[attr-defined]


class _Receiver(asyncio.BufferedProtocol):
    def __init__(self, into: memoryview, done: asyncio.Future[None]) -> None:
        self._view = into
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(len(self._view).to_bytes(8, "big"))  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._view = self._view[nbytes:]
        if not self._view:
            self._done.set_result(None)
            self._transport.abort()  # type: ignore[attr-defined]


DATA = b""


@contextlib.contextmanager
def raw_sender(size_max: int) -> Iterator[int]:
    """The port of a process that sends up to so many bytes."""
    global DATA
    DATA = os.urandom(size_max)
    port = free_ports(1)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        uvloop.run(_serve(port, told))
        os._exit(0)
    try:
        os.close(told)
        assert os.read(ready, 1) == b"!", "the sender did not start"
        os.close(ready)
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def _serve(port: int, told: int) -> None:
    await asyncio.get_running_loop().create_server(_Sender, HOST, port)
    os.write(told, b"!")
    await asyncio.get_running_loop().create_future()


async def raw_ms(port: int, into: memoryview) -> float:
    """One transfer that fills this buffer, from the dial to the last byte."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    began = time.perf_counter()
    await loop.create_connection(lambda: _Receiver(into, done), HOST, port)
    await done
    return 1000 * (time.perf_counter() - began)
