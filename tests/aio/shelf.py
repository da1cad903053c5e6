"""What a test of transfers needs: records, a node that keeps what it is given, and holders that misbehave, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protocol.aio.bulk import PushOutcome
from protocol.aio.link import Link, LinkClosed
from protocol.chunks import bind, front_bytes, front_of
from protocol.identifiers import NodeId, Peer, agent_id, tree_id
from protocol.wire.moving import BulkAccept, BulkFetch, BulkPush, BulkWant
from protocol.wire.values import RecordSummary

Start = Callable[..., Any]
OWNER, TREE = agent_id("c", "owner"), tree_id("t", "u")


def record(size: int = 1000, version: int = 1, fill: int = 7) -> tuple[RecordSummary, bytes]:
    """Of so many bytes of content, all the same; the front comes before them."""
    return _record([bytes([fill]) * size], version)


def noise(size: int, version: int = 1, changed: int = 0) -> tuple[RecordSummary, bytes]:
    """Of two versions only the last `changed` bytes of content differ; no two chunks are equal."""
    frozen, trained = np.random.default_rng(0).bytes(size - changed), np.random.default_rng(version).bytes(changed)
    return _record([frozen, trained], version)


def compressed(size: int, version: int = 1) -> tuple[RecordSummary, bytes]:
    """Zeros of so many bytes, of which next to nothing is left on the wire."""
    return _record([bytes(size)], version, compress=True)


def _record(sections: list[bytes], version: int, *, compress: bool = False) -> tuple[RecordSummary, bytes]:
    digest, data = bind([[section] for section in sections], compress=compress)
    return RecordSummary(OWNER, TREE, version, 1, 0, 0, False, len(data), digest), bytes(data)


@dataclass
class Shelf:
    """A handler that keeps what it is given."""

    taken: list[tuple[RecordSummary, bytes, str, Peer]] = field(default_factory=list)
    offers: dict[tuple[NodeId, NodeId], tuple[RecordSummary, bytes]] = field(default_factory=dict)
    admits: Callable[[RecordSummary], str | None] = lambda summary: None
    accepts: Callable[[RecordSummary], str | None] = lambda summary: None
    has: tuple[RecordSummary, bytes] | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)

    def holds(self, summary: RecordSummary) -> bool:
        return self.has is not None and summary == self.has[0]

    def held(self, owner: NodeId, tree: NodeId) -> tuple[RecordSummary, bytes] | None:
        return self.has

    def admit(self, summary: RecordSummary, purpose: str) -> str | None:
        self.asked.set()
        return self.admits(summary)

    async def accept(self, summary: RecordSummary, data: Any, purpose: str, sender: Peer) -> str | None:
        self.taken.append((summary, bytes(data), purpose, sender))
        return self.accepts(summary)

    async def provide(self, owner: NodeId, tree: NodeId, version: int) -> tuple[RecordSummary, bytes] | None:
        self.asked.set()
        try:
            if version == 99:
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.gave_up.set()
            raise
        return self.offers.get((owner, tree))


async def push(a: Any, b: Any, summary: RecordSummary, data: bytes, purpose: str = "replica") -> PushOutcome:
    outcome: PushOutcome = await a.connections.bulk.push(a.peer, b.peer, summary, data, purpose)
    return outcome


def offer(link: Any, summary: RecordSummary, data: bytes) -> None:
    """What a push begins with."""
    link.send(BulkPush(summary, "replica", front_bytes(data)), data[: front_bytes(data)])


async def fetch(a: Any, b: Any, version: int = 1, patience_s: float = 0.0) -> tuple[RecordSummary, Any]:
    fetched: tuple[RecordSummary, Any] = await a.connections.bulk.fetch(a.peer, [b.peer], OWNER, TREE, version, patience_s)
    return fetched


def misbehave(process: Any, given: tuple[RecordSummary, bytes], how: Callable[[Link, memoryview, BulkWant], Awaitable[None]]) -> None:
    """From now on the process answers each fetch with this record, and what chunks are asked for as `how` does, given the link, the
    bytes of the first run, and the whole wish."""
    summary, data = given

    async def serve(link: Link) -> None:
        assert isinstance(await link.receive(), BulkFetch)
        link.send(BulkAccept(summary, front_bytes(data)), data[: front_bytes(data)])
        wanted = await link.receive()
        assert isinstance(wanted, BulkWant)
        bounds = front_of(summary, data).bounds
        first, count = wanted.runs[0]
        with contextlib.suppress(LinkClosed):
            await how(link, memoryview(data)[bounds[first] : bounds[first + count]], wanted)
        await link.closed()

    process.connections.bulk.serve_link = serve
