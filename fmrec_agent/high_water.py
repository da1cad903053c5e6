"""High-water marks: what a killed agent's next life knows of the last one, before it has asked anybody.

An agent that is killed while its host is cut off finds what the neighbours beside it hold, and nobody there can know of a version that
became durable beyond the cut. Its launcher outlives it, and with it this memory, which the forks of one launcher share. Each agent writes

    durable    which version its write quorum holds, before it tells anybody: so the next life knows what it must find (doubt.py);
    sealed     which version it makes, before it does: so no life gives another record a number that one has already, and of two versions
               the larger is the later, also where a life went on without what was lost.

Aligned words, written by one process at a time: whoever is killed has written all of one, or nothing.
"""

from __future__ import annotations

import ctypes
import mmap


class HighWater(ctypes.Structure):
    """Of one agent. durable: 0 where there is none, or it is not needed any more."""

    durable: int
    sealed: int
    _fields_ = (("durable", ctypes.c_uint64), ("sealed", ctypes.c_uint64))


def high_water_of(agents: int) -> list[HighWater]:
    """One for each, in memory that forks share."""
    size = ctypes.sizeof(HighWater)
    memory = mmap.mmap(-1, agents * size)
    return [HighWater.from_buffer(memory, index * size) for index in range(agents)]
