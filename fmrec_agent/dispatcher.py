"""The dispatcher (FMRec, section III-A): seals what the agent has learnt into records and keeps k replicas of the newest.

A snapshot is a copy that the trainer takes between two iterations; training goes on while it is sealed here and moved by the
overlay. A newer snapshot supersedes one still under way. `durable` tells when the write quorum holds a version.

Training may be faster than sealing. So one snapshot is sealed at a time, and of those that come meanwhile only the newest is kept; the last
record of a job waits for none, and then nobody needs those that do.

Records may be compressed, and what is kept of them as replicas may be rounded to bfloat16 (protocol/knowledge.py). What is brought to
the manager is never rounded, unless it is a replica itself: that of an agent that died, or the last one of a life before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from functools import partial

from fmrec_agent.high_water import HighWater
from protocol.aio.driver import Driver
from protocol.aio.store import RecordStore
from protocol.identifiers import TreeId
from protocol.knowledge import Data, Knowledge, seal
from protocol.overlay.effects import Durable
from protocol.overlay.events import Replicate
from protocol.wire.values import RecordSummary

log = logging.getLogger("fmrec.dispatcher")

TAKEN_MAX = 16
"""Snapshots under way that are timed; more are a writer that is faster than its neighbours."""


class Dispatcher:
    """Keeps the replicas of one agent's record in one tree. compress, rounded: as in seal(). high_water: of earlier lives."""

    def __init__(
        self,
        driver: Driver,
        store: RecordStore,
        tree: TreeId,
        *,
        compress: bool = False,
        rounded: bool = False,
        high_water: HighWater | None = None,
    ) -> None:
        self._driver = driver
        self._store = store
        self._tree = tree
        self._compress = compress
        self.rounded = rounded
        self._high_water = high_water if high_water is not None else HighWater()
        self.version = 0
        """The newest that was made here, or restored from a replica. Not each is sealed."""
        self.restored_from: RecordSummary | None = None
        """The newest record that was."""
        self._closed = False
        self._replicated = 0
        """The newest version that was given to the overlay, to bring to neighbours."""
        self.incarnation = driver.node.self_peer.incarnation
        """That records are sealed with: of this life, or of the one before, where the clock was set back between them."""
        self.durable_version = 0
        self.durable_s = 0.0
        """How long that took, from the snapshot handed over here to the word of the quorum, sealing included."""
        self._taken: deque[tuple[int, float]] = deque(maxlen=TAKEN_MAX)
        """The last versions that are to be replicated, and when their snapshots came."""
        self._next: tuple[Knowledge, float] | None = None
        """The newest snapshot that waits to be sealed, and when it came."""
        self._sealing: asyncio.Task[None] | None = None
        self._gave_up = False
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def restored(self, record: RecordSummary) -> None:
        """Go on counting after this version, which its caller replicates: what is sealed next is newer."""
        self.restored_from = record
        self._replicated = max(self._replicated, record.version)
        self.version = max(self.version, record.version)
        self.incarnation = max(self.incarnation, record.incarnation)

    @property
    def missing(self) -> int:
        """The version that an earlier life called durable, where that is newer than what was restored here; else 0."""
        return self._high_water.durable if self._high_water.durable > max(self.found_version, self.durable_version) else 0

    @property
    def found_version(self) -> int:
        """Of the record that was restored here, 0 for none."""
        return self.restored_from.version if self.restored_from is not None else 0

    def give_up_missing(self) -> None:
        """It is lost: later lives are not to look for it."""
        self._high_water.durable = self.found_version

    def close(self) -> None:
        """The tree is done, and its records go: no more are kept by anybody, and later lives have none to look for."""
        self._closed = True
        self._high_water.durable = 0

    def open(self) -> None:
        """The tree goes on."""
        self._closed = False

    async def checkpoint(self, knowledge: Knowledge, *, replicate: bool = True) -> tuple[RecordSummary, Data]:
        """Seal `knowledge` as the next version, hold it here and bring it to k neighbours in the background; the record, unrounded
        where the job is finished.

        `knowledge`'s owner, tree, version and incarnation are filled in here. replicate False (mode drop), or the tree done: sealed alone.
        """
        knowledge = self._numbered(knowledge)
        if knowledge.complete:
            self._next = None
        if not replicate:
            return await self._sealed(knowledge, rounded=False)
        self._taken.append((knowledge.version, asyncio.get_running_loop().time()))
        record, data = await self._sealed(knowledge, rounded=self.rounded)
        self.replicate(record, data)
        return await self._sealed(knowledge, rounded=False) if self.rounded and knowledge.complete else (record, data)

    def snapshot(self, knowledge: Knowledge) -> None:
        """In the middle of a job: as checkpoint(), in the background, where no newer one comes before its turn. What cannot be sealed is
        said; what comes after give_up_snapshots() is let go."""
        if self._gave_up:
            return
        loop = asyncio.get_running_loop()
        self._next = self._numbered(knowledge), loop.time()
        if self._sealing is None:
            self._sealing = loop.create_task(self._seal_snapshots())

    async def _seal_snapshots(self) -> None:
        try:
            while self._next is not None:
                (knowledge, came), self._next = self._next, None
                self._taken.append((knowledge.version, came))
                try:
                    self.replicate(*await self._sealed(knowledge, rounded=self.rounded))
                except Exception as error:  # what a learner calls its state may be anything
                    log.error("a snapshot cannot be kept: %s", error)
        finally:
            self._sealing = None

    def give_up_snapshots(self) -> None:
        """Those that are not sealed yet, and the one that the training thread may still be taking: it ends with its iteration."""
        self._next, self._gave_up = None, True
        if self._sealing is not None:
            self._sealing.cancel()

    def _numbered(self, knowledge: Knowledge) -> Knowledge:
        """As the next version of ours."""
        self.version = self._high_water.sealed = max(self.version, self._high_water.sealed) + 1
        me = self._driver.node.self_peer
        return replace(knowledge, owner=me.id, tree=self._tree, version=self.version, incarnation=self.incarnation)

    def replicate(self, record: RecordSummary, data: Data) -> None:
        """Hold this record of ours here and bring it to k neighbours; not where that, or a newer one, was begun already, or the tree is
        done."""
        if not self._closed and record.version > self._replicated:
            self._replicated = record.version
            self._store.put(record, data)
            self._driver.dispatch(Replicate(record))

    async def _sealed(self, knowledge: Knowledge, *, rounded: bool) -> tuple[RecordSummary, Data]:
        sealing = partial(seal, knowledge, compress=self._compress, rounded=rounded)
        return await asyncio.get_running_loop().run_in_executor(None, sealing)

    def on_durable(self, effect: Durable) -> None:
        """The overlay has told that a record is held by its quorum."""
        for version, taken in self._taken:
            if version == effect.record.version:
                self.durable_s = asyncio.get_running_loop().time() - taken
        self.durable_version = max(self.durable_version, effect.record.version)
        if not self._closed:
            self._high_water.durable = max(self._high_water.durable, self.durable_version)
        for version in [version for version in self._waiting if version <= self.durable_version]:
            waiting = self._waiting.pop(version)
            if not waiting.done():
                waiting.set_result(None)

    async def durable(self, version: int, timeout_s: float) -> bool:
        """Wait until `version`, or a later one, is durable; False where it is not in time."""
        if version <= self.durable_version:
            return True
        waiting = self._waiting.setdefault(version, asyncio.get_running_loop().create_future())
        try:
            await asyncio.wait_for(asyncio.shield(waiting), timeout_s)
        except TimeoutError:
            log.warning("version %d is not durable after %.1f s: too few neighbours hold it", version, timeout_s)
            return False
        return True
