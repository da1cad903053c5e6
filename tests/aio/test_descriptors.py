"""Running out of file descriptors, for real: a process that may open 64 goes on working, dials, accepts again, and never spins."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.identifiers import Peer, agent_id
from protocol.wire.messages import Datagram, Message, Ping, Pong, Route
from tests.aio.few_descriptors import HUB

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64
PEERS = 100
BUSY_MAX = 0.3
"""Of a core. One that spins takes a whole one."""


class Caller:
    """A node that pings the hub until it is answered, as an overlay node would."""

    def __init__(self, me: Peer) -> None:
        self.me = me
        self.answers = 0
        self.answered = asyncio.Event()

    def received(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Pong):
            self.answers += 1
            self.answered.set()

    def lost(self, peer: Peer, reason: str) -> None:
        pass


@pytest.fixture
async def hub(free_port: Callable[[], int], tmp_path: Path) -> AsyncIterator[tuple[Peer, Process]]:
    """A node in a process with few descriptors, on the loop that the test runs on."""
    loop = "uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio"
    port = free_port()
    arguments = (sys.executable, "-m", "tests.aio.few_descriptors", loop, str(LIMIT), str(port))
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=PIPE, stderr=out)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready\n"
    yield Peer(HUB, "127.0.0.1", port, 1), process
    process.terminate()
    try:
        async with asyncio.timeout(5):
            await process.wait()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, log.read_text()
    assert log.read_text().count("file descriptors run out: raise the limit") == 1


async def called(connections: Any, caller: Caller, hub: Peer, message: Message, within_s: float = 60.0) -> None:
    """Sends until it is answered once more."""
    async with asyncio.timeout(within_s):
        caller.answered.clear()
        while not caller.answered.is_set():
            connections.send(caller.me, hub, message)
            try:
                async with asyncio.timeout(0.3):
                    await caller.answered.wait()
            except TimeoutError:
                continue


def cpu_s(pid: int) -> float:
    """CPU time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_process_without_descriptors_goes_on(start: Callable[..., Any], hub: tuple[Peer, Process]) -> None:
    """DESIGN 5."""
    peer, process = hub
    others = await start("others")
    callers = [Caller(Peer(agent_id("c", str(i)), others.peer.host, others.peer.port, 1)) for i in range(PEERS)]
    for caller in callers:
        others.connections.serve(caller.me, caller)
    first, last = callers[0], callers[-1]
    # All at once; and each is dialled back.
    await asyncio.gather(*(called(others.connections, caller, peer, Ping()) for caller in callers[:-1]))

    await called(others.connections, first, peer, Route(HUB, Datagram(b"fill")))
    knocking = [await asyncio.open_connection(peer.host, peer.port) for _ in range(20)]
    before, began = cpu_s(process.pid), asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < began + 1.5:
        # Known peers are served meanwhile.
        await called(others.connections, first, peer, Route(HUB, Datagram(b"any")), within_s=10)
        await asyncio.sleep(0.05)
    took_s = asyncio.get_running_loop().time() - began
    assert cpu_s(process.pid) - before < BUSY_MAX * took_s, "it spins"
    for _, writer in knocking:
        writer.close()

    await called(others.connections, first, peer, Route(HUB, Datagram(b"free")))
    await called(others.connections, last, peer, Ping(), within_s=20)
