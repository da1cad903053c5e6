"""Opening records that a transfer or a store has checked: each chunk's digest was right when it came, and nobody writes to it since.

What remains is to copy tensors. Of a large record this is done beside the loop: for 100 MB it takes 30 ms, in which no heartbeat would be
answered. Where no tensors are wanted there is nothing to wait for a thread for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial

from protocol.chunks import front_of
from protocol.knowledge import Data, Knowledge, open_record
from protocol.wire.values import RecordSummary

OPENED_IN_PLACE_BYTES_MAX = 1 << 20
"""This takes half a millisecond, no more than waiting for a thread may."""


async def opened(summary: RecordSummary, data: Data, groups: Collection[str] | None = None) -> Knowledge:
    """open_record() of checked bytes, in a thread where it takes long. groups: as there; none where it is empty."""
    work = partial(open_record, summary, data, groups, checked=True)
    if summary.record_bytes <= OPENED_IN_PLACE_BYTES_MAX or (groups == () and not front_of(summary, data).compressed):
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)
