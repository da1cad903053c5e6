"""Chunks that come over one link into one assembly, each checked when its last byte is there, while the next are on their way.

Checking a chunk takes a third of the time that receiving it takes, and finds its bytes in the processor's cache still; a thread
would have to fetch them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from protocol.aio.link import Link
from protocol.assembly import Assembly, Run
from protocol.wire.moving import BulkWant


class Inflow:
    """on_right and on_wrong are told of each chunk, on_bytes of progress, after these; all in the transport's own call. None of them
    should know this object: the record's memory would not be free before the garbage collector has found the two.

    What comes after a wrong chunk is received all the same; who does not want it aborts the link.
    """

    def __init__(
        self,
        link: Link,
        assembly: Assembly,
        on_right: Callable[[int], None],
        on_wrong: Callable[[int], None],
        on_bytes: Callable[[Inflow, int], None],
    ) -> None:
        self._link = link
        self._assembly = assembly
        self._on_right = on_right
        self._on_wrong = on_wrong
        self._on_bytes = on_bytes
        self._targets: deque[memoryview] = deque()
        self._chunks: deque[int] = deque()  # asked for and not here, in order
        self._of_chunk = 0  # bytes of the first of them that are here

    def ask(self, runs: tuple[Run, ...]) -> None:
        """Asks for these chunks, after those that were asked for before."""
        for first, count in runs:
            self._targets.append(self._assembly.room((first, count)))
            self._chunks.extend(range(first, first + count))
        self._link.send(BulkWant(runs))

    @property
    def awaits(self) -> bool:
        """Are there bytes that were asked for and have not come?"""
        return bool(self._targets)

    async def flow(self, stall_max_s: float) -> None:
        """Until all that was asked for is here. LinkClosed where it does not come."""
        await self._link.receive_into(self._targets, self._came, stall_max_s)

    def _came(self, size: int) -> None:
        assembly, chunks = self._assembly, self._chunks
        whole = self._of_chunk + size
        while chunks and (length := assembly.length(chunks[0])) <= whole:
            whole -= length
            index = chunks.popleft()
            (self._on_right if assembly.check(index) else self._on_wrong)(index)
        self._of_chunk = whole
        self._on_bytes(self, size)
