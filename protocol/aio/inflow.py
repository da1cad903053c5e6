"""Chunks that come into one assembly, each checked when its last byte is there. They come in one of two ways.

1. Over a link: they are asked for, and checked while the next are on their way.
2. From the memory of the process at the other end of the link, where it is on this machine (cross_memory.py): they are read, PIECE_BYTES at
   a time. After each piece everything else on the loop has its turn, and then the next record that is being read.

Checking a chunk takes a third of the time that receiving it takes, and finds its bytes in the processor's cache still; a thread would
have to fetch them again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from protocol.aio.cross_memory import RemoteRecord
from protocol.aio.link import Link, LinkClosed
from protocol.assembly import Assembly, Run
from protocol.wire.moving import BulkWant

PIECE_BYTES = 1 << 20
"""Read and checked in 0.4 ms, or in several where this process touches the memory for the first time."""


class Inflow:
    """on_right and on_wrong are told of each chunk, on_bytes of progress, after these; all in the call that brings the bytes. None of them
    should know this object: the record's memory would not be free before the garbage collector has found the two.

    What comes after a wrong chunk is received all the same; who does not want it aborts the link. `remote`: way 2.
    """

    def __init__(
        self,
        link: Link,
        assembly: Assembly,
        on_right: Callable[[int], None],
        on_wrong: Callable[[int], None],
        on_bytes: Callable[[Inflow, int], None],
        remote: RemoteRecord | None = None,
    ) -> None:
        self._link = link
        self._assembly = assembly
        self._on_right = on_right
        self._on_wrong = on_wrong
        self._on_bytes = on_bytes
        self._remote = remote
        self._targets: deque[memoryview] = deque()
        self._chunks: deque[int] = deque()  # asked for and not here, in order
        self._of_chunk = 0  # bytes of the first of them that are here

    def ask(self, runs: tuple[Run, ...]) -> None:
        """Asks for these chunks, after those that were asked for before."""
        for first, count in runs:
            self._targets.append(self._assembly.room((first, count)))
            self._chunks.extend(range(first, first + count))
        if self._remote is None:
            self._link.send(BulkWant(runs))

    @property
    def awaits(self) -> bool:
        """Are there bytes that were asked for and have not come?"""
        return bool(self._targets)

    async def flow(self, stall_max_s: float) -> None:
        """Until all that was asked for is here. LinkClosed where it does not come."""
        if self._remote is None:
            await self._link.receive_into(self._targets, self._came, stall_max_s)
            return
        while self._targets:
            async with self._remote.turn:
                self._read_piece(self._remote)
                await asyncio.sleep(0)

    def _read_piece(self, remote: RemoteRecord) -> None:
        if self._link.closing:
            raise LinkClosed(self._link.reason)
        room = self._targets.popleft()
        piece, rest = room[:PIECE_BYTES], room[PIECE_BYTES:]
        if rest:
            self._targets.appendleft(rest)
        try:
            remote.read(self._assembly.front.bounds[self._chunks[0]] + self._of_chunk, piece)
        except OSError as error:
            raise LinkClosed(f"the memory of {self._link.peer} can no longer be read: {error.strerror}") from error
        self._came(len(piece))

    def _came(self, size: int) -> None:
        assembly, chunks = self._assembly, self._chunks
        whole = self._of_chunk + size
        while chunks and (length := assembly.length(chunks[0])) <= whole:
            whole -= length
            index = chunks.popleft()
            (self._on_right if assembly.check(index) else self._on_wrong)(index)
        self._of_chunk = whole
        self._on_bytes(self, size)
