"""Opening records beside the loop: checking and copying 100 MB takes 50 ms, in which no heartbeat would be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial

from protocol.knowledge import Data, Knowledge, open_record
from protocol.wire.values import RecordSummary

OPENED_IN_PLACE_BYTES_MAX = 1 << 20
"""This takes half a millisecond, no more than waiting for a thread may."""


async def opened(summary: RecordSummary, data: Data, groups: Collection[str] | None = None) -> Knowledge:
    """open_record(), in a thread where the record is large."""
    if summary.record_bytes <= OPENED_IN_PLACE_BYTES_MAX:
        return open_record(summary, data, groups)
    return await asyncio.get_running_loop().run_in_executor(None, partial(open_record, summary, data, groups))
