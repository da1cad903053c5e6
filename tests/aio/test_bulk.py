"""Records move whole or not at all, and every end of a transfer has its reason."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocol.aio.bulk import BEGUN_MAX, SERVED_MAX, WAITING_MAX, BulkError, PushOutcome
from protocol.aio.fetching import receive_front
from protocol.aio.link import TURN_BYTES_MAX, Link, LinkClosed
from protocol.chunks import FRONT_BYTES_MAX, front_bytes
from protocol.identifiers import Address, Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Ping
from protocol.wire.moving import BulkAccept, BulkFetch, BulkPush, BulkRefuse, BulkStored, BulkWant
from tests.aio.shelf import OWNER, TREE, Shelf, Start, compressed, fetch, offer, push, record
from tests.aio.waiting import until

HASTY = OverlayParameters(delay_max_s=0.1)


@pytest.fixture
async def pair(start: Start) -> tuple[Any, Any, Shelf]:
    a, b, shelf = await start("a"), await start("b"), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    return a, b, shelf


@pytest.mark.parametrize("size", [0, 1, 300_000, 10_000_000])
async def test_a_record_is_pushed_and_fetched(pair: tuple[Any, Any, Shelf], size: int) -> None:
    a, b, shelf = pair
    summary, data = record(size)
    assert await push(a, b, summary, data, "upload") == PushOutcome("stored")
    assert shelf.taken == [(summary, data, "upload", a.peer)]
    shelf.offers[OWNER, TREE] = summary, data
    found, fetched = await fetch(a, b)
    assert (found, bytes(fetched)) == (summary, data)
    assert b.connections.bulk._receiving_bytes == 0


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is freed without the garbage collector. Until it comes, the next record's memory would be new each time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("size", [900_000, 10_000_000])
async def test_a_fetched_record_is_free_when_it_is_let_go(pair: tuple[Any, Any, Shelf], size: int) -> None:
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(size)
    _, data = await fetch(a, b)
    memory = weakref.ref(data.obj)
    del data
    await until(lambda: memory() is None)


@pytest.mark.usefixtures("no_collection")
async def test_a_fetched_record_is_free_though_somebody_else_was_being_dialled(
    pair: tuple[Any, Any, Shelf], hung_listener: Address
) -> None:
    """Of two holders one hangs before its hello."""
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(10_000_000)
    hung = Peer(agent_id("c", "hung"), hung_listener.host, hung_listener.port, 1)
    _, data = await a.connections.bulk.fetch(a.peer, [b.peer, hung], OWNER, TREE, 1)
    memory = weakref.ref(data.obj)
    del data
    await until(lambda: memory() is None)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("when", ["dialling", "moving"])
async def test_a_record_whose_transfer_is_given_up_is_free(pair: tuple[Any, Any, Shelf], hung_listener: Address, when: str) -> None:
    """As where a push is superseded."""
    a, b, _ = pair
    hung = Peer(agent_id("c", "hung"), hung_listener.host, hung_listener.port, 1)
    summary, content = record(50_000_000)
    data = np.frombuffer(content, np.uint8).copy()
    memory = weakref.ref(data)
    pushing = asyncio.create_task(a.connections.bulk.push(a.peer, hung if when == "dialling" else b.peer, summary, data.data, "replica"))
    del data
    if when == "dialling":
        await until(lambda: a.connections._links)
    else:
        await until(lambda: b.connections.bulk._receiving_bytes > 0)
    pushing.cancel()
    await asyncio.wait({pushing})
    del pushing
    await until(lambda: memory() is None)


async def test_heartbeats_go_on_while_a_record_moves(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, _ = pair
    moving = asyncio.create_task(push(a, b, *record(50_000_000)))
    while not moving.done():
        before = len(b.node.messages)
        a.connections.send(a.peer, b.peer, Ping())
        await b.node.until(lambda before=before: len(b.node.messages) > before, timeout_s=1)  # type: ignore[misc]
    assert (await moving).outcome == "stored"


async def test_a_holder_refuses_before_any_byte(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    shelf.admits = lambda summary: "the store is full"
    assert await push(a, b, *record()) == PushOutcome("refused", "the store is full")
    assert not shelf.taken


async def test_a_receiver_refuses_afterwards(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    shelf.accepts = lambda summary: "this round is over"
    assert await push(a, b, *record(), "upload") == PushOutcome("refused", "this round is over")


async def test_what_is_held_does_not_move_again(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    summary, data = record()
    shelf.has = summary, data
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert not shelf.taken


@pytest.mark.parametrize("size", [1000, 2_000_000], ids=["in place", "in a thread"])
async def test_corrupted_bytes_are_never_handed_on(pair: tuple[Any, Any, Shelf], size: int) -> None:
    a, b, shelf = pair
    summary, data = record(size)
    corrupted = data[:-1] + b"\x00"
    outcome = await push(a, b, summary, corrupted)
    assert outcome.outcome == "refused"
    assert "does not have its digest" in outcome.reason
    assert not shelf.taken
    shelf.offers[OWNER, TREE] = summary, corrupted
    with pytest.raises(BulkError, match="does not have its digest"):
        await fetch(a, b)


async def test_a_sender_that_dies_in_the_middle(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    summary, data = record(1_000_000)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    offer(link, summary, data)
    assert await link.receive() == BulkWant(((0, 16),))
    await link.send_raw(memoryview(data)[front_bytes(data) :][:400_000], 1.0)
    (theirs,) = b.connections._links
    link.abort("kill -9")
    await theirs.closed()
    assert not shelf.taken
    assert await push(a, b, summary, data) == PushOutcome("stored"), "the next one is not in its way"


async def test_a_holder_that_dies_in_the_middle(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(50_000_000)
    fetching = asyncio.create_task(fetch(a, b))
    await shelf.asked.wait()
    (theirs,) = b.connections._links
    theirs.abort("kill -9")
    with pytest.raises(BulkError):
        await fetching


async def test_nobody_has_it(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, _ = pair
    with pytest.raises(BulkError, match=r"no record of .* of version 1 or later is held here"):
        await fetch(a, b)


async def test_an_older_record_than_asked_for_is_not_taken(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(version=3)
    with pytest.raises(BulkError, match=r"asked for version 4 of .*, was offered 3"):
        await fetch(a, b, version=4)


async def test_who_does_not_wait_is_not_waited_for(pair: tuple[Any, Any, Shelf]) -> None:
    """provide() may wait long; it ends with the connection."""
    a, b, shelf = pair
    fetching = asyncio.create_task(fetch(a, b, version=99, patience_s=60))
    await shelf.asked.wait()
    fetching.cancel()
    async with asyncio.timeout(5):
        await shelf.gave_up.wait()


async def test_fetches_of_a_version_that_never_comes_keep_nobody_from_being_served(start: Start) -> None:
    """As many as there may be transfers: they wait apart, for a while, and more than that are refused at once."""
    a, b, shelf = await start("a"), await start("b"), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    shelf.has = given = record()
    links = []
    for _ in range(WAITING_MAX + 1):
        links.append(await a.connections._dial_bulk(a.peer, b.peer))
        links[-1].send(BulkFetch(OWNER, TREE, 99))
    assert isinstance(await links[-1].receive(), BulkRefuse)
    assert (await push(a, b, *record(version=2))).outcome == "stored"
    assert (await fetch(a, b))[0] == given[0]
    for link in links[:-1]:
        assert isinstance(await link.receive(), BulkRefuse), "after provide_max_s"
    assert shelf.gave_up.is_set()


async def test_a_holder_that_says_nothing(start: Start) -> None:
    """P8."""
    a, b, shelf = await start("a", parameters=HASTY), await start("b"), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    with pytest.raises(BulkError, match=r"did not deliver within 0\.2 s"):
        await fetch(a, b, version=99)


async def test_a_sender_that_stalls_is_given_up(start: Start) -> None:
    a, b, shelf = await start("a"), await start("b", parameters=HASTY), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    offer(link, *record())
    assert await link.receive() == BulkWant(((0, 1),))
    with pytest.raises(LinkClosed):
        await link.receive()
    assert b.connections.bulk._receiving_bytes == 0


async def test_bytes_that_came_while_the_loop_stood_still_are_read_before_they_are_missed(start: Start) -> None:
    a, b = await start("a"), await start("b")
    serving: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def serve(link: Link) -> None:
        serving.set_result(link)
        await link.closed()

    b.connections.bulk.serve_link = serve
    link = await a.connections._dial_bulk(a.peer, b.peer)
    their_link = await serving
    assert their_link.transport is not None
    theirs, stall_s, first = their_link.transport.get_extra_info("socket").fileno(), 0.1, iter([True])

    def arrived(count: int) -> None:
        if next(first, False):
            os.write(theirs, bytes(1000))
            time.sleep(2 * stall_s)  # the loop stands still

    receiving = asyncio.create_task(link.receive_into(deque([memoryview(bytearray(2000))]), arrived, stall_s))
    await asyncio.sleep(0)
    os.write(theirs, bytes(1000))
    await asyncio.wait_for(receiving, 10)
    link.abort("seen")


async def dribble(link: Link, data: bytes) -> None:
    """A byte now and then: never a stall."""
    while not link.closing:
        link.send_frame(data[:1])
        data = data[1:]
        await asyncio.sleep(0.02)


async def test_who_announces_much_and_dribbles_its_front_keeps_nobody_out(start: Start) -> None:
    """P8: room is for records that come."""
    a, b, shelf = await start("a"), await start("b", parameters=HASTY), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    summary, data = record()
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkPush(replace(summary, record_bytes=HASTY.record_bytes_max), "upload", FRONT_BYTES_MAX))
    dribbling = asyncio.create_task(dribble(link, bytes(FRONT_BYTES_MAX)))
    assert await push(a, b, summary, data) == PushOutcome("stored")
    answer = await asyncio.wait_for(link.receive(), 5)
    assert isinstance(answer, BulkRefuse)
    assert "did not come within" in answer.reason
    link.abort("seen")
    await dribbling


async def test_a_holder_that_dribbles_its_front_is_given_up(start: Start) -> None:
    a, b = await start("a", parameters=HASTY), await start("b")
    summary, _ = record()

    async def serve(link: Link) -> None:
        await link.receive()
        link.send(BulkAccept(summary, FRONT_BYTES_MAX))
        await dribble(link, bytes(FRONT_BYTES_MAX))

    b.connections.bulk.serve_link = serve
    with pytest.raises(BulkError, match=r"a record's front of \d+ bytes did not come within"):
        await asyncio.wait_for(fetch(a, b), 5)


async def test_sizes_are_bounded(start: Start) -> None:
    """P7: one record, and all that are under way together."""
    small = OverlayParameters(record_bytes_max=5000)
    a, b, shelf = await start("a"), await start("b", parameters=small), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    outcome = await push(a, b, *record(5001 - 56))
    assert (outcome.outcome, outcome.reason) == ("refused", "a record of 5001 bytes where at most 5000 may be")
    first = await a.connections._dial_bulk(a.peer, b.peer)
    offer(first, *record(3000))
    assert await first.receive() == BulkWant(((0, 1),))
    outcome = await push(a, b, *record(3000, version=2))
    assert outcome.outcome == "failed", "busy is no refusal of the record"
    assert "3056 bytes of other records" in outcome.reason
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkPush(replace(record()[0], record_bytes=-1), "replica"))
    assert "BulkRefuse" in repr(await link.receive())


async def test_what_begins_no_transfer_is_refused(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, _ = pair
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(Ping())
    with pytest.raises(Exception, match="Ping begins no transfer"):
        await link.receive()


async def test_a_node_without_records(start: Start) -> None:
    a, b = await start("a"), await start("b")
    outcome = await push(a, b, *record())
    assert outcome.outcome == "failed"
    assert "no records are exchanged here" in outcome.reason


async def test_a_dead_holder(start: Start, free_port: Callable[[], int]) -> None:
    a = await start("a")
    dead = Peer(agent_id("c", "dead"), "127.0.0.1", free_port(), 1)
    outcome = await a.connections.bulk.push(a.peer, dead, *record(), "replica")
    assert outcome.outcome == "failed"
    assert "nobody listens there" in outcome.reason
    with pytest.raises(BulkError, match="nobody listens there"):
        await a.connections.bulk.fetch(a.peer, [dead], OWNER, TREE, 1)


async def test_closing_during_transfers_leaves_nothing(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    waiting = asyncio.create_task(fetch(a, b, version=99, patience_s=60))
    await shelf.asked.wait()
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkFetch(OWNER, TREE, 1))
    await b.connections.close()
    with pytest.raises(BulkError):
        await waiting


async def test_transfers_that_we_begin_are_few_at_a_time(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    together: list[int] = []
    shelf.admits = lambda summary: together.append(b.connections.bulk._served)  # type: ignore[func-returns-value]
    outcomes = await asyncio.gather(*(push(a, b, *record(version=version), "upload") for version in range(3 * BEGUN_MAX)))
    assert {outcome.outcome for outcome in outcomes} == {"stored"}
    assert max(together) <= BEGUN_MAX


async def test_transfers_that_others_begin_are_refused_beyond_what_may_be(pair: tuple[Any, Any, Shelf]) -> None:
    """Each of them costs a descriptor, and memory for what it holds: whoever cannot be served now is told so, and comes again."""
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(300_000)
    links = [await a.connections._dial_bulk(a.peer, b.peer) for _ in range(SERVED_MAX)]
    await until(lambda: b.connections.bulk._served == SERVED_MAX)
    with pytest.raises(BulkError, match=f"{SERVED_MAX} transfers are under way here"):
        await fetch(a, b)
    links[0].abort("it has changed its mind")
    await until(lambda: b.connections.bulk._served < SERVED_MAX)
    assert (await fetch(a, b))[0] == shelf.offers[OWNER, TREE][0]


async def test_a_link_gives_way_to_others_after_each_megabyte(pair: tuple[Any, Any, Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits on the loop has its turn in between: a heartbeat is not behind a gigabyte."""
    a, b, shelf = pair
    shelf.offers[OWNER, TREE] = record(20_000_000)
    between: list[int] = [0]
    updated = Link.buffer_updated

    def counted(link: Link, nbytes: int) -> None:
        between[-1] += nbytes
        updated(link, nbytes)

    def next_turn() -> None:
        between.append(0)
        turn[0] = asyncio.get_running_loop().call_soon(next_turn)

    monkeypatch.setattr(Link, "buffer_updated", counted)
    turn = [asyncio.get_running_loop().call_soon(next_turn)]
    try:
        await fetch(a, b)
    finally:
        turn[0].cancel()
    assert sum(between) > 20_000_000
    assert max(between) <= TURN_BYTES_MAX + 2000, "raw bytes, and the frames of the other end, which is on this loop too"


@pytest.mark.parametrize("purpose", ["replica", "upload"])
async def test_what_would_be_longer_than_may_be_once_it_is_open_moves_neither_way(start: Start, purpose: str) -> None:
    """P7: some kilobytes on the wire may open to as much as somebody likes."""
    small = OverlayParameters(record_bytes_max=1_000_000)
    a, b, shelf = await start("a"), await start("b", parameters=small), Shelf()
    for process in (a, b):
        process.connections.bulk.serve(process.peer.id, shelf)
    summary, data = compressed(1_000_001)
    assert len(data) < 2000
    outcome = await push(a, b, summary, data, purpose)
    said = f"the record of {OWNER.short}, version 1, has 1000001 bytes of content where at most 1000000 may be"
    assert outcome == PushOutcome("refused", said)
    assert not shelf.taken
    shelf.offers[OWNER, TREE] = summary, data
    with pytest.raises(BulkError, match=said):
        await fetch(b, a)
    assert (await push(a, b, *compressed(1_000_000), purpose)).outcome == "stored"
    assert b.connections.bulk._receiving_bytes == 0


async def test_who_brings_a_record_has_the_patience_that_the_other_side_may_need(start: Start) -> None:
    """To receive it, and then to do something with it: given up before that, it would be brought once more."""
    limits = OverlayParameters(delay_max_s=0.5)
    a, b = await start("a", parameters=limits), await start("b")
    summary, data = record()
    long_s = 0.6 * limits.transfer_timeout_s(summary.record_bytes)

    async def serve(link: Link) -> None:
        offer = await link.receive()
        assert isinstance(offer, BulkPush)
        await receive_front(link, offer.front_bytes, limits)
        await asyncio.sleep(long_s)
        link.send(BulkWant(((0, 1),)))
        await link.receive_into(deque([memoryview(bytearray(summary.record_bytes - offer.front_bytes))]), lambda count: None, 1.0)
        await asyncio.sleep(long_s)
        link.send(BulkStored())
        await link.closed()

    b.connections.bulk.serve_link = serve
    assert await push(a, b, summary, data) == PushOutcome("stored")


async def test_who_opens_what_it_was_brought_has_time_and_room_by_the_length_of_what_is_in_it(start: Start) -> None:
    """Eight megabytes that were a kilobyte on the wire: a transfer of that would be over in 0.2 s."""
    slow = replace(HASTY, transfer_floor_bytes_per_s=1_000_000, record_bytes_max=10_000_000)
    a, b, shelf = await start("a", parameters=slow), await start("b", parameters=slow), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    room: list[int] = []

    async def opens(*arguments: Any) -> str | None:
        room.append(b.connections.bulk._receiving_bytes)
        await asyncio.sleep(3 * slow.probe_timeout_s)
        return None

    shelf.accept = opens  # type: ignore[method-assign]
    summary, data = compressed(8_000_000)
    assert await push(a, b, summary, data, "upload") == PushOutcome("stored")
    assert await push(a, b, summary, data, "replica") == PushOutcome("stored")
    assert room == [8_000_000, len(data)], "a copy that is only kept is never opened"
    assert b.connections.bulk._receiving_bytes == 0
