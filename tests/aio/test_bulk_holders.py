"""Several holders: of a large record each brings a part, and who fails, stalls, lies or is slow is replaced in the middle (DESIGN 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.aio.bulk import BulkError
from protocol.aio.fetching import PARALLEL_BYTES_MIN
from protocol.aio.link import Link
from protocol.chunks import CHUNK_BYTES_MIN, front_of
from protocol.identifiers import Peer, agent_id
from protocol.parameters import OverlayParameters
from protocol.wire.moving import BulkWant
from tests.aio.shelf import OWNER, TREE, Shelf, Start, misbehave, noise
from tests.aio.waiting import until

CHUNK = CHUNK_BYTES_MIN
SMALL, LARGE = 20 * CHUNK, 2 * PARALLEL_BYTES_MIN
HASTY = OverlayParameters(delay_max_s=0.05)


@pytest.fixture
async def star(start: Start) -> Callable[..., Awaitable[tuple[Any, list[Any]]]]:
    """star(count, record): who fetches, and processes that hold the record."""

    async def star(count: int, record: Any, parameters: OverlayParameters = HASTY) -> tuple[Any, list[Any]]:
        centre, rays = await start("centre", parameters=parameters), [await start(f"ray-{index}") for index in range(count)]
        for ray in rays:
            ray.connections.bulk.serve(ray.peer.id, Shelf(offers={(OWNER, TREE): record}))
        return centre, rays

    return star


async def fetched(centre: Any, holders: list[Peer], version: int = 1) -> bytes:
    return bytes((await centre.connections.bulk.fetch(centre.peer, holders, OWNER, TREE, version))[1])


def sent(process: Any) -> int:
    return int(process.connections.bulk.moved.sent_bytes)


async def test_each_of_several_brings_a_part_of_a_large_record(star: Any) -> None:
    record = noise(LARGE)
    centre, rays = await star(4, record)
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert all(sent(ray) > 0 for ray in rays[:3])
    assert sent(rays[3]) == 0, "no more at once than HOLDERS_AT_ONCE"
    assert centre.connections.bulk.moved.received_bytes == LARGE, "no chunk comes twice"


async def test_a_small_record_comes_from_one(star: Any) -> None:
    record = noise(SMALL)
    centre, rays = await star(3, record)
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert [sent(ray) for ray in rays] == [SMALL, 0, 0]


async def dies(link: Link, wanted: memoryview, wish: BulkWant) -> None:
    await link.send_raw(wanted[: 5 * CHUNK], 1.0)
    link.close("kill -15")


async def stalls(link: Link, wanted: memoryview, wish: BulkWant) -> None:
    await link.send_raw(wanted[: 5 * CHUNK], 1.0)


async def lies(link: Link, wanted: memoryview, wish: BulkWant) -> None:
    bad = bytearray(wanted)
    bad[5 * CHUNK] ^= 1
    await link.send_raw(memoryview(bad), 1.0)


async def says_nothing(link: Link, wanted: memoryview, wish: BulkWant) -> None:
    pass


@pytest.mark.parametrize(("how", "brings"), [(dies, 5 * CHUNK), (stalls, 5 * CHUNK), (lies, SMALL - CHUNK)])
async def test_another_goes_on_where_one_fails(star: Any, how: Any, brings: int) -> None:
    """A small record: one after the other. What the first brought is not brought again."""
    record = noise(SMALL)
    centre, rays = await star(2, record)
    misbehave(rays[0], record, how)
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert SMALL - brings <= sent(rays[1]) <= SMALL - 5 * CHUNK
    assert sent(rays[1]) <= centre.connections.bulk.moved.received_bytes - 5 * CHUNK


@pytest.mark.parametrize("how", [dies, stalls, lies, says_nothing])
async def test_others_take_over_the_range_of_one_that_fails(star: Any, how: Any) -> None:
    record = noise(LARGE)
    centre, rays = await star(3, record)
    misbehave(rays[0], record, how)
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert all(sent(ray) > 0 for ray in rays[1:])


async def test_a_slow_holder_is_let_go_when_another_has_nothing_to_do(star: Any) -> None:
    """It never stalls: a few bytes come again and again, and alone it would take minutes."""
    record = noise(LARGE)
    centre, rays = await star(2, record, OverlayParameters())
    let_go = asyncio.Event()

    async def trickles(link: Link, wanted: memoryview, wish: BulkWant) -> None:
        try:
            for start in range(0, len(wanted), 100):
                await link.send_raw(wanted[start : start + 100], 1.0)
                await asyncio.sleep(0.01)
        finally:
            let_go.set()

    misbehave(rays[0], record, trickles)
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert sent(rays[1]) >= LARGE - CHUNK
    async with asyncio.timeout(5):
        await let_go.wait()


async def test_a_holder_with_another_record_takes_no_part(star: Any) -> None:
    record = noise(LARGE, 1)
    centre, rays = await star(3, record)
    rays[1].connections.bulk.serve(rays[1].peer.id, Shelf(offers={(OWNER, TREE): noise(LARGE, 2, changed=LARGE)}))
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert sent(rays[1]) == 0


async def test_when_all_fail_every_reason_is_said(star: Any, free_port: Callable[[], int]) -> None:
    record = noise(SMALL)
    centre, rays = await star(2, record)
    misbehave(rays[0], record, lies)
    rays[1].connections.bulk.serve(rays[1].peer.id, Shelf())
    dead = Peer(agent_id("c", "dead"), "127.0.0.1", free_port(), 1)
    with pytest.raises(BulkError) as caught:
        await fetched(centre, [ray.peer for ray in rays] + [dead])
    for why in ("chunk 5 from", "no record of", "nobody listens there"):
        assert why in str(caught.value)


async def test_a_fetch_that_is_cancelled_leaves_nothing_running(star: Any) -> None:
    record = noise(LARGE)
    centre, rays = await star(3, record)
    for ray in rays:
        misbehave(ray, record, says_nothing)
    fetching = asyncio.create_task(fetched(centre, [ray.peer for ray in rays]))
    await until(lambda: len(centre.connections._links) == 3)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    await until(lambda: not centre.connections._links)


async def test_a_receiver_that_stalls_is_given_up(star: Any) -> None:
    """The other side of a push reads nothing more: the owner finds another holder at once, not after the whole deadline."""
    record = noise(LARGE)
    centre, rays = await star(1, record)
    given_up = asyncio.Event()

    async def serve(link: Link) -> None:
        await link.receive()
        link.send(BulkWant(((0, len(front_of(*record).digests)),)))
        link.transport.pause_reading()  # type: ignore[union-attr]
        await given_up.wait()

    rays[0].connections.bulk.serve_link = serve
    outcome = await centre.connections.bulk.push(centre.peer, rays[0].peer, *record, "replica")
    given_up.set()
    assert outcome.outcome == "failed"
    assert "no byte has moved for 0.1 s" in outcome.reason


async def test_a_holder_that_hangs_before_it_answers_gets_company(star: Any) -> None:
    """Its kernel accepts the connection, and nobody answers: the next is asked before the dial's deadline, and the first when it wakes
    is of no use any more."""
    record = noise(SMALL)
    centre, rays = await star(2, record, OverlayParameters(delay_max_s=0.2))
    awake = asyncio.Event()

    async def sleeps(link: Link) -> None:
        await awake.wait()

    rays[0].connections.bulk.serve_link = sleeps
    assert await fetched(centre, [ray.peer for ray in rays]) == record[1]
    assert sent(rays[1]) == SMALL
    awake.set()
