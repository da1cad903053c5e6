"""Records, each on a connection of its own, so that none ever delays a heartbeat.

    push    BulkPush ->  <- BulkAccept   bytes ->  <- BulkStored      or <- BulkRefuse at either point
    fetch   BulkFetch -> <- BulkAccept(record), bytes                 or <- BulkRefuse

Who is pushed a record that it already holds says BulkStored at once: no bytes move. Bytes are received straight into the buffer
that becomes the record, and are verified against the digest before anyone is told of them. Room is bounded by record_bytes_max
for each record and for all that are being received at once; time by transfer_timeout_s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from protocol.aio.dialling import DialFailed
from protocol.aio.link import Link, LinkClosed
from protocol.errors import RecordInvalid, RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.knowledge import Data, verify
from protocol.parameters import OverlayParameters
from protocol.wire.messages import BulkAccept, BulkFetch, BulkPush, BulkRefuse, BulkStored, Message, Refusal
from protocol.wire.values import RecordSummary

logger = logging.getLogger(__name__)

SERVED_MAX = 64
"""Transfers that others may have under way here at once; more are refused as busy."""
VERIFIED_IN_PLACE_BYTES_MAX = 1 << 20
"""Hashing this takes 0.6 ms; larger records are hashed in a thread, so that heartbeats go on."""

Purpose = Literal["replica", "upload"]
_T = TypeVar("_T")


class BulkError(Exception):
    """The record did not come; the message says why. Nothing was stored."""


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """How a push ended. refused: the holder said no and would say no again; failed: the network or a deadline."""

    outcome: Literal["stored", "refused", "failed"]
    reason: str = ""


class BulkHandler(Protocol):
    """What a local node does with the records that others push to it and fetch from it."""

    def holds(self, summary: RecordSummary) -> bool:
        """Whether this very record, pushed as a replica, is held already."""

    def admit(self, summary: RecordSummary, purpose: Purpose) -> str | None:
        """Before any byte: None to go on, else why not."""

    async def accept(self, summary: RecordSummary, data: Data, purpose: Purpose, sender: Peer) -> str | None:
        """A verified record: None when it is held, else why not."""

    async def provide(self, owner: NodeId, tree: TreeId, version: int) -> tuple[RecordSummary, Data] | None:
        """The newest of at least `version`, waiting for it if that makes sense; None where there is none."""


class Bulk:
    """Both sides of transfers, for all local nodes. `open_link` dials (local, remote) on the bulk channel, or raises DialFailed."""

    def __init__(self, open_link: Callable[[Peer, Peer], Awaitable[Link]], parameters: OverlayParameters) -> None:
        self._open_link = open_link
        self._parameters = parameters
        self._handlers: dict[NodeId, BulkHandler] = {}
        self._served = 0  # transfers under way that others began
        self._receiving_bytes = 0  # room made for what others push

    def serve(self, local: NodeId, handler: BulkHandler) -> None:
        """Transfers that ask for this node go to the handler."""
        self._handlers[local] = handler

    def withdraw(self, local: NodeId) -> None:
        """Transfers that ask for this node are refused from now on."""
        self._handlers.pop(local, None)

    # --- what we begin ------------------------------------------------------------------------------------------------

    async def push(self, local: Peer, remote: Peer, summary: RecordSummary, data: Data, purpose: Purpose) -> PushOutcome:
        """Moves the record to `remote`. Never raises for what the network or the other side does."""
        timeout_s = self._parameters.transfer_timeout_s(summary.record_bytes)
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._open_link(local, remote)
                return await self._push_on(link, BulkPush(summary, purpose), data)
        except TimeoutError:
            return PushOutcome("failed", f"the transfer took longer than {timeout_s:.3g} s")
        except (DialFailed, LinkClosed, RemoteProtocolError) as error:
            return PushOutcome("failed", str(error))
        finally:
            if link is not None:
                link.abort("the push has ended")

    async def fetch(
        self, local: Peer, remote: Peer, owner: NodeId, tree: TreeId, version: int, patience_s: float = 0.0
    ) -> tuple[RecordSummary, Data]:
        """The newest record of (owner, tree) that `remote` has, of at least `version`, verified. BulkError where it does not come.

        patience_s: how long the other side may wait for such a record itself before its answer.
        """
        link: Link | None = None
        timeout_s = self._parameters.transfer_timeout_s(0) + patience_s
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                link = await self._open_link(local, remote)
                link.send(BulkFetch(owner, tree, version))
                summary = self._offered(await link.receive(), owner, tree, version)
                timeout_s = self._parameters.transfer_timeout_s(summary.record_bytes)
                deadline.reschedule(asyncio.get_running_loop().time() + timeout_s)
                data = _room(summary.record_bytes)
                await link.receive_into(data)
                await _verified(summary, data)
                return summary, data
        except TimeoutError as error:
            raise BulkError(f"{remote} did not deliver within {timeout_s:.3g} s") from error
        except (DialFailed, LinkClosed, RemoteProtocolError, RecordInvalid) as error:
            raise BulkError(str(error)) from error
        finally:
            if link is not None:
                link.abort("the fetch has ended")

    async def _push_on(self, link: Link, offer: BulkPush, data: Data) -> PushOutcome:
        link.send(offer)
        answer = await link.receive()
        if isinstance(answer, BulkAccept):
            await link.send_raw(memoryview(data))
            answer = await link.receive()
        match answer:
            case BulkStored():
                return PushOutcome("stored")
            case BulkRefuse(reason):
                return PushOutcome("refused", reason)
            case _:
                return PushOutcome("failed", f"{type(answer).__name__} is no answer to a push")

    def _offered(self, answer: Message, owner: NodeId, tree: TreeId, version: int) -> RecordSummary:
        """What a BulkAccept announces, if it is what was asked for."""
        if isinstance(answer, BulkRefuse):
            raise BulkError(answer.reason)
        record = answer.record if isinstance(answer, BulkAccept) else None
        if record is None:
            raise BulkError(f"{type(answer).__name__} is no answer to a fetch")
        if record.key != (owner, tree) or record.version < version:
            raise BulkError(f"asked for version {version} of {owner.short}, was offered {record.version} of {record.owner.short}")
        if reason := self._too_large(record):
            raise BulkError(reason)
        return record

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
            logger.info("%s: a transfer ended early: %s", link, error)
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
        reason = self._too_large(record) or handler.admit(record, purpose)
        if reason is not None:
            link.send(BulkRefuse(reason))
            return
        if self._receiving_bytes + record.record_bytes > self._parameters.record_bytes_max:
            link.refuse(Refusal("busy", f"{self._receiving_bytes} bytes of other records are being received here"))
            return
        self._receiving_bytes += record.record_bytes
        try:
            async with asyncio.timeout(self._parameters.transfer_timeout_s(record.record_bytes)):
                data = _room(record.record_bytes)
                link.send(BulkAccept())
                await link.receive_into(data)
                await _verified(record, data)
                reason = await handler.accept(record, data, purpose, link.peer)
        except RecordInvalid as error:
            reason = str(error)
        finally:
            self._receiving_bytes -= record.record_bytes
        link.send(BulkStored() if reason is None else BulkRefuse(reason))

    async def _give(self, link: Link, handler: BulkHandler, wanted: BulkFetch) -> None:
        longest_s = self._parameters.transfer_timeout_s(self._parameters.record_bytes_max)
        async with asyncio.timeout(longest_s):
            found = await _while_open(link, handler.provide(wanted.owner, wanted.tree, wanted.version))
        if found is None:
            link.send(BulkRefuse(f"no record of {wanted.owner.short} of version {wanted.version} or later is held here"))
            return
        summary, data = found
        async with asyncio.timeout(self._parameters.transfer_timeout_s(summary.record_bytes)):
            link.send(BulkAccept(summary))
            await link.send_raw(memoryview(data))
            await link.closed()  # by the other side, when it has them all

    def _too_large(self, record: RecordSummary) -> str | None:
        if 0 <= record.record_bytes <= self._parameters.record_bytes_max:
            return None
        return f"a record of {record.record_bytes} bytes where at most {self._parameters.record_bytes_max} may be"


def _room(size: int) -> memoryview:
    """A buffer that costs memory only as it is filled: a peer that announces a gigabyte and sends nothing takes none."""
    return np.empty(size, np.uint8).data


async def _verified(summary: RecordSummary, data: Data) -> None:
    if len(data) <= VERIFIED_IN_PLACE_BYTES_MAX:
        verify(summary, data)
    else:
        await asyncio.get_running_loop().run_in_executor(None, verify, summary, data)


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
