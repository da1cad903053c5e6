"""Opening records that a transfer or a store has checked: each chunk's digest was right when it came, and nobody writes to it since.

What remains is to copy. Where that is much it is done beside the loop: 100 MB take 30 ms, in which no heartbeat would be answered. Where
no tensors are wanted there is seldom anything to wait for a thread for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial

from protocol.knowledge import Data, Knowledge, open_record, opening_bytes
from protocol.wire.values import RecordSummary

OPENED_IN_PLACE_BYTES_MAX = 1 << 20
"""This takes half a millisecond, no more than waiting for a thread may."""


async def opened(summary: RecordSummary, data: Data, groups: Collection[str] | None = None) -> Knowledge:
    """open_record() of checked bytes, in a thread where it takes long. groups: as there; no tensors where it is empty."""
    work = partial(open_record, summary, data, groups, checked=True)
    if opening_bytes(summary, data, groups) <= OPENED_IN_PLACE_BYTES_MAX:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)
