"""Of two processes of one machine, the receiver of a record reads it from the sender's memory; where it can't, nothing is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocol.aio import cross_memory
from protocol.aio.bulk import BulkError, PushOutcome
from protocol.aio.cross_memory import place_of, remote_record
from protocol.aio.fetching import PARALLEL_BYTES_MIN
from protocol.aio.inflow import PIECE_BYTES
from protocol.chunks import CHUNK_BYTES_MIN, front_bytes, front_of
from protocol.identifiers import Peer
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Ping
from protocol.wire.moving import BulkAccept, BulkFetch, BulkPush, BulkStored, BulkWant
from protocol.wire.values import MemoryPlace
from tests.aio.holding_process import HOLDER
from tests.aio.shelf import OWNER, TREE, Shelf, Start, fetch, noise, push
from tests.aio.waiting import until

pytestmark = pytest.mark.skipif(cross_memory._readv is None, reason="only Linux reads another process's memory")

OURS = OverlayParameters()
LARGE = 2 * PARALLEL_BYTES_MIN


@pytest.fixture
async def pair(start: Start) -> tuple[Any, Any, Shelf]:
    """In one process, which may read its own memory, too."""
    a, b, shelf = await start("a", cross_memory=True), await start("b", cross_memory=True), Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    return a, b, shelf


@pytest.fixture
async def holder(free_port: Callable[[], int]) -> AsyncIterator[Callable[..., Any]]:
    """holder(host, size): another process that holds noise(size), as (its peer, the process)."""
    processes: list[asyncio.subprocess.Process] = []

    async def holder(host: str = "127.0.0.1", size: int = LARGE) -> tuple[Peer, asyncio.subprocess.Process]:
        port = free_port()
        arguments = (sys.executable, "-m", "tests.aio.holding_process", host, str(port), str(size))
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        return Peer(HOLDER, host, port, 1), process

    yield holder
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def fetched(process: Any, holders: list[Peer]) -> bytes:
    return bytes((await process.connections.bulk.fetch(process.peer, holders, OWNER, TREE, 1))[1])


def sent(process: Any) -> int:
    return int(process.connections.bulk.moved.sent_bytes)


def received(process: Any) -> int:
    return int(process.connections.bulk.moved.received_bytes)


# --- bytes that are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES_MIN + 1, LARGE])
async def test_a_record_is_read_and_nothing_is_sent(pair: tuple[Any, Any, Shelf], size: int) -> None:
    a, b, shelf = pair
    summary, data = noise(size)
    assert await push(a, b, summary, data, "upload") == PushOutcome("stored")
    assert shelf.taken == [(summary, data, "upload", a.peer)]
    shelf.offers[OWNER, TREE] = summary, data
    assert bytes((await fetch(a, b))[1]) == data
    assert (received(a), received(b), sent(a), sent(b)) == (size, size, 0, 0)


async def test_of_a_newer_version_only_what_changed_is_read(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    shelf.has = noise(20 * CHUNK_BYTES_MIN, 1, changed=2 * CHUNK_BYTES_MIN)
    summary, data = noise(20 * CHUNK_BYTES_MIN, 2, changed=2 * CHUNK_BYTES_MIN)
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert shelf.taken[0][1] == data
    assert received(b) == 2 * CHUNK_BYTES_MIN


async def test_heartbeats_go_on_while_a_record_is_read(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, _ = pair
    moving = asyncio.create_task(push(a, b, *noise(64 * PIECE_BYTES)))
    answered = 0
    while not moving.done():
        before = len(b.node.messages)
        a.connections.send(a.peer, b.peer, Ping())
        await b.node.until(lambda before=before: len(b.node.messages) > before, timeout_s=1)  # type: ignore[misc]
        answered += not moving.done()
    assert (await moving).outcome == "stored"
    assert answered > 8, "it was read without a pause"


# --- from another process ---------------------------------------------------------------------------------------------


async def test_another_process_is_read(start: Start, holder: Any) -> None:
    a = await start("a", cross_memory=True)
    peer, process = await holder()
    assert await fetched(a, [peer]) == noise(LARGE)[1]
    assert received(a) == LARGE
    assert _bytes_sent(process.pid) < LARGE / 100, "it sent the record"


async def test_a_process_that_hangs_can_be_read(start: Start, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has said where the record is, and need do nothing more."""
    a = await start("a", cross_memory=True)
    peer, process = await holder()
    real = cross_memory.remote_record

    def hang(place: MemoryPlace | None, parameters: OverlayParameters) -> Any:
        process.send_signal(signal.SIGSTOP)
        return real(place, parameters)

    monkeypatch.setattr("protocol.aio.fetching.remote_record", hang)
    assert await fetched(a, [peer]) == noise(LARGE)[1]


async def test_the_next_holder_goes_on_where_a_read_one_dies(
    start: Start, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start("a", cross_memory=True), await start("b", cross_memory=True)
    b.connections.bulk.serve(b.peer.id, Shelf(offers={(OWNER, TREE): noise(LARGE)}))
    peer, process = await holder()
    real, reads = cross_memory._read, 0

    def dies(pid: int, address: int, into: memoryview) -> None:
        nonlocal reads
        if pid == process.pid and (reads := reads + 1) == 4:  # the token, and two pieces
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        real(pid, address, into)

    monkeypatch.setattr(cross_memory, "_read", dies)
    assert await fetched(a, [peer, b.peer]) == noise(LARGE)[1]
    assert reads >= 4
    assert received(a) == LARGE, "what was read is not read again"


async def test_of_all_readers_of_a_loop_one_has_its_turn(start: Start, holder: Any) -> None:
    a = await start("a", cross_memory=True)
    peer, _ = await holder()
    assert await asyncio.gather(*(fetched(a, [peer]) for _ in range(4))) == [noise(LARGE)[1]] * 4


# --- over the link after all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["who sends", "who receives"])
async def test_it_can_be_switched_off_on_either_side(start: Start, who: str) -> None:
    a, b = await start("a", cross_memory=who != "who sends"), await start("b", cross_memory=who != "who receives")
    shelf = Shelf()
    b.connections.bulk.serve(b.peer.id, shelf)
    summary, data = noise(LARGE)
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert shelf.taken[0][1] == data
    assert sent(a) == LARGE


async def test_who_has_another_address_is_told_nothing(start: Start, holder: Any) -> None:
    """Said to be on another machine; the record comes over the link."""
    a = await start("a", cross_memory=True)
    peer, _ = await holder("127.0.0.2")
    link = await a.connections._dial_bulk(a.peer, peer)
    link.send(BulkFetch(OWNER, TREE, 1))
    answer = await link.receive()
    assert isinstance(answer, BulkAccept)
    assert (answer.memory, link.from_here) == (None, False)
    link.abort("seen")
    assert await fetched(a, [peer]) == noise(LARGE)[1]


def lies() -> dict[str, Callable[[MemoryPlace], MemoryPlace]]:
    return {
        "another process": lambda place: replace(place, pid=os.getppid()),
        "no process": lambda place: replace(place, pid=2**31 - 1),
        "another token": lambda place: replace(place, token=bytes(16)),
        "no memory": lambda place: replace(place, token_address=8),
    }


@pytest.mark.parametrize("lie", lies())
async def test_a_place_that_is_not_what_it_says_is_not_read(
    pair: tuple[Any, Any, Shelf], monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """As in a container, where a number is that of another process."""
    a, b, shelf = pair

    def told(*given: Any) -> MemoryPlace:
        place = place_of(*given)
        assert place is not None
        assert remote_record(lies()[lie](place), OURS) is None
        return lies()[lie](place)

    monkeypatch.setattr("protocol.aio.bulk.place_of", told)
    summary, data = noise(LARGE)
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert shelf.taken[0][1] == data
    assert sent(a) == LARGE


@pytest.mark.parametrize("denied", ["no permission", "no such call"])
async def test_where_the_system_does_not_allow_it(
    pair: tuple[Any, Any, Shelf], monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    a, b, shelf = pair

    def refused(*_: Any) -> int:
        cross_memory.ctypes.set_errno(1)
        return -1

    monkeypatch.setattr(cross_memory, "_readv", refused if denied == "no permission" else None)
    summary, data = noise(LARGE)
    assert await push(a, b, summary, data) == PushOutcome("stored")
    assert shelf.taken[0][1] == data
    assert sent(a) == LARGE


# --- bytes that are wrong ---------------------------------------------------------------------------------------------


async def test_memory_that_was_used_for_something_else_is_not_believed(start: Start) -> None:
    """The first holder's bytes change while they are read; the next one's don't."""
    a, b, c = [await start(name, cross_memory=True) for name in "abc"]
    summary, data = noise(LARGE)
    spoilt = np.frombuffer(data, np.uint8).copy()
    spoilt[-1] ^= 1
    b.connections.bulk.serve(b.peer.id, Shelf(offers={(OWNER, TREE): (summary, spoilt.data)}))  # type: ignore[dict-item]
    c.connections.bulk.serve(c.peer.id, Shelf(offers={(OWNER, TREE): (summary, data)}))
    with pytest.raises(BulkError, match="does not have its digest"):
        await fetched(a, [b.peer])
    before = received(a)
    assert await fetched(a, [b.peer, c.peer]) == data
    length = front_of(summary, data).bounds[-1] - front_of(summary, data).bounds[-2]
    assert received(a) - before == 2 * length, "more than the wrong chunk was read again"


async def test_a_pushed_record_that_is_wrong_is_refused(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    summary, data = noise(LARGE)
    outcome = await push(a, b, summary, data[:-1] + bytes([data[-1] ^ 1]))
    assert outcome.outcome == "refused"
    assert "does not have its digest" in outcome.reason
    assert not shelf.taken


async def test_memory_that_is_gone_ends_the_transfer(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    summary, data = noise(LARGE)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    place = place_of(data, link, OURS)
    assert place is not None
    link.send(BulkPush(summary, "replica", front_bytes(data), replace(place, address=8)), data[: front_bytes(data)])
    await link.closed()
    assert not shelf.taken
    await until(lambda: b.connections.bulk._receiving_bytes == 0)
    assert await push(a, b, summary, data) == PushOutcome("stored"), "the next one is not in its way"


async def test_a_sender_that_gives_up_is_not_read_on(pair: tuple[Any, Any, Shelf]) -> None:
    a, b, shelf = pair
    summary, data = noise(64 * PIECE_BYTES)
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkPush(summary, "replica", front_bytes(data), place_of(data, link, OURS)), data[: front_bytes(data)])
    await until(lambda: received(b) > 0)
    link.abort("superseded")
    await until(lambda: b.connections.bulk._receiving_bytes == 0)
    assert not shelf.taken
    assert received(b) < 64 * PIECE_BYTES


async def test_who_does_not_know_of_it_asks_over_the_link(pair: tuple[Any, Any, Shelf]) -> None:
    """A peer of the version before ignores the place."""
    a, b, shelf = pair
    summary, data = noise(3 * CHUNK_BYTES_MIN)
    shelf.offers[OWNER, TREE] = summary, data
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkFetch(OWNER, TREE, 1))
    answer = await link.receive()
    assert isinstance(answer, BulkAccept)
    assert answer.memory is not None
    link.send(BulkWant(((0, 3),)))
    await until(lambda: sent(b) == 3 * CHUNK_BYTES_MIN)
    link.abort("enough")
    link = await a.connections._dial_bulk(a.peer, b.peer)
    link.send(BulkPush(summary, "replica", front_bytes(data)), data[: front_bytes(data)])
    assert await link.receive() == BulkWant(((0, 3),))
    await link.send_raw(memoryview(data)[front_bytes(data) :], 1.0)
    assert await link.receive() == BulkStored()
    link.abort("enough")


def _bytes_sent(pid: int) -> int:
    """What the process has written to files and sockets; uvloop writes to a socket as to a file."""
    with open(f"/proc/{pid}/io") as told:
        return next(int(line.split()[1]) for line in told if line.startswith("wchar"))
