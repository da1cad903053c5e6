"""One fetch: a record from its holders, from several at once where it is large, and from the next where one does not deliver.

    BulkFetch ->   <- BulkAccept(record), front   BulkWant ->  <- bytes   BulkWant ->  <- bytes ...    or <- BulkRefuse

1. The holders are tried in the order given; one that has not answered within delay_max_s, and the patience that it was given, gets
   company by the next. The first that accepts decides which record it is; one that offers another is let go.
2. A record of PARALLEL_BYTES_MIN or more is fetched from HOLDERS_AT_ONCE at a time; which chunks from which, and who is let go for
   being slow, is striping.py's.
3. Who fails, stalls, is let go, or gives one wrong chunk is not asked again; the next holder takes its place, and goes on with what is
   missing. What is here when all have failed is kept for the next fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from protocol.aio.dialling import DialFailed
from protocol.aio.inflow import Inflow
from protocol.aio.link import Link, LinkClosed
from protocol.assembly import Assembly
from protocol.chunks import FRONT_BYTES_MAX, HEAD_BYTES
from protocol.errors import RecordInvalid, RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.parameters import OverlayParameters
from protocol.striping import Striping
from protocol.wire.moving import BulkAccept, BulkFetch, BulkRefuse
from protocol.wire.values import RecordSummary

logger = logging.getLogger(__name__)

PARALLEL_BYTES_MIN = 8 << 20
"""A smaller record is here before a second holder has said hello."""
HOLDERS_AT_ONCE = 3

OpenLink = Callable[[Peer, Peer], Awaitable[Link]]
Assemble = Callable[[RecordSummary, bytearray], Awaitable[Assembly]]


class BulkError(Exception):
    """The record did not come; the message says why. Nothing was stored."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The newest record of (owner, tree), of at least `version`. patience_s: how long a holder may wait for it before its answer."""

    owner: NodeId
    tree: TreeId
    version: int
    patience_s: float = 0.0


class Fetching:
    """Used once. `assemble` makes the assembly of a record that was offered, with all that is here of it already."""

    def __init__(
        self,
        open_link: OpenLink,
        assemble: Assemble,
        local: Peer,
        holders: Sequence[Peer],
        wanted: Wanted,
        parameters: OverlayParameters,
    ) -> None:
        self.assembly: Assembly | None = None
        self.received_bytes = 0
        self._open_link = open_link
        self._assemble = assemble
        self._local = local
        self._untried = list(dict.fromkeys(holders))
        self._wanted = wanted
        self._parameters = parameters
        self._loop = asyncio.get_running_loop()
        self._striping: Striping | None = None
        self._asking: dict[Peer, asyncio.Task[None]] = {}
        self._news = asyncio.Event()  # a holder has ended, or the first has said which record it is
        self._idle: set[asyncio.Future[None]] = set()
        self._began = self._loop.time()
        self._answer_max_s = parameters.delay_max_s + wanted.patience_s
        self._offers = asyncio.Lock()  # one after the other: the first that fits makes the assembly
        self._deadline = math.inf  # known when the record's size is
        self._reasons: list[str] = []

    async def run(self) -> Assembly:
        """The complete assembly. BulkError where no holder could deliver."""
        try:
            while self._ask_more():
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._striping.next_look_s() if self._striping is not None else self._answer_max_s):
                        await self._news.wait()
                if self.assembly is not None and self.assembly.complete:
                    return self.assembly
                await self._sort_out()
            raise BulkError("; ".join(self._reasons) or "no holder is known")
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)
            self._asking.clear()  # they know how they ended, and that knows us: the record's memory would not be free

    def _ask_more(self) -> bool:
        """Rule 2. Whether anyone is being asked."""
        waited = self._loop.time() - self._began
        at_once = self._sharing() if self.assembly is not None else 1 + int(waited / self._answer_max_s)
        while self._untried and len(self._asking) < at_once:
            peer = self._untried.pop(0)
            task = self._asking[peer] = self._loop.create_task(self._ask(peer))
            task.add_done_callback(lambda _: self._news.set())
        if not self._untried and len(self._asking) == 1 and self._striping is not None:
            self._striping.alone()
        return bool(self._asking)

    def _sharing(self) -> int:
        """How many take part in this record."""
        large = self.assembly is not None and sum(map(self.assembly.length, self.assembly.missing())) >= PARALLEL_BYTES_MIN
        return min(HOLDERS_AT_ONCE, len(self._asking) + len(self._untried)) if large else 1

    async def _sort_out(self) -> None:
        """Rule 3: who has ended, and who is to be let go."""
        for peer, task in list(self._asking.items()):
            if task.done():
                del self._asking[peer]
                task.result()
        if self._loop.time() > self._deadline:
            raise BulkError("the record did not come in time")
        if self._striping is not None and (found := self._striping.to_let_go(self._loop.time())) is not None:
            peer, why = found
            logger.info("%s is let go: %s", peer, why)
            self._reasons.append(f"{peer} was let go: {why}")
            task = self._asking.pop(peer)
            task.cancel()
            await asyncio.wait({task})

    # --- one holder ---------------------------------------------------------------------------------------------------

    async def _ask(self, peer: Peer) -> None:
        """Its part, until the record is complete or the holder is of no more use. Never raises for what the network or the holder does."""
        link: Link | None = None
        try:
            link = await self._open_link(self._local, peer)
            link.send(BulkFetch(self._wanted.owner, self._wanted.tree, self._wanted.version))
            assembly, striping = await self._offered(link)
            await self._flow(peer, link, assembly, striping)
        except (DialFailed, LinkClosed, RemoteProtocolError, RecordInvalid, BulkError) as error:
            self._reasons.append(str(error))
        finally:
            if link is not None:
                link.abort("the fetch has ended")
            if self._striping is not None:
                self._striping.leave(peer)
            self._wake_idle()

    async def _offered(self, link: Link) -> tuple[Assembly, Striping]:
        timeout_s = self._parameters.transfer_timeout_s(0) + self._wanted.patience_s
        try:
            async with asyncio.timeout(timeout_s):
                answer = await link.receive()
        except TimeoutError as error:
            raise BulkError(f"{link.peer} did not deliver within {timeout_s:.3g} s") from error
        if isinstance(answer, BulkRefuse):
            raise BulkError(answer.reason)
        if not isinstance(answer, BulkAccept):
            raise BulkError(f"{type(answer).__name__} is no answer to a fetch")
        record = self._fitting(answer.record)
        front = await receive_front(link, answer.front_bytes, self._parameters)
        async with self._offers:
            if self.assembly is None:
                await self._begin(record, front)
        assert self.assembly is not None
        assert self._striping is not None
        if record.digest != self.assembly.summary.digest:
            raise BulkError(f"{link.peer} has version {record.version} of {record.owner.short}, another record than the first holder")
        return self.assembly, self._striping

    async def _begin(self, record: RecordSummary, front: bytearray) -> None:
        """This is the record that it will be."""
        assembly = await self._assemble(record, front)
        self.assembly = assembly
        self._deadline = self._loop.time() + self._parameters.transfer_timeout_s(record.record_bytes)
        limits = {"stall_max_s": self._parameters.stall_max_s, "worth_s": self._parameters.ack_timeout_min_s}
        self._striping = Striping(assembly.missing(), assembly.length, self._sharing(), **limits)
        self._news.set()

    def _fitting(self, record: RecordSummary) -> RecordSummary:
        """The record, if it is what was asked for."""
        wanted = self._wanted
        if record.key != (wanted.owner, wanted.tree) or record.version < wanted.version:
            offered = f"{record.version} of {record.owner.short}"
            raise BulkError(f"asked for version {wanted.version} of {wanted.owner.short}, was offered {offered}")
        if reason := self._parameters.too_large(record.record_bytes):
            raise BulkError(reason)
        return record

    async def _flow(self, peer: Peer, link: Link, assembly: Assembly, striping: Striping) -> None:
        share = striping.join(peer, self._loop.time())

        def more(inflow: Inflow) -> None:
            if runs := striping.next_runs(share, self._loop.time()):
                inflow.ask(runs)

        def came(inflow: Inflow, size: int) -> None:
            self.received_bytes += size
            striping.heard(share, size, self._loop.time())
            more(inflow)

        def arrived(index: int) -> None:
            striping.arrived(share, index)

        def wrong(index: int) -> None:
            link.abort(f"chunk {index} from {peer} does not have its digest: bytes were changed or lost")

        inflow = Inflow(link, assembly, arrived, wrong, came)
        while not assembly.complete:
            more(inflow)  # also what another holder has left since: whoever leaves wakes those who are idle, and none who is about to be
            if inflow.awaits:
                await inflow.flow(self._parameters.stall_max_s)
            else:
                await self._something_to_do(link)

    async def _something_to_do(self, link: Link) -> None:
        """Until another holder has gone. LinkClosed where this one goes."""
        waiter = self._loop.create_future()
        closed = asyncio.ensure_future(link.closed())
        self._idle.add(waiter)
        try:
            await asyncio.wait({waiter, closed}, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise LinkClosed(link.reason)
        finally:
            self._idle.discard(waiter)
            closed.cancel()

    def _wake_idle(self) -> None:
        for waiter in self._idle:
            if not waiter.done():
                waiter.set_result(None)


async def receive_front(link: Link, size: int, parameters: OverlayParameters) -> bytearray:
    """The front that a message has announced. RecordInvalid for a length that none has, or where it does not come in time; LinkClosed where
    the other side is gone."""
    if not HEAD_BYTES <= size <= FRONT_BYTES_MAX:
        raise RecordInvalid(f"a record's front has {HEAD_BYTES} to {FRONT_BYTES_MAX} bytes, not {size}")
    front, within_s = bytearray(size), parameters.transfer_timeout_s(size)
    try:
        async with asyncio.timeout(within_s):
            await link.receive_into(deque([memoryview(front)]), lambda count: None, parameters.stall_max_s)
    except TimeoutError as error:
        raise RecordInvalid(f"a record's front of {size} bytes did not come within {within_s:.3g} s") from error
    return front
