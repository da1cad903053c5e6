"""What the shell's tests share: both event loops, ports that are not ephemeral, and waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import uvloop

from protocol.aio.connections import Connections
from protocol.identifiers import Address, NodeId, Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Message
from scripts.local_cluster import free_ports


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Each async test in this folder runs on both loops: FMRec runs on uvloop, and must not need it."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A port below 32768 (above are ephemeral: an outgoing connection may take one at any moment) that nobody listens on."""
    return partial(free_ports, 1)


@pytest.fixture
def hung_listener(free_port: Callable[[], int]) -> Iterator[Address]:
    """A process under SIGSTOP: the kernel accepts connections, nobody answers on them."""
    with socket.socket() as hung:
        hung.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                hung.bind(("127.0.0.1", free_port()))
                break
            except OSError:  # taken since it was found free
                continue
        hung.listen()
        yield Address(*hung.getsockname())


@dataclass
class Heard:
    """A local node that keeps what it is told, and lets a test wait for it."""

    peer: Peer
    messages: list[tuple[Peer, Message]] = field(default_factory=list)
    losses: list[tuple[Peer, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def received(self, peer: Peer, message: Message) -> None:
        self.messages.append((peer, message))
        self.changed.set()

    def lost(self, peer: Peer, reason: str) -> None:
        self.losses.append((peer, reason))
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Process:
    """One process's network with one node on it."""

    connections: Connections
    node: Heard

    @property
    def peer(self) -> Peer:
        return self.node.peer


@pytest.fixture
async def start(free_port: Callable[[], int]) -> AsyncIterator[Callable[..., object]]:
    """start(name, ...) -> Process; all are closed at the end, and then nothing may be left running."""
    processes: list[Process] = []

    async def start(
        name: str,
        *,
        cluster: str = "c",
        parameters: OverlayParameters | None = None,
        incarnation: int = 1,
        identifier: NodeId | None = None,
        connections_max: int = 512,
    ) -> Process:
        connections = Connections(cluster, replace(parameters or OverlayParameters(), connections_max=connections_max))
        while True:
            try:
                address = await connections.listen("127.0.0.1", free_port())
                break
            except OSError:  # taken since it was found free
                continue
        node = Heard(Peer(identifier or agent_id("c", name), address.host, address.port, incarnation))
        connections.serve(node.peer, node)
        processes.append(Process(connections, node))
        return processes[-1]

    yield start
    for process in processes:
        await process.connections.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"still running after close(): {left}"
