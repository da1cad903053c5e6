"""Records, each on a connection of its own, so that none ever delays a heartbeat.

    push    BulkPush, front ->  <- BulkWant   bytes ->  <- BulkStored      or <- BulkStored or BulkRefuse at once
    fetch   fetching.py

1. The receiver of a record says which chunks it lacks (chunks.py): not those of an older version that it holds, nor of a transfer that
   broke off. Who is pushed a record that it holds says BulkStored at once.
2. Bytes are received straight into the buffer that becomes the record, and each chunk is checked before it counts.
3. Limits: BEGUN_MAX transfers that we begin are under way at once, the others wait; SERVED_MAX that others begin, more are refused as
   busy. A fetch of a version that is not here waits for it, provide_max_s at most, and takes nobody's place meanwhile; WAITING_MAX do.
   record_bytes_max bounds each record, compressed or not, and together all that are being pushed here or broke off; broken ones give way
   first. What is brought to be used counts as it will be when it is open.
4. Time: a transfer in which no byte moves for stall_max_s is given up, and one that takes longer than transfer_timeout_s. Who is brought a
   record has as much again for what it does with it, by the length of what is in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from protocol.aio.dialling import DialFailed
from protocol.aio.fetching import BulkError as BulkError
from protocol.aio.fetching import Fetching, OpenLink, Wanted, receive_front
from protocol.aio.inflow import Inflow
from protocol.aio.link import Link, LinkClosed
from protocol.aio.unfinished import Unfinished
from protocol.assembly import Assembly, runs_of
from protocol.chunks import Data, Front, front_of, named, read_front
from protocol.errors import MalformedMessage, RecordInvalid, RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Refusal
from protocol.wire.moving import BulkAccept, BulkFetch, BulkPush, BulkRefuse, BulkStored, BulkWant
from protocol.wire.values import RecordSummary

logger = logging.getLogger(__name__)

SERVED_MAX = 64
"""Transfers that others may have under way here at once; more are refused as busy."""
WAITING_MAX = 64
"""Fetches that may wait at once for versions that are not here; more are refused."""
BEGUN_MAX = 16
"""Transfers that we may have under way at once; more wait. Others' control traffic shares the network with them."""
REUSED_IN_PLACE_BYTES_MAX = 1 << 20
"""Copying this takes 0.2 ms; from larger records it is done in a thread, so that heartbeats go on."""

Purpose = Literal["replica", "upload"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """How a push ended. refused: the holder said no and would say no again; failed: the network or a deadline."""

    outcome: Literal["stored", "refused", "failed"]
    reason: str = ""


@dataclass(slots=True)
class Moved:
    """What transfers have come to, in bytes of chunks. spared: of records that came here, what was here already."""

    sent_bytes: int = 0
    received_bytes: int = 0
    spared_bytes: int = 0


class BulkHandler(Protocol):
    """What a local node does with the records that others push to it and fetch from it."""

    def holds(self, summary: RecordSummary) -> bool:
        """Whether this very record, pushed as a replica, is held already, as safely as accept() would hold it."""

    def held(self, owner: NodeId, tree: TreeId) -> tuple[RecordSummary, Data] | None:
        """The version that is held, whose chunks need not come again. Its bytes never change."""

    def admit(self, summary: RecordSummary, purpose: Purpose) -> str | None:
        """Before any byte: None to go on, else why not."""

    async def accept(self, summary: RecordSummary, data: Data, purpose: Purpose, sender: Peer) -> str | None:
        """A verified record: None when it is held, else why not."""

    async def provide(self, owner: NodeId, tree: TreeId, version: int) -> tuple[RecordSummary, Data] | None:
        """The newest of at least `version`, which is not held yet, when it comes; None where it will not. Cancelled in time."""


class Bulk:
    """Both sides of transfers, for all local nodes. `open_link` dials (local, remote) on the bulk channel, or raises DialFailed."""

    def __init__(self, open_link: OpenLink, parameters: OverlayParameters) -> None:
        self.moved = Moved()
        self._open_link = open_link
        self._parameters = parameters
        self._handlers: dict[NodeId, BulkHandler] = {}
        self._begun = asyncio.Semaphore(BEGUN_MAX)
        self._served = 0  # transfers under way that others began
        self._waiting = 0  # fetches that wait for their version
        self._receiving_bytes = 0  # room made for what others push
        self._unfinished = Unfinished(parameters.unfinished_kept_s)

    def serve(self, local: NodeId, handler: BulkHandler) -> None:
        """Transfers that ask for this node go to the handler."""
        self._handlers[local] = handler

    def withdraw(self, local: NodeId) -> None:
        """Transfers that ask for this node are refused from now on."""
        self._handlers.pop(local, None)

    def close(self) -> None:
        """What broke off is forgotten."""
        self._unfinished.clear()

    # --- what we begin ------------------------------------------------------------------------------------------------

    async def push(self, local: Peer, remote: Peer, summary: RecordSummary, data: Data, purpose: Purpose) -> PushOutcome:
        """Moves the record to `remote`. Never raises for what the network or the other side does."""
        try:
            front = front_of(summary, data)
        except RecordInvalid as error:
            return PushOutcome("failed", str(error))
        # As long as it takes to receive it, and as long again, by what is in it, for what is done with it: rule 4.
        longest_s = self._parameters.transfer_timeout_s
        timeout_s = longest_s(summary.record_bytes) + longest_s(max(summary.record_bytes, front.content_bytes))
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_s), self._begun:
                link = await self._open_link(local, remote)
                return await self._push_on(link, summary, front, data, purpose)
        except TimeoutError:
            return PushOutcome("failed", f"the transfer took longer than {timeout_s:.3g} s")
        except (DialFailed, LinkClosed, RemoteProtocolError) as error:
            return PushOutcome("failed", str(error))
        finally:
            if link is not None:
                link.abort("the push has ended")

    async def _push_on(self, link: Link, summary: RecordSummary, front: Front, data: Data, purpose: Purpose) -> PushOutcome:
        link.send(BulkPush(summary, purpose, front.bounds[0]), bytes(data[: front.bounds[0]]))
        answer = await link.receive()
        if isinstance(answer, BulkWant):
            await self._send_wanted(link, answer, front, data, {*range(len(front.digests))})
            answer = await link.receive()
        match answer:
            case BulkStored():
                return PushOutcome("stored")
            case BulkRefuse(reason):
                return PushOutcome("refused", reason)
            case _:
                return PushOutcome("failed", f"{type(answer).__name__} is no answer to a push")

    async def fetch(
        self, local: Peer, holders: Sequence[Peer], owner: NodeId, tree: TreeId, version: int, patience_s: float = 0.0
    ) -> tuple[RecordSummary, Data]:
        """The newest record of (owner, tree), of at least `version`, verified; see fetching.py. BulkError where it does not come.

        holders: in the order in which they are tried. patience_s: how long each may wait for such a record itself before its answer.
        """

        async def assemble(summary: RecordSummary, front: bytearray) -> Assembly:
            return await self._assembly(local.id, summary, front)

        wanted = Wanted(owner, tree, version, patience_s)
        async with self._begun:
            fetching = Fetching(self._open_link, assemble, local, holders, wanted, self._parameters)
            try:
                done = await fetching.run()
                return done.summary, done.data
            finally:
                self.moved.received_bytes += fetching.received_bytes
                self._keep(fetching.assembly)

    # --- what others begin --------------------------------------------------------------------------------------------

    async def serve_link(self, link: Link) -> None:
        """One transfer that another began. Returns when the link is closing; never raises for what the network does."""
        handler = self._handlers.get(link.local.id)
        if handler is None or self._served >= SERVED_MAX:
            why = "no records are exchanged here" if handler is None else f"{SERVED_MAX} transfers are under way here"
            link.refuse(Refusal("busy", why))
            return
        self._served += 1
        try:
            async with asyncio.timeout(self._parameters.probe_timeout_s):
                request = await link.receive()
            match request:
                case BulkPush():
                    await self._take(link, handler, request)
                case BulkFetch():
                    await self._give(link, handler, request)
                case _:
                    link.refuse(Refusal("malformed", f"{type(request).__name__} begins no transfer"))
        except TimeoutError:
            link.abort("the transfer took too long")
            logger.info("%s: a transfer took too long and was given up", link)
        except (LinkClosed, RemoteProtocolError) as error:
            logger.debug("%s: a transfer ended early: %s", link, error)  # often it was superseded
        except asyncio.CancelledError:
            link.abort("closing")
            raise
        finally:
            self._served -= 1
            # The one who began it closes first, having read the answer; this is for one that does not.
            link.close("the transfer has ended")

    async def _take(self, link: Link, handler: BulkHandler, offer: BulkPush) -> None:
        record, purpose = offer.record, offer.purpose
        if purpose == "replica" and handler.holds(record):
            link.send(BulkStored())
            return
        reason = self._parameters.too_large(record.record_bytes) or handler.admit(record, purpose)
        if reason is not None:
            link.send(BulkRefuse(reason))
            return
        try:
            front = await receive_front(link, offer.front_bytes, self._parameters)
            content_bytes = max(record.record_bytes, self._content_bytes(record, read_front(record, front)))
        except RecordInvalid as error:
            link.send(BulkRefuse(str(error)))
            return
        # Room is made for who has begun to send, not for who has announced it.
        taken = content_bytes if purpose == "upload" else record.record_bytes
        if not self._room_for(taken):
            link.refuse(Refusal("busy", f"{self._receiving_bytes} bytes of other records are being received here"))
            return
        self._receiving_bytes += taken
        assembly: Assembly | None = None
        try:
            async with asyncio.timeout(self._parameters.transfer_timeout_s(record.record_bytes)):
                assembly = await self._assembly(link.local.id, record, front)
                await self._receive(link, assembly)
            async with asyncio.timeout(self._parameters.transfer_timeout_s(content_bytes)):
                reason = await handler.accept(record, assembly.data, purpose, link.peer)
        except RecordInvalid as error:
            reason = str(error)
        finally:
            self._receiving_bytes -= taken
            self._keep(assembly)
        link.send(BulkStored() if reason is None else BulkRefuse(reason))

    def _content_bytes(self, record: RecordSummary, front: Front) -> int:
        """How long this record is when it is open. RecordInvalid where that is more than may be."""
        if front.content_bytes > (most := self._parameters.record_bytes_max):
            raise RecordInvalid(f"{named(record)} has {front.content_bytes} bytes of content where at most {most} may be")
        return front.content_bytes

    def _room_for(self, size: int) -> bool:
        most = self._parameters.record_bytes_max - size
        while self._receiving_bytes + self._unfinished.bytes_kept > most and self._unfinished.give_way():
            pass
        return self._receiving_bytes <= most

    async def _receive(self, link: Link, assembly: Assembly) -> None:
        """Until the assembly is complete. RecordInvalid where a chunk is wrong."""
        wrong: list[int] = []

        def came(inflow: Inflow, size: int) -> None:
            self.moved.received_bytes += size

        if not assembly.complete:
            inflow = Inflow(link, assembly, lambda index: None, wrong.append, came)
            inflow.ask(runs_of(assembly.missing()))
            await inflow.flow(self._parameters.stall_max_s)
        if wrong:
            raise RecordInvalid(f"{named(assembly.summary)} does not have its digest: bytes were changed or lost")

    async def _give(self, link: Link, handler: BulkHandler, wanted: BulkFetch) -> None:
        found = handler.held(wanted.owner, wanted.tree)
        if found is None or found[0].version < wanted.version:
            found = await self._provided(link, handler, wanted)
        if found is None:
            link.send(BulkRefuse(f"no record of {wanted.owner.short} of version {wanted.version} or later is held here"))
            return
        summary, data = found
        front = front_of(summary, data)
        async with asyncio.timeout(self._parameters.transfer_timeout_s(summary.record_bytes)):
            link.send(BulkAccept(summary, front.bounds[0]), bytes(data[: front.bounds[0]]))
            unsent = {*range(len(front.digests))}
            while True:
                try:
                    asked = await link.receive()
                except LinkClosed:
                    return  # the other side has what it wanted
                if not isinstance(asked, BulkWant):
                    raise MalformedMessage(f"{type(asked).__name__} where chunks are asked for")
                await self._send_wanted(link, asked, front, data, unsent)

    async def _provided(self, link: Link, handler: BulkHandler, wanted: BulkFetch) -> tuple[RecordSummary, Data] | None:
        """A version that is not here yet; None where it does not come in time, or too many wait."""
        if self._waiting >= WAITING_MAX:
            return None
        self._served -= 1
        self._waiting += 1
        try:
            async with asyncio.timeout(self._parameters.provide_max_s):
                return await _while_open(link, handler.provide(wanted.owner, wanted.tree, wanted.version))
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1
            self._served += 1

    # --- both ---------------------------------------------------------------------------------------------------------

    async def _send_wanted(self, link: Link, asked: BulkWant, front: Front, data: Data, unsent: set[int]) -> None:
        """The chunks that were asked for, each once in the life of a link. MalformedMessage where they are not to be had."""
        for first, count in asked.runs:
            if count < 1 or not unsent.issuperset(range(first, first + min(count, len(front.digests) + 1))):
                raise MalformedMessage(f"{count} chunks from {first} were asked for, which there are not, or were sent before")
            unsent.difference_update(range(first, first + count))
            chunks = memoryview(data)[front.bounds[first] : front.bounds[first + count]]
            await link.send_raw(chunks, self._parameters.stall_max_s)
            self.moved.sent_bytes += len(chunks)

    async def _assembly(self, local: NodeId, summary: RecordSummary, front: bytearray) -> Assembly:
        """The record's assembly, with what is here of it. RecordInvalid where summary and front don't fit, or as for _content_bytes()."""
        assembly = self._unfinished.take(summary.digest) or Assembly(summary, front)
        if assembly.summary != summary:
            raise RecordInvalid(f"{named(summary)} has the bytes of {named(assembly.summary)} which is another")
        self._content_bytes(summary, assembly.front)
        before = sum(map(assembly.length, assembly.here()))
        sources: list[tuple[Front, Data, list[int]]] = []
        sources += [(other.front, other.data, other.here()) for other in self._unfinished.of(*summary.key)]
        handler = self._handlers.get(local)
        if handler is not None and (held := handler.held(*summary.key)) is not None:
            older = front_of(*held)
            sources.append((older, held[1], [*range(len(older.digests))]))
        for source in sources:
            if summary.record_bytes <= REUSED_IN_PLACE_BYTES_MAX:
                before += assembly.reuse(*source)
            else:
                before += await asyncio.get_running_loop().run_in_executor(None, assembly.reuse, *source)
        self.moved.spared_bytes += before
        return assembly

    def _keep(self, assembly: Assembly | None) -> None:
        """For the next transfer of this record, or of one that is like it; unless it is complete, or there is no room."""
        if assembly is not None and not assembly.complete and self._room_for(assembly.summary.record_bytes):
            self._unfinished.keep(assembly)


async def _while_open(link: Link, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns; LinkClosed, and the work cancelled, where the other side does not wait for it."""
    task = asyncio.ensure_future(work)
    closed = asyncio.ensure_future(link.closed())
    try:
        await asyncio.wait({task, closed}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise LinkClosed("the other side did not wait for the record")
    finally:
        closed.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
