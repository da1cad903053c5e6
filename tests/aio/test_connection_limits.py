"""The limits of the pool: who goes when there are too many connections, what a slow reader costs, what finds a half-open connection."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from protocol.aio.connections import HALF_OPEN_MAX
from protocol.aio.driver import Driver
from protocol.aio.lane import LINKS_MAX, QUEUE_BYTES_MAX
from protocol.aio.link import WRITE_BUFFER_BYTES_MAX
from protocol.aio.sockets import half_open_max_s
from protocol.aio.store import RecordStore
from protocol.identifiers import Address, agent_id
from protocol.overlay.effects import Activated, Effect, Notify
from protocol.overlay.events import Started
from protocol.overlay.node import OverlayNode
from protocol.parameters import PRESETS, OverlayParameters
from protocol.wire.messages import Datagram, Heartbeat, Ping, Pong, Route
from tests.aio.waiting import until

Start = Callable[..., Any]


def big(size: int = 60_000) -> Route:
    return Route(agent_id("c", "key"), Datagram(bytes(size)))


# --- too many connections ---------------------------------------------------------------------------------------------


async def test_the_least_recently_used_connection_makes_room(start: Start) -> None:
    hub = await start("hub", connections_max=2)
    others = [await start(name) for name in "xyz"]
    for other in others[:2]:
        assert (await hub.connections.dial_fresh(hub.peer, other.peer)).found
        await asyncio.sleep(0.002)  # uvloop's clock has milliseconds; the order of use must show
    hub.connections.send(hub.peer, others[0].peer, Ping())
    assert (await hub.connections.dial_fresh(hub.peer, others[2].peer)).found
    assert set(hub.connections.peers(hub.peer)) == {others[0].peer, others[2].peer}
    assert not hub.node.losses


async def test_who_is_heard_at_every_beat_is_never_parted_with(start: Start) -> None:
    """Ring neighbours and tree relatives: however many strangers come by between two heartbeats, each leaves before them."""
    hub = await start("hub", connections_max=4)
    neighbour, parent = await start("neighbour"), await start("parent")
    strangers = [await start(f"stranger-{i}") for i in range(8)]
    hub.connections.send(hub.peer, neighbour.peer, Heartbeat())
    parent.connections.send(parent.peer, hub.peer, Heartbeat())
    await neighbour.node.until(lambda: len(neighbour.node.messages) == 1)
    await hub.node.until(lambda: len(hub.node.messages) == 1)
    kept = set(hub.connections._links)
    for beat in range(4):
        for stranger in strangers[2 * beat : 2 * beat + 2]:
            assert (await stranger.connections.dial_fresh(stranger.peer, hub.peer)).found
            await hub.node.until(lambda stranger=stranger: stranger.peer in hub.connections.peers(hub.peer))  # type: ignore[misc]
        await asyncio.sleep(0.002)
        hub.connections.send(hub.peer, neighbour.peer, Heartbeat())  # we are heard, or we hear: both count
        parent.connections.send(parent.peer, hub.peer, Heartbeat())
        await hub.node.until(lambda beat=beat: len(hub.node.messages) == beat + 2)  # type: ignore[misc]
    assert kept < set(hub.connections._lane_of)
    assert {peer.id for peer in hub.connections.peers(hub.peer)} == {each.peer.id for each in (neighbour, parent, *strangers[-2:])}


async def test_who_says_nothing_for_longest_makes_room_for_who_comes(start: Start) -> None:
    """Strangers that connect and are silent, as a port scan or a wrong client is, keep nobody out."""
    hub, x = await start("hub"), await start("x")
    address = hub.peer.host, hub.peer.port
    silent = await asyncio.gather(*(asyncio.open_connection(*address) for _ in range(HALF_OPEN_MAX + 50)))
    await until(lambda: len(hub.connections._half_open) == HALF_OPEN_MAX)
    assert (await x.connections.dial_fresh(x.peer, hub.peer)).found
    closed = [asyncio.create_task(reader.read()) for reader, _ in silent]
    async with asyncio.timeout(5):
        while sum(task.done() for task in closed) < 50:
            await asyncio.wait([task for task in closed if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    assert len(hub.connections._links) <= HALF_OPEN_MAX + 2, "the others have their time"
    for task in closed:
        task.cancel()
    for _, writer in silent:
        writer.close()


async def test_all_nodes_of_a_process_share_the_connections(start: Start) -> None:
    """The quietest goes, whichever node it belongs to."""
    process = await start("one", connections_max=2)
    second = replace(process.node, peer=replace(process.peer, id=agent_id("c", "two")))
    process.connections.serve(second.peer, second)
    x, y, z = [await start(name) for name in "xyz"]
    for local, remote in ((process.peer, x.peer), (second.peer, y.peer), (second.peer, z.peer)):
        assert (await process.connections.dial_fresh(local, remote)).found
        await asyncio.sleep(0.002)
    assert process.connections.peers(process.peer) == []
    assert process.connections.peers(second.peer) == [y.peer, z.peer]


async def test_who_is_parted_with_suspects_nobody(start: Start) -> None:
    """A closed connection is what a killed process leaves: without the parting word the peer would dial, and so push out the next."""
    hub = await start("hub", connections_max=1)
    x, y = await start("x"), await start("y")
    x.connections.send(x.peer, hub.peer, Ping())
    await hub.node.until(lambda: len(hub.node.messages) == 1)
    (link,) = x.connections._links
    y.connections.send(y.peer, hub.peer, Ping())
    await hub.node.until(lambda: len(hub.node.messages) == 2)
    async with asyncio.timeout(5):
        await link.closed()
    assert link.parted
    assert x.connections.peers(x.peer) == []
    assert not x.node.losses
    x.connections.send(x.peer, hub.peer, Pong())
    await hub.node.until(lambda: hub.node.messages[-1] == (x.peer, Pong()))
    assert not x.node.losses, "and what it sends next makes a new connection"


async def test_what_is_sent_while_a_parted_connection_closes_is_not_lost(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, x = await start("hub"), await start("x")
    x.connections.send(x.peer, hub.peer, Ping())
    await hub.node.until(lambda: len(hub.node.messages) == 1)
    (link,) = x.connections._links
    close = link.close

    def closing(reason: str) -> None:
        """The word has been read, the connection is not gone yet."""
        close(reason)
        x.connections.send(x.peer, hub.peer, Pong())

    monkeypatch.setattr(link, "close", closing)
    hub.connections._evict(1)
    await hub.node.until(lambda: hub.node.messages[-1] == (x.peer, Pong()))
    assert not x.node.losses


async def test_what_is_under_way_to_who_parts_arrives(start: Start) -> None:
    """It asks, and the other side closes: what that wrote before it knew is read."""
    hub, x = await start("hub"), await start("x")
    x.connections.send(x.peer, hub.peer, Ping())
    await hub.node.until(lambda: len(hub.node.messages) == 1)
    hub.connections._evict(1)
    assert hub.connections.peers(hub.peer) == []
    x.connections.send(x.peer, hub.peer, Pong())
    await hub.node.until(lambda: hub.node.messages[-1] == (x.peer, Pong()))
    assert not hub.node.losses
    assert not x.node.losses


async def test_a_connection_that_neither_side_uses_is_closed_beside_others(start: Start) -> None:
    """Fresh dials leave several; else each doubt would cost a connection until the process ends. What either side sends on stays."""
    low, high = sorted([await start("a"), await start("b")], key=lambda process: process.peer.id)
    for dialler, found in ((low, high), (high, low), (low, high)):
        assert (await dialler.connections.dial_fresh(dialler.peer, found.peer)).found
    (lane,), (other,) = low.connections._lanes.values(), high.connections._lanes.values()
    await until(lambda: len(other.links) == len(lane.links) == 3)

    def ends(links: list[Any], name: str) -> list[Address]:
        return [link.transport.get_extra_info(name) for link in links]

    first, of_high = ends(lane.links, "sockname")[0], ends(other.links, "peername")[0]
    assert first != of_high, "each sends on the one that it has dialled"
    high.connections.send(high.peer, low.peer, Ping())
    await low.node.until(lambda: len(low.node.messages) == 1)
    long_ago = asyncio.get_running_loop().time() - 10 * low.connections.parameters.orphan_max_s
    for link, end in zip(lane.links, ends(lane.links, "sockname"), strict=True):
        link.used_at = link.used_at if end == of_high else long_ago

    assert not other.tidied, "the side with the higher id leaves it to the other"
    low.connections._tidy(lane)
    await until(lambda: len(other.links) == 2)
    assert set(ends(lane.links, "sockname")) == set(ends(other.links, "peername")) == {first, of_high}
    high.connections.send(high.peer, low.peer, Pong())
    low.connections.send(low.peer, high.peer, Pong())
    await low.node.until(lambda: low.node.messages[-1] == (high.peer, Pong()))
    await high.node.until(lambda: high.node.messages[-1:] == [(low.peer, Pong())])
    assert not low.node.losses
    assert not high.node.losses


async def test_spare_connections_are_looked_for_until_there_is_one(start: Start) -> None:
    parameters = OverlayParameters(heartbeat_interval_s=0.05, delay_max_s=0.2)
    low, high = sorted([await start("a", parameters=parameters), await start("b", parameters=parameters)], key=lambda each: each.peer.id)
    for dialler, found in ((low, high), (high, low), (low, high)):
        assert (await dialler.connections.dial_fresh(dialler.peer, found.peer)).found
    (lane,), (other,) = low.connections._lanes.values(), high.connections._lanes.values()
    assert lane.tidied
    await until(lambda: len(lane.links) == len(other.links) == 1, timeout_s=10 * parameters.orphan_max_s)
    assert not lane.tidied, "nothing is left to look for"
    high.connections.send(high.peer, low.peer, Pong())
    await low.node.until(lambda: low.node.messages == [(high.peer, Pong())])
    assert not low.node.losses
    assert not high.node.losses


async def test_who_dies_after_it_has_parted_is_lost_with_the_next_message(start: Start) -> None:
    hub = await start("hub", connections_max=1)
    x, y = await start("x"), await start("y")
    x.connections.send(x.peer, hub.peer, Ping())
    await hub.node.until(lambda: len(hub.node.messages) == 1)
    (link,) = x.connections._links
    y.connections.send(y.peer, hub.peer, Ping())
    async with asyncio.timeout(5):
        await link.closed()
    await hub.connections.close()
    x.connections.send(x.peer, hub.peer, Pong())
    await x.node.until(lambda: bool(x.node.losses))


@dataclass
class RealNode:
    """A real overlay node in a process of its own that may hold few connections, and what it notices."""

    process: Any
    parameters: OverlayParameters
    dials: list[Address] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.node = OverlayNode(self.process.peer, self.parameters, Random(str(self.process.peer.id)))
        self.driver = Driver(self.node, self.process.connections, RecordStore(None, 1 << 20, print), self, self.parameters)
        self.driver.start()

    def __call__(self, effect: Effect) -> None:
        self.effects.append(effect)
        self.changed.set()

    async def on_upload(self, *_: Any) -> str | None:
        return None

    async def enter(self, *seeds: Address) -> None:
        self.driver.dispatch(Started(seeds))
        await self.until(lambda: any(isinstance(effect, Activated) for effect in self.effects))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def facts(self) -> set[str]:
        return {effect.fact for effect in self.effects if isinstance(effect, Notify)}


@pytest.fixture
async def real(start: Start) -> AsyncIterator[Start]:
    """real(name, ...) -> RealNode, whose driver is closed at the end."""
    nodes: list[RealNode] = []

    async def real(name: str, *, parameters: OverlayParameters, **options: Any) -> RealNode:
        nodes.append(RealNode(await start(name, parameters=parameters, **options), parameters))
        return nodes[-1]

    yield real
    for node in nodes:
        await node.driver.close()


async def test_a_ring_whose_nodes_hold_few_connections_is_quiet(real: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen nodes, eight connections each: all are parted with again and again, and nobody is lost or suspected for it."""
    parameters = OverlayParameters(leaf_set_size=4, fan_out_max=2, heartbeat_interval_s=0.4, delay_max_s=1.0)
    nodes: list[RealNode] = []
    for i in range(16):
        made = await real(f"node-{i}", parameters=parameters, connections_max=8)
        connections = made.process.connections
        dial = connections._dial
        monkeypatch.setattr(connections, "_dial", lambda *a, dial=dial, dials=made.dials: (dials.append(a[1]), dial(*a))[1])
        await made.enter(*(each.process.peer.address for each in nodes[:1]))
        nodes.append(made)
    before = sum(len(node.dials) for node in nodes)
    await asyncio.sleep(3.0)  # long enough for some turns of the exchange with leaf set and table
    for node in nodes:
        facts = [effect for effect in node.effects if isinstance(effect, Notify) and effect.fact.startswith("peer_")]
        assert not facts
    again = sum(len(node.dials) for node in nodes) - before
    assert 0 < again <= 16 * 6, f"{again} dials in three quiet seconds: too many, and connections push each other out"


async def test_of_many_connections_with_one_peer_the_one_that_it_sends_on_stays(start: Start) -> None:
    """Each doubts the other again and again, and dials it anew; not a message is lost for it."""
    a, b = await start("a"), await start("b")
    for _ in range(LINKS_MAX):
        assert (await b.connections.dial_fresh(b.peer, a.peer)).found
    await until(lambda: len(a.connections._links) == LINKS_MAX)
    for number in range(3000):
        b.connections.send(b.peer, a.peer, Ping())
        if number == 1000:
            fresh = asyncio.create_task(a.connections.dial_fresh(a.peer, b.peer))
        if number % 10 == 0:
            await asyncio.sleep(0)
    assert (await fresh).found
    b.connections.send(b.peer, a.peer, Pong())
    await a.node.until(lambda: (b.peer, Pong()) in a.node.messages)
    assert a.node.messages.count((b.peer, Ping())) == 3000


# --- slow readers -----------------------------------------------------------------------------------------------------


async def test_who_never_reads_costs_a_bounded_queue_and_stalls_nobody(start: Start) -> None:
    """DESIGN 5: back-pressure. One peer reads nothing, another gets thousands of messages meanwhile."""
    a, slow, quick = await start("a"), await start("slow"), await start("quick")
    for peer in (slow.peer, quick.peer):
        a.connections.send(a.peer, peer, Ping())
    await slow.node.until(lambda: len(slow.node.messages) == 1)
    await quick.node.until(lambda: len(quick.node.messages) == 1)
    (slow_link,) = slow.connections._links
    slow_link.transport.pause_reading()
    lane = next(lane for lane in a.connections._lanes.values() if lane.remote == slow.peer)
    small, large = Route(agent_id("c", "key"), Datagram(b"x" * 100)), big()
    tracemalloc.start()
    began = asyncio.get_running_loop().time()
    for i in range(5000):
        a.connections.send(a.peer, quick.peer, small)
        if i % 10 == 0:
            a.connections.send(a.peer, slow.peer, large)
        if i % 50 == 0:
            await asyncio.sleep(0)
    await quick.node.until(lambda: len(quick.node.messages) == 5001)
    took_s = asyncio.get_running_loop().time() - began
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took_s < 4, "the quick one is served while the slow one is full"
    assert lane.dropped > 100
    assert lane._queue_bytes <= QUEUE_BYTES_MAX
    assert lane._queue_bytes == sum(map(len, lane._queue))
    assert lane.links[0].transport.get_write_buffer_size() <= WRITE_BUFFER_BYTES_MAX + 2 * 60_000
    assert most < QUEUE_BYTES_MAX + 12 * 1024 * 1024, "30 MB were sent to the slow one"
    slow_link.transport.resume_reading()
    await slow.node.until(lambda: not lane._queue)
    a.connections.send(a.peer, slow.peer, Pong())
    await slow.node.until(lambda: slow.node.messages[-1] == (a.peer, Pong()))
    assert lane._queue_bytes == 0
    assert lane._queue == (), "nothing is kept for a lane on which nothing waits"


# --- half-open connections --------------------------------------------------------------------------------------------


async def test_both_ends_look_for_a_vanished_peer(start: Start) -> None:
    """The kernel's own check, which needs no message of ours (that it finds one: tests/real_hosts)."""
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    for process in (a, b):
        (link,) = process.connections._links
        sock = link.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [3, 1, 3, 6000]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_kernel_looks_only_when_the_overlay_has_had_its_say(preset: str) -> None:
    parameters = PRESETS[preset]()
    assert parameters.silence_max_s + parameters.trial_max_s < half_open_max_s(parameters) < 4 * parameters.orphan_max_s


async def test_a_neighbour_that_says_hello_and_then_nothing_is_found(real: Start) -> None:
    """Half open as the overlay sees it: the connection stands, heartbeats go out, nothing comes back, a fresh dial gets no hello."""
    parameters = OverlayParameters(heartbeat_interval_s=0.1, delay_max_s=0.1)
    watcher, silent = await real("watcher", parameters=parameters), await real("silent", parameters=parameters)
    await silent.enter()
    await watcher.enter(silent.process.peer.address)
    # It vanishes: its socket listens, nobody reads, nobody answers.
    connections = silent.process.connections
    for link in connections._links:
        link.transport.pause_reading()
    silent.driver._timer.cancel()
    connections._listener.close()
    with socket.socket() as hung:
        hung.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hung.bind(silent.process.peer.address)
        hung.listen()
        await watcher.until(lambda: "peer_died" in watcher.facts())
    assert len(watcher.process.connections.peers(watcher.process.peer)) == 0, "and its connection is closed"
