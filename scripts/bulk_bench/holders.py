"""Processes that hold records and nothing else: the other side of every transfer that is measured. No ring, no training, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import uvloop

from protocol.aio.bulk import Purpose
from protocol.aio.connections import Connections
from protocol.chunks import Data, Front
from protocol.identifiers import NodeId, Peer, TreeId, agent_id, tree_id
from protocol.knowledge import Array, Knowledge, seal
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Message, Ping, Pong
from protocol.wire.values import RecordSummary
from scripts.local_cluster import HOST, free_ports

CLUSTER = "bench"
OWNER = agent_id(CLUSTER, "owner")
PARAMETERS = OverlayParameters()

Record = tuple[RecordSummary, Data]


def tree_of(size: int) -> TreeId:
    """Each size is a record of its own."""
    return tree_id(str(size), "bench")


def record_of(size: int, version: int = 1, changed: float = 1.0, drawn: Array | None = None, **encoding: bool) -> Record:
    """A record of about so many bytes of float32 drawn from a seed; of two versions, this share of the tensors differs."""
    frozen = np.random.default_rng(0).normal(size=int(size / 4 * (1 - changed))).astype("f4")
    trained = drawn if drawn is not None else np.random.default_rng(version).normal(size=int(size / 4 * changed)).astype("f4")
    tensors = {"state": {"a_frozen": frozen, "b_trained": trained}}
    return seal(Knowledge(OWNER, tree_of(size), version, 1, "train", 1, 1, False, tensors=tensors), **encoding)


@dataclass
class Shelf:
    """Gives what it has, takes what it is brought and forgets it, and answers pings. `has`: of what chunks need not come."""

    connections: Connections
    me: Peer
    records: dict[TreeId, Record] = field(default_factory=dict)
    has: Record | None = None
    pong: asyncio.Event = field(default_factory=asyncio.Event)

    def holds(self, summary: RecordSummary) -> bool:
        return False

    def held(self, owner: NodeId, tree: TreeId) -> Record | None:
        return self.has

    def admit(self, summary: RecordSummary, purpose: Purpose) -> str | None:
        return None

    async def accept(self, summary: RecordSummary, data: Data, purpose: Purpose, sender: Peer) -> str | None:
        return None

    async def provide(self, owner: NodeId, tree: TreeId, version: int) -> Record | None:
        return self.records.get(tree)

    def received(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Ping):
            self.connections.send(self.me, peer, Pong())
        elif isinstance(message, Pong):
            self.pong.set()

    def lost(self, peer: Peer, reason: str) -> None:
        pass


async def shelf(name: str, port: int, records: list[Record]) -> Shelf:
    """One node on the network of this process."""
    connections = Connections(CLUSTER, PARAMETERS)
    address = await connections.listen(HOST, port)
    me = Peer(agent_id(CLUSTER, name), address.host, address.port, 1)
    made = Shelf(connections, me, {summary.tree: (summary, data) for summary, data in records})
    connections.serve(me, made)
    connections.bulk.serve(me.id, made)
    return made


@contextlib.contextmanager
def holders(count: int, records: list[Record], pids: list[int] | None = None) -> Iterator[list[Peer]]:
    """So many processes that hold these records; their pids are appended where they are wanted. Called outside any loop."""
    first = free_ports(count)
    started = pids if pids is not None else []
    try:
        for index in range(count):
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                _hold(index, first + index, records, told)
            started.append(pid)
            os.close(told)
            assert os.read(ready, 1) == b"!", "a holder did not start"
            os.close(ready)
        yield [Peer(agent_id(CLUSTER, f"holder-{index}"), HOST, first + index, 1) for index in range(count)]
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _hold(index: int, port: int, records: list[Record], told: int) -> NoReturn:
    async def serve() -> None:
        await shelf(f"holder-{index}", port, records)
        os.write(told, b"!")
        await asyncio.get_running_loop().create_future()

    try:
        uvloop.run(serve())
    finally:
        os._exit(1)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Meanwhile this process takes every chunk for right."""
    before = Front.is_right
    Front.is_right = lambda self, data, index: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        Front.is_right = before  # type: ignore[method-assign]
