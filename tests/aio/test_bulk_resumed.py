"""What is here already does not come again: of an older version, and of a transfer that broke off (DESIGN 5, 8)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from protocol.aio import bulk
from protocol.aio.bulk import BulkError, PushOutcome
from protocol.aio.link import Link, LinkClosed
from protocol.aio.unfinished import UNFINISHED_MAX, Unfinished
from protocol.assembly import Assembly
from protocol.chunks import CHUNK_BYTES_MIN, front_bytes
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Ping
from protocol.wire.moving import BulkAccept, BulkFetch, BulkRefuse, BulkStored, BulkWant
from tests.aio.shelf import OWNER, TREE, Shelf, Start, fetch, misbehave, noise, offer, push
from tests.aio.waiting import until

CHUNK = CHUNK_BYTES_MIN
SIZE = 20 * CHUNK


@pytest.fixture
async def pair(start: Start) -> tuple[Any, Any, Shelf, Shelf]:
    """a and b, and what each holds."""
    a, b, mine, shelf = await start("a"), await start("b"), Shelf(), Shelf()
    a.connections.bulk.serve(a.peer.id, mine)
    b.connections.bulk.serve(b.peer.id, shelf)
    return a, b, mine, shelf


@pytest.mark.parametrize("scale", [1, 10], ids=["in place", "in a thread"])
async def test_of_a_newer_version_only_what_changed_is_pushed(pair: tuple[Any, Any, Shelf, Shelf], scale: int) -> None:
    a, b, _, shelf = pair
    older, newer = (noise(scale * SIZE, version, changed=3 * CHUNK) for version in (1, 2))
    shelf.has = older
    assert await push(a, b, *newer) == PushOutcome("stored")
    assert shelf.taken == [(*newer, "replica", a.peer)]
    assert a.connections.bulk.moved.sent_bytes == b.connections.bulk.moved.received_bytes == 3 * CHUNK
    assert b.connections.bulk.moved.spared_bytes == scale * SIZE - 3 * CHUNK


async def test_who_has_an_older_version_fetches_only_what_changed(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    """A restarted agent, with what its disk held."""
    a, b, mine, shelf = pair
    mine.has, shelf.offers[OWNER, TREE] = (noise(SIZE, version, changed=CHUNK) for version in (1, 2))
    summary, data = await fetch(a, b, version=2)
    assert (summary, bytes(data)) == shelf.offers[OWNER, TREE]
    assert a.connections.bulk.moved.received_bytes == b.connections.bulk.moved.sent_bytes == CHUNK


async def test_where_every_chunk_is_known_no_byte_moves(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    """A version that was taken without a step in between."""
    a, b, mine, shelf = pair
    mine.has = shelf.has = noise(SIZE, 1)
    again = replace(mine.has[0], version=5), mine.has[1]
    assert await push(a, b, *again) == PushOutcome("stored")
    shelf.offers[OWNER, TREE] = again
    assert bytes((await fetch(a, b))[1]) == again[1]
    assert a.connections.bulk.moved.sent_bytes == b.connections.bulk.moved.sent_bytes == 0


async def test_a_push_goes_on_at_the_chunk_where_it_broke(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    a, b, _, shelf = pair
    summary, data = noise(SIZE)
    start = front_bytes(data)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    offer(link, summary, data)
    assert await link.receive() == BulkWant(((0, 20),))
    await link.send_raw(memoryview(data)[start:][: 7 * CHUNK + 1000], 1.0)
    (theirs,) = b.connections._links
    link.abort("kill -9")
    await theirs.closed()
    again = await a.connections._dial_bulk(a.peer, b.peer)
    offer(again, summary, data)
    wanted = await again.receive()
    assert isinstance(wanted, BulkWant)
    ((first, count),) = wanted.runs
    assert first + count == 20
    assert 0 < first <= 7, "an abort destroys what was not read; what was checked stays"
    await again.send_raw(memoryview(data)[start + first * CHUNK :], 1.0)
    assert await again.receive() == BulkStored()
    assert shelf.taken == [(summary, data, "replica", a.peer)]
    assert not b.connections.bulk._unfinished


async def test_the_next_version_builds_on_one_that_never_arrived(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    """Newer supersedes older under way: what came of the older is not wasted."""
    a, b, _, shelf = pair
    older, newer = (noise(SIZE, version, changed=CHUNK) for version in (1, 2))
    link = await a.connections._dial_bulk(a.peer, b.peer)
    offer(link, *older)
    await link.receive()
    (theirs,) = b.connections._links
    await link.send_raw(memoryview(older[1])[front_bytes(older[1]) :][: 5 * CHUNK], 1.0)
    await until(lambda: b.connections.bulk.moved.received_bytes == 5 * CHUNK)
    link.abort("superseded")
    await theirs.closed()
    assert await push(a, b, *newer) == PushOutcome("stored")
    assert a.connections.bulk.moved.sent_bytes == 15 * CHUNK
    assert bytes(shelf.taken[0][1]) == newer[1]


async def test_a_fetch_that_failed_goes_on_with_another_call(pair: tuple[Any, Any, Shelf, Shelf], start: Start) -> None:
    a, b, _, _ = pair
    c, shelf = await start("c"), Shelf()
    c.connections.bulk.serve(c.peer.id, shelf)
    given = shelf.offers[OWNER, TREE] = noise(SIZE)

    async def dies(link: Link, wanted: memoryview, wish: BulkWant) -> None:
        await link.send_raw(wanted[: 12 * CHUNK], 1.0)
        link.close("the process leaves")

    misbehave(b, given, dies)
    with pytest.raises(BulkError):
        await fetch(a, b)
    assert bytes((await fetch(a, c))[1]) == given[1]
    assert c.connections.bulk.moved.sent_bytes == 8 * CHUNK


async def test_a_wrong_chunk_is_asked_for_again_and_no_other(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    a, b, _, shelf = pair
    summary, data = noise(SIZE)
    bad = bytearray(data)
    bad[front_bytes(data) + 4 * CHUNK] ^= 1
    outcome = await push(a, b, summary, bytes(bad))
    assert outcome == PushOutcome("refused", outcome.reason)
    assert "does not have its digest" in outcome.reason
    assert not shelf.taken
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert a.connections.bulk.moved.sent_bytes == SIZE + CHUNK


@pytest.mark.parametrize("runs", [((19, 2),), ((0, 1), (0, 1)), ((-1, 1),), ((0, 0),), ((2**40, 1),), ((0, 2**40),)])
async def test_who_asks_for_what_there_is_not_is_dropped(pair: tuple[Any, Any, Shelf, Shelf], runs: tuple[tuple[int, int], ...]) -> None:
    """P7: each chunk once; else a small wish costs any amount of bytes."""
    a, b, _, shelf = pair
    shelf.offers[OWNER, TREE] = noise(SIZE)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkFetch(OWNER, TREE, 1))
    accept = await link.receive()
    assert isinstance(accept, BulkAccept)
    link.send(BulkWant(runs))
    async with asyncio.timeout(5):
        await link.closed()
    assert b.connections.bulk.moved.sent_bytes <= CHUNK


async def test_a_front_that_cannot_be_is_refused(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    a, b, _, _ = pair
    summary, data = noise(SIZE)
    for said, why in ((0, "bytes, not 0"), (1 << 30, "bytes, not 1073741824"), (front_bytes(data) - 1, "does not have its digest")):
        link = await a.connections._dial_bulk(a.peer, b.peer)
        link.send(bulk.BulkPush(summary, "replica", said), data[: front_bytes(data)])
        answer = await link.receive()
        assert isinstance(answer, BulkRefuse)
        assert why in answer.reason
        assert b.connections.bulk._receiving_bytes == 0


async def test_what_follows_no_accept_but_a_wish_ends_the_transfer(pair: tuple[Any, Any, Shelf, Shelf]) -> None:
    a, b, _, shelf = pair
    shelf.offers[OWNER, TREE] = noise(1000)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkFetch(OWNER, TREE, 1))
    accept = await link.receive()
    assert isinstance(accept, BulkAccept)
    link.session.take_raw(accept.front_bytes)
    link.send(Ping())
    with pytest.raises(LinkClosed):
        await link.receive()


def assembly_of(version: int, chunks: int = 1) -> Assembly:
    summary, data = noise(4 * CHUNK, version, changed=4 * CHUNK)
    assembly = Assembly(summary, data[: front_bytes(data)])
    assembly.data[:] = data
    for index in range(chunks):
        assert assembly.check(index)
    return assembly


async def test_what_broke_off_is_bounded_and_forgotten() -> None:
    kept = Unfinished(kept_s=0.01)
    for version in range(UNFINISHED_MAX + 3):
        kept.keep(assembly_of(version))
    assert len(kept) == UNFINISHED_MAX, "the oldest gave way"
    assert kept.take(assembly_of(0).summary.digest) is None
    kept.keep(assembly_of(100, chunks=0))
    kept.keep(assembly_of(101, chunks=4))
    assert len(kept) == UNFINISHED_MAX, "neither what has not begun nor what is complete is kept"
    await until(lambda: not kept)


async def test_what_broke_off_gives_way_to_what_comes(start: Start) -> None:
    """P7: both together stay below record_bytes_max."""
    a, b, shelf = await start("a"), await start("b", parameters=OverlayParameters(record_bytes_max=int(1.5 * SIZE))), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    summary, data = noise(SIZE)
    bad = data[:-1] + bytes([data[-1] ^ 1])
    assert (await push(a, b, summary, bad)).outcome == "refused"
    assert b.connections.bulk._unfinished.bytes_kept == summary.record_bytes
    assert await push(a, b, *noise(SIZE, 2, changed=SIZE)) == PushOutcome("stored")
    assert not b.connections.bulk._unfinished
