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
from protocol.identifiers import NodeId, TreeId
from protocol.knowledge import Knowledge
from protocol.overlay.effects import RetrievalEnded
from protocol.overlay.events import Retrieve
from protocol.overlay.retrieval import ASKS_MAX, asks_on
from protocol.parameters import OverlayParameters
from protocol.wire.values import RecordSummary

log = logging.getLogger("fmrec.retriever")


class Retriever:
    """Asks the ring for records."""

    def __init__(self, driver: Driver, store: RecordStore, parameters: OverlayParameters) -> None:
        self._driver = driver
        self._store = store
        self._parameters = parameters
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[RetrievalEnded]] = {}

    def on_ended(self, effect: RetrievalEnded) -> None:
        """The overlay has ended a retrieval."""
        waiting = self._waiting.pop(effect.request, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def newest(self, owner: NodeId, tree: TreeId) -> tuple[RecordSummary, Knowledge] | None:
        """The newest record of (owner, tree) that any live neighbour holds, verified and opened; None where there is none.

        Asks as long as asks_on() says, with growing waits; the overlay bounds each. RecordInvalid: there is one, whole, that this version
        of FMRec cannot open.
        """
        wait_s, asked = self._parameters.retry_min_s, 0
        while True:
            ended, asked = await self._ask(owner, tree), asked + 1
            if not asks_on(ended, asked):
                if ended.record is None:
                    return None
                if (held := self._store.get(owner, tree)) is not None:
                    return held[0], await opened(*held)
            holders = ", ".join(holding.holder.id.short for holding in ended.missed) or "nobody who has answered"
            say = log.error if ended.missed and asked == ASKS_MAX else log.warning
            why = ended.reason if ended.record is None else f"here is version {ended.record.version}"
            say("the newest record of %s is not here yet: %s has one: %s", owner.short, holders, why)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._parameters.retry_max_s)

    async def _ask(self, owner: NodeId, tree: TreeId) -> RetrievalEnded:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[number]
        self._driver.dispatch(Retrieve(number, owner, tree))
        return await waiting
