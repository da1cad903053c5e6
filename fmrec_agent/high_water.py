"""High-water marks: what a killed agent's next life knows of the last one, before it has asked anybody.

An agent without a disk that is killed while its host is cut off finds what the neighbours beside it hold, and nobody there can know of a
version that became durable beyond the cut. Its launcher outlives it, and with it this memory, which the forks of one launcher share: each
agent writes there which version its write quorum holds, before it tells anybody. So the next life knows what it must find (rule 7 of
worker.py).

One aligned word each, written by one process at a time: whoever is killed has written all of it, or nothing.
"""

from __future__ import annotations

import ctypes
import mmap

HighWaterMark = ctypes.c_uint64
"""`value`: the newest version that some life of this agent called durable and that is not given up, 0 where there is none."""


def high_water_marks(agents: int) -> list[HighWaterMark]:
    """One for each, in memory that forks share."""
    memory = mmap.mmap(-1, agents * ctypes.sizeof(HighWaterMark))
    return [HighWaterMark.from_buffer(memory, index * ctypes.sizeof(HighWaterMark)) for index in range(agents)]
