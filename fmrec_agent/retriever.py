"""The retriever (FMRec, section III-A): brings records back. After a restart it finds the agent's own newest one.

Look-ups by others, and by the manager, are answered by the overlay itself (protocol/overlay/replication.py); the bytes come from the store.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count

from protocol.aio.driver import Driver
from protocol.aio.opening import opened
from protocol.aio.store import RecordStore
from protocol.errors import RecordInvalid
from protocol.identifiers import NodeId, TreeId
from protocol.knowledge import Knowledge
from protocol.overlay.effects import RetrievalEnded
from protocol.overlay.events import Retrieve
from protocol.wire.values import RecordSummary

log = logging.getLogger("fmrec.retriever")

ASKS_MAX = 5


class Retriever:
    """Asks the ring for records."""

    def __init__(self, driver: Driver, store: RecordStore) -> None:
        self._driver = driver
        self._store = store
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[RetrievalEnded]] = {}

    def on_ended(self, effect: RetrievalEnded) -> None:
        """The overlay has ended a retrieval."""
        waiting = self._waiting.pop(effect.request, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def newest(self, owner: NodeId, tree: TreeId) -> tuple[RecordSummary, Knowledge] | None:
        """The newest record of (owner, tree) that any live neighbour holds, verified and opened; None where there is none.

        While somebody who may hold one has not answered, or could not deliver, it asks again, ASKS_MAX times in all; the overlay
        bounds each.
        """
        for _ in range(ASKS_MAX):
            ended = await self._ask(owner, tree)
            if ended.record is not None or (ended.complete and not ended.holdings):
                break
            log.warning("the record of %s is not found yet: %s", owner.short, ended.reason)
        held = self._store.get(owner, tree) if ended.record is not None else None
        if held is None:
            return None
        try:
            return held[0], await opened(*held)
        except RecordInvalid as error:
            log.error("the record of %s cannot be opened: %s", owner.short, error)
            return None

    async def _ask(self, owner: NodeId, tree: TreeId) -> RetrievalEnded:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[number]
        self._driver.dispatch(Retrieve(number, owner, tree))
        return await waiting
