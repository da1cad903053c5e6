"""The pool: who is told what, on which connection, when peers die, refuse, hang or talk nonsense."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from protocol import WIRE_VERSION
from protocol.aio import dialling
from protocol.aio.connections import DIALS_AT_ONCE
from protocol.aio.link import TURN_MESSAGES_MAX
from protocol.errors import LocalProtocolError
from protocol.identifiers import Address, Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.codec import encode
from protocol.wire.framing import frame
from protocol.wire.messages import Datagram, Heartbeat, Hello, Ping, Pong, Route
from protocol.wire.session import Session

Start = Callable[..., Any]
HASTY = OverlayParameters(delay_max_s=0.1)
"""probe_timeout_s is 0.2 s: for tests in which that deadline must pass."""


def big(size: int = 60_000) -> Route:
    return Route(agent_id("c", "key"), Datagram(bytes(size)))


async def test_a_message_travels_and_is_said_to_come_from_the_peer_of_the_hello(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    assert b.node.messages == [(a.peer, Ping())]
    b.connections.send(b.peer, a.peer, Pong())
    await a.node.until(lambda: len(a.node.messages) == 1)
    assert a.connections.peers(a.peer) == [b.peer]
    (a_lane,) = a.connections._lanes.values()
    (b_lane,) = b.connections._lanes.values()
    assert len(a_lane.links) == len(b_lane.links) == 1, "the answer takes the connection that is there"


async def test_small_messages_are_not_held_back_on_either_side(start: Start) -> None:
    """DESIGN 5: TCP_NODELAY on both sides."""
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    for process in (a, b):
        (link,) = process.connections._links
        assert link.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_burst_of_messages_gives_way_to_others(start: Start) -> None:
    """P7: whoever writes frames without pause has no loop for himself; what waits there has its turn in between."""
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    (link,) = a.connections._links
    between = [0]

    def next_turn() -> None:
        between.append(len(b.node.messages))
        turn[0] = asyncio.get_running_loop().call_soon(next_turn)

    turn = [asyncio.get_running_loop().call_soon(next_turn)]
    try:
        link.send_frame(frame(encode(Pong())) * 20_000)
        await b.node.until(lambda: len(b.node.messages) == 20_001, 30)
    finally:
        turn[0].cancel()
    assert max(late - early for early, late in pairwise(between)) <= 2 * TURN_MESSAGES_MAX


async def test_messages_sent_while_dialling_arrive_in_order(start: Start) -> None:
    a, b = await start("a"), await start("b")
    sent = [Route(agent_id("c", "key"), Datagram(bytes([i]))) for i in range(100)]
    for message in sent:
        a.connections.send(a.peer, b.peer, message)
    await b.node.until(lambda: len(b.node.messages) == 100)
    assert [message for _, message in b.node.messages] == sent


async def test_a_peer_that_dies_is_lost_once(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    (link,) = b.connections._links
    link.abort("kill -9")
    await a.node.until(lambda: bool(a.node.losses))
    assert [peer for peer, _ in a.node.losses] == [b.peer]


async def test_a_peer_is_lost_only_with_its_last_connection(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    assert (await a.connections.dial_fresh(a.peer, b.peer)).found == b.peer
    (lane,) = a.connections._lanes.values()
    fresh, old = lane.links
    old.abort("reset")
    await old.closed()
    a.connections.send(a.peer, b.peer, Pong())
    await b.node.until(lambda: len(b.node.messages) == 2)
    assert not a.node.losses
    fresh.abort("reset")
    await a.node.until(lambda: bool(a.node.losses))


async def test_both_sides_dial_at_once(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    b.connections.send(b.peer, a.peer, Ping())
    await a.node.until(lambda: len(a.node.messages) == 1)
    await b.node.until(lambda: len(b.node.messages) == 1)
    assert not a.node.losses
    assert not b.node.losses


async def test_nobody_listens(start: Start, free_port: Callable[[], int]) -> None:
    """Refused is an answer: the process is gone for certain."""
    a = await start("a")
    dead = Peer(agent_id("c", "dead"), "127.0.0.1", free_port(), 1)
    ended = await a.connections.dial_fresh(a.peer, dead)
    assert (ended.found, ended.refused) == (None, True)
    assert "nobody listens there" in ended.reason
    a.connections.send(a.peer, dead, Ping())
    await a.node.until(lambda: bool(a.node.losses))
    assert a.node.losses[0][0] == dead


async def test_a_hung_listener_is_silent_not_gone(start: Start, hung_listener: Address) -> None:
    """SIGSTOP: the kernel accepts, nobody says hello. Not refused."""
    a = await start("a", parameters=HASTY)
    ended = await a.connections.dial_fresh(a.peer, Peer(agent_id("c", "h"), *hung_listener, 1))
    assert (ended.found, ended.refused) == (None, False)
    assert "no hello within 0.2 s" in ended.reason


async def test_hung_dials_do_not_hold_up_a_healthy_one(start: Start, hung_listener: Address) -> None:
    """More of them than may be under way at once: after delay_max_s each gives its turn to the next."""
    a, b = await start("a", parameters=HASTY), await start("b")
    hung = [
        asyncio.create_task(a.connections.dial_fresh(a.peer, Peer(agent_id("c", f"h{index}"), *hung_listener, 1)))
        for index in range(DIALS_AT_ONCE)
    ]
    await asyncio.sleep(0)  # they are first in line
    ended = await a.connections.dial_fresh(a.peer, b.peer)
    assert ended.found == b.peer
    assert not any(task.done() for task in hung), "none of them had come to its end"
    assert {(await task).found for task in hung} == {None}


@pytest.mark.parametrize("host", ["", "no\0where", "x" * 255, "256.1.1.1.invalid"])
async def test_an_address_from_a_peer_can_be_nonsense(start: Start, host: str) -> None:
    a = await start("a", parameters=HASTY)
    ended = await a.connections.dial_fresh(a.peer, Peer(agent_id("c", "x"), host, 99999, 1))
    assert ended.found is None
    assert ended.reason


async def test_a_restarted_peer_is_found_as_a_later_life(start: Start) -> None:
    a, b = await start("a"), await start("b", incarnation=2)
    before = replace(b.peer, incarnation=1)
    assert (await a.connections.dial_fresh(a.peer, before)).found == b.peer
    a.connections.send(a.peer, before, Ping())
    await a.node.until(lambda: bool(a.node.losses))
    assert a.node.losses == [(before, "incarnation 2 lives there, not 1")]
    assert not b.node.messages, "what was meant for the earlier life is not told to the later one"


async def test_another_node_lives_there_now(start: Start) -> None:
    a, b = await start("a"), await start("b")
    ended = await a.connections.dial_fresh(a.peer, replace(b.peer, id=agent_id("c", "other")))
    assert (ended.found, ended.refused) == (None, True)
    assert "does not live at this address" in ended.reason


async def test_another_cluster_is_told_in_words(start: Start) -> None:
    a, b = await start("a"), await start("b", cluster="other")
    ended = await a.connections.dial_fresh(a.peer, b.peer)
    assert not ended.refused
    assert "cluster 'c' is not ours, 'other'" in ended.reason


async def test_one_listener_serves_several_nodes(start: Start) -> None:
    a, b = await start("a"), await start("b")
    second = replace(a.node, peer=replace(b.peer, id=agent_id("c", "second")), messages=[])
    b.connections.serve(second.peer, second)
    a.connections.send(a.peer, second.peer, Ping())
    await second.until(lambda: len(second.messages) == 1)
    assert not b.node.messages
    assert (await a.connections.dial_seed(a.peer, b.peer.address)).found == b.peer, "the first is the default"


async def test_a_seed_that_is_ourselves(start: Start) -> None:
    a = await start("a")
    ended = await a.connections.dial_seed(a.peer, a.peer.address)
    assert ended.found is None
    assert "this node itself" in ended.reason
    assert not a.node.losses


async def test_disconnecting_is_not_losing(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    a.connections.send(a.peer, b.peer, Pong())
    a.connections.disconnect(a.peer, b.peer)
    await b.node.until(lambda: bool(b.node.losses))
    assert b.node.messages[-1] == (a.peer, Pong()), "what was written before has left"
    assert not a.node.losses


async def test_nonsense_hurts_only_its_own_connection(start: Start) -> None:
    """P7."""
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    evil = Peer(agent_id("c", "evil"), "127.0.0.1", 1, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", b.peer.port)
    writer.write(frame(encode(Hello(WIRE_VERSION, "c", "control", evil, b.peer.id))))
    writer.write(frame(encode(Ping())) + frame(b"nonsense"))
    told = await reader.read()
    writer.close()
    assert b"malformed" in told
    await b.node.until(lambda: bool(b.node.losses))
    assert [peer for peer, _ in b.node.losses] == [evil]
    a.connections.send(a.peer, b.peer, Heartbeat())
    await b.node.until(lambda: b.node.messages[-1] == (a.peer, Heartbeat()))


@pytest.mark.parametrize("said", [b"", b"\x00\x00", b"GET / HTTP/1.1\r\n\r\n"])
async def test_who_does_not_say_hello_is_dropped(start: Start, said: bytes) -> None:
    """P8: half a hello times out; something else is refused at once."""
    b = await start("b", parameters=HASTY)
    reader, writer = await asyncio.open_connection("127.0.0.1", b.peer.port)
    writer.write(said)
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    assert not b.node.messages


async def test_a_node_may_drop_a_peer_that_errs(start: Start) -> None:
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    b.connections.drop(b.peer, a.peer, "a path of 1000 hops")
    await b.node.until(lambda: bool(b.node.losses))
    await a.node.until(lambda: bool(a.node.losses))
    assert "a path of 1000 hops" in a.node.losses[0][1]


async def test_all_links_of_a_loop_read_into_one_buffer(start: Start) -> None:
    """A quarter of a megabyte, which each node of a process would have else."""
    a, b = await start("a"), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    assert len({id(link.get_buffer(-1)) for process in (a, b) for link in process.connections._links}) == 1


async def test_a_slow_reader_costs_a_bounded_queue(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    a = await start("a", parameters=OverlayParameters(send_queue_max=10))
    b = await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    (b_link,) = b.connections._links
    b_link.transport.pause_reading()
    (lane,) = a.connections._lanes.values()
    sent = 0
    while not lane.dropped:
        a.connections.send(a.peer, b.peer, big())
        sent += 1
        await asyncio.sleep(0)
        assert sent < 2000
    a.connections.send(a.peer, b.peer, big())
    assert lane.dropped == 2
    assert caplog.text.count("are dropped while 10 wait") == 1
    b_link.transport.resume_reading()
    await b.node.until(lambda: len(b.node.messages) == 1 + sent - 1)


async def test_running_out_of_descriptors_is_survived(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: some connections are closed and the dial is tried again."""
    a, b, c = await start("a"), await start("b"), await start("c")
    assert (await a.connections.dial_fresh(a.peer, b.peer)).found
    connect, failures = dialling._connect, [OSError(errno.EMFILE, "Too many open files")]

    async def scarce(make_link: Any, address: Address) -> Any:
        if failures:
            raise dialling.DialFailed(str(failures.pop()), exhausted=True)
        return await connect(make_link, address)

    monkeypatch.setattr(dialling, "_connect", scarce)
    assert (await a.connections.dial_fresh(a.peer, c.peer)).found == c.peer
    assert a.connections.peers(a.peer) == [c.peer]


async def test_links_with_one_peer_are_bounded(start: Start) -> None:
    a, b = await start("a"), await start("b")
    for _ in range(10):
        assert (await a.connections.dial_fresh(a.peer, b.peer)).found
    (lane,) = a.connections._lanes.values()
    async with asyncio.timeout(5):
        await asyncio.gather(*(link.closed() for link in lane.links if link.closing))
    assert len(lane.links) <= 4
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    assert not a.node.losses
    assert not b.node.losses


async def test_closing_does_not_wait_for_a_peer_that_hangs(start: Start) -> None:
    """P8. The peer reads nothing: what is left in the buffer is given up after probe_timeout_s."""
    a, b = await start("a", parameters=HASTY), await start("b")
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)
    (b_link,) = b.connections._links
    b_link.transport.pause_reading()
    (lane,) = a.connections._lanes.values()
    while not lane.links[0].paused:
        a.connections.send(a.peer, b.peer, big())
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await a.connections.close()
    assert not a.node.losses


@pytest.mark.parametrize("turns", range(4))
async def test_closing_while_somebody_connects(start: Start, turns: int) -> None:
    """P8. So many turns of the loop after the connection came: it may be on its way from the listener to its link, and uvloop never tells
    the link that it is gone. An agent that left while others dialled it was killed by its launcher ten seconds later."""
    a = await start("a")
    with socket.create_connection((a.peer.host, a.peer.port)):
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(2):
                await a.connections.close()
        finally:
            untold = list(a.connections._links)
            a.connections._links.clear()  # or the fixture would wait for them as well
    assert not untold


async def test_a_message_longer_than_a_frame_is_refused_before_it_is_sent(start: Start) -> None:
    """The other side would drop us for it."""
    a, b = await start("a", parameters=OverlayParameters(control_frame_bytes_max=1000)), await start("b")
    with pytest.raises(LocalProtocolError, match="where a control frame has at most 1000"):
        a.connections.send(a.peer, b.peer, big())
    assert not a.connections._lanes
    a.connections.send(a.peer, b.peer, Ping())
    await b.node.until(lambda: len(b.node.messages) == 1)


async def test_an_unknown_message_is_answered_and_the_connection_stays(start: Start) -> None:
    b = await start("b")
    peer = Peer(agent_id("c", "newer"), "127.0.0.1", 1, 1)
    session = Session.dialling("c", peer, b.peer.id, "control", 1 << 20)
    reader, writer = await asyncio.open_connection("127.0.0.1", b.peer.port)
    writer.write(session.data_to_send() + frame(b"\x92\xcd\x03\xe7\x80") + frame(encode(Ping())))
    await b.node.until(lambda: len(b.node.messages) == 1)
    session.receive(await reader.read(1000))
    writer.close()
    assert isinstance(session.next_message(), Hello)
    assert "tag=999" in repr(session.next_message())
