"""A record on its way here: the buffer that it is received into, and which of its chunks are there and right.

A chunk counts when its digest has been checked, or when it was copied from a record whose chunks have been. So what is complete is
verified, whoever gave which part, and what broke off is worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from protocol.buffers import buffer_of
from protocol.chunks import Data, Front, read_front
from protocol.wire.values import RecordSummary

Run = tuple[int, int]
"""Chunks in a row: the first, and how many."""


class Assembly:
    """Made from a record's summary and front: RecordInvalid where they don't fit. The caller has judged the record's size.

    data: the whole record, once `complete`. It costs memory only as it is filled: who announces a gigabyte and sends nothing takes none.
    """

    def __init__(self, summary: RecordSummary, front: Data) -> None:
        self.summary = summary
        self.front: Front = read_front(summary, front)
        self.data: memoryview = buffer_of(summary.record_bytes)
        self.data[: len(front)] = front
        self._here = bytearray(len(self.front.digests))
        self._lengths = [end - start for start, end in pairwise(self.front.bounds)]
        self._left = len(self._here)

    @property
    def complete(self) -> bool:
        return self._left == 0

    def missing(self) -> list[int]:
        """The chunks that are not here, in order."""
        return [index for index, here in enumerate(self._here) if not here]

    def here(self) -> list[int]:
        """The chunks that are, in order."""
        return [index for index, here in enumerate(self._here) if here]

    def length(self, index: int) -> int:
        """Bytes of one chunk."""
        return self._lengths[index]

    def room(self, run: Run) -> memoryview:
        """Where the bytes of these chunks belong."""
        first, count = run
        return self.data[self.front.bounds[first] : self.front.bounds[first + count]]

    def check(self, index: int) -> bool:
        """The chunk's bytes are said to be in the buffer: whether they are; it is here from then on."""
        if not self._here[index] and self.front.is_right(self.data, index):
            self._here[index] = 1
            self._left -= 1
        return bool(self._here[index])

    def reuse(self, front: Front, data: Data, checked: Iterable[int]) -> int:
        """Copies what is missing from another record, of whose chunks those in `checked` are right. How many bytes that spares."""
        known = {front.digests[index]: index for index in checked}
        spared = 0
        for index in self.missing():
            found = known.get(self.front.digests[index])
            if found is None or front.bounds[found + 1] - front.bounds[found] != self.length(index):
                continue
            self.room((index, 1))[:] = front.chunk(data, found)
            self._here[index] = 1
            self._left -= 1
            spared += self.length(index)
        return spared


def runs_of(indices: Iterable[int]) -> tuple[Run, ...]:
    """Chunks in order, as runs."""
    runs: list[Run] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((index, 1))
    return tuple(runs)
