"""Drives one overlay node: the only loop that calls handle(), the only timer, and the hands that carry out its effects.

1. Events are handled one at a time, in the order of dispatch(). What an application or a connection dispatches while an event
   is being handled waits for its turn; nothing is ever handled inside something else.
2. After the last event in line, one timer is armed for next_deadline(). Where it is late, what has come in is read first (alarm.py).
3. An effect for the network starts a task, whose end is dispatched as the event that the effect's docstring names. An effect
   for the application is handed to it, at its place among the others.
4. RemoteProtocolError from the node while it reads a message: that peer is dropped (P7). A message that cannot be sent (longer
   than a frame may be, say) is dropped, logged, and told to the application as the fact `unsendable`. Any other exception, from
   the node or from the application, is a mistake in FMRec: nothing more is handled, and `failed` raises it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from protocol.aio.alarm import Alarm
from protocol.aio.bulk import BulkError, Purpose, PushOutcome
from protocol.aio.connections import Connections
from protocol.aio.promises import PromiseFile
from protocol.aio.store import RecordStore
from protocol.errors import LocalProtocolError, RecordInvalid, RemoteProtocolError
from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.knowledge import Data
from protocol.overlay.effects import CancelTransfer, Dial, DialSeed, Discard, Disconnect, Effect, Fetch, KeepPromises, Notify, Push, Send
from protocol.overlay.events import (
    DialEnded,
    Event,
    FetchEnded,
    Leave,
    MessageReceived,
    PeerLost,
    PushEnded,
    RecordHeld,
    SeedAnswered,
    SeedFailed,
    TimerFired,
)
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Message
from protocol.wire.values import RecordSummary

FULL_AGAIN_S = 60.0
"""Between two complaints that there is no room for others' records."""
logger = logging.getLogger(__name__)


class Node(Protocol):
    """What a driver needs of an overlay node (overlay/node.py)."""

    @property
    def self_peer(self) -> Peer: ...

    def handle(self, event: Event, now: float) -> list[Effect]: ...

    def next_deadline(self) -> float | None: ...

    def outdated(self, peer: Peer) -> bool: ...


class Application(Protocol):
    """Who stands above the node: a daemon. Both are called from the loop and must not block it."""

    def __call__(self, effect: Effect) -> None:
        """One effect that is for the application. It may dispatch()."""

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        """A verified record that was sent to be used, not to be kept: None when it was taken, else why not. RecordInvalid where it cannot
        be opened: its sender is told."""


def not_before(when: float) -> float:
    """Loop time in whole milliseconds. uvloop counts these, and rounds to the nearest: half of all timers would ring early."""
    rounded = math.ceil(when * 1000) / 1000
    return rounded if rounded >= when else rounded + 0.001


class Driver:
    """Made with everything it joins; start() puts the node on the network, close() takes it off. promises: the file that the node's come
    from, where it keeps any."""

    def __init__(
        self,
        node: Node,
        connections: Connections,
        store: RecordStore,
        application: Application,
        parameters: OverlayParameters,
        promises: PromiseFile | None = None,
    ) -> None:
        self.node = node
        self.store = store
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connections = connections
        self._application = application
        self._promises = promises
        self._parameters = parameters
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._handling = False
        self._timer: Alarm | None = None
        self._armed_for: float | None = None  # the deadline that the timer stands for, in loop time
        self._tasks: set[asyncio.Task[None]] = set()
        self._transfers: dict[int, asyncio.Task[None]] = {}
        self._unsendable: set[str] = set()  # kinds of messages that once could not be sent
        self._full_again = -math.inf  # when it is told again that others' records find no room
        self._closed = False

    # --- for the daemon -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Messages and transfers for this node come here from now on. Its overlay starts with dispatch(Started(...))."""
        self._connections.serve(self.node.self_peer, self)
        self._connections.bulk.serve(self.node.self_peer.id, self)

    def dispatch(self, event: Event) -> None:
        """Has the node handle the event: at once, or after what is being handled. Nothing after close() or a failure."""
        if self._closed or self.failed.done():
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and not self._closed:
                self._handle(self._events.popleft())
            self._arm()
        except Exception as error:
            self._fail(error)
        finally:
            self._handling = False

    async def fetch(
        self, peer: Peer, owner: NodeId, tree: TreeId, version: int, patience_s: float = 0.0, others: tuple[Peer, ...] = ()
    ) -> tuple[RecordSummary, Data]:
        """Bulk.fetch() for this node. The record goes to the caller only: neither the store nor the node hears of it."""
        return await self._connections.bulk.fetch(self.node.self_peer, (peer, *others), owner, tree, version, patience_s)

    async def upload(self, peer: Peer, summary: RecordSummary, data: Data) -> PushOutcome:
        """Gives the record to the application at `peer`. Never raises for what the network or the other side does."""
        return await self._connections.bulk.push(self.node.self_peer, peer, summary, data, "upload")

    async def leave(self) -> None:
        """Say goodbye in order and wait, within a bound, until the peers have heard it; then close()."""
        self.dispatch(Leave())
        await self._connections.farewell(self.node.self_peer, self._parameters.delay_max_s)
        await self.close()

    async def close(self) -> None:
        """Stops the timer and every task, and takes the node off the network; the store and the connections stay."""
        self._closed = True
        self._events.clear()
        self._connections.withdraw(self.node.self_peer)
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- from the connections -----------------------------------------------------------------------------------------

    def received(self, peer: Peer, message: Message) -> None:
        self.dispatch(MessageReceived(peer, message))

    def lost(self, peer: Peer, reason: str) -> None:
        self.dispatch(PeerLost(peer, reason))

    # --- from bulk transfers that others begin ------------------------------------------------------------------------

    def holds(self, summary: RecordSummary) -> bool:
        held = self.store.get(summary.owner, summary.tree)
        return held is not None and held[0] == summary and self.store.is_settled(summary)

    def held(self, owner: NodeId, tree: TreeId) -> tuple[RecordSummary, Data] | None:
        return self.store.get(owner, tree)

    def admit(self, summary: RecordSummary, purpose: Purpose) -> str | None:
        if purpose == "upload":
            return None
        return self._no_room(summary) or self.store.admit(summary)

    def _no_room(self, summary: RecordSummary) -> str | None:
        """Why another's record cannot be kept, None where it can; the application is told now and then."""
        if len(self.store) >= self._parameters.held_records_max and self.store.get(summary.owner, summary.tree) is None:
            reason: str | None = f"{len(self.store)} records are held already"
        else:
            reason = self.store.is_full(summary)
        if reason is not None and self._loop.time() >= self._full_again:
            self._full_again = self._loop.time() + FULL_AGAIN_S
            self._application(Notify("store_full", {"reason": reason}))
        return reason

    async def accept(self, summary: RecordSummary, data: Data, purpose: Purpose, sender: Peer) -> str | None:
        if purpose == "upload":
            try:
                return await self._application.on_upload(summary, data, sender)
            except RecordInvalid as error:
                return str(error)
            except Exception as error:
                self._fail(error)
                return "the receiver failed"
        if sender.id == summary.owner and self.node.outdated(sender):
            return f"a later life of {sender.id.short} than {sender.incarnation} is known here: this one keeps no records any more"
        # Asked again: what was admitted at the same time may have taken the room.
        reason = self.admit(summary, purpose)
        if reason is not None:
            return reason
        if self.store.put(summary, data):
            self.dispatch(RecordHeld(summary))
        # A disk that fails has said so; the record is in memory then, as with a holder that has no disk. Else it was discarded meanwhile.
        why = await self.store.settled(summary)
        return why if self.store.get(*summary.key) is None else None

    async def provide(self, owner: NodeId, tree: TreeId, version: int) -> tuple[RecordSummary, Data]:
        return await self.store.wait_for(owner, tree, version)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        try:
            effects = self.node.handle(event, self._loop.time())
        except RemoteProtocolError as error:
            if not isinstance(event, MessageReceived):
                raise
            self._connections.drop(self.node.self_peer, event.peer, str(error))
            return
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        local = self.node.self_peer
        match effect:
            case Send(peer, message):
                self._send(peer, message)
            case KeepPromises():
                self._spawn(self._keep(effect))
            case Dial(peer, patience):
                self._spawn(self._dial(peer, patience))
            case DialSeed(address):
                self._spawn(self._dial_seed(address))
            case Disconnect(peer):
                self._connections.disconnect(local, peer)
            case Push():
                self._transfers[effect.transfer] = self._spawn(self._push(effect))
            case Fetch():
                self._transfers[effect.transfer] = self._spawn(self._fetch(effect))
            case CancelTransfer(transfer):
                if task := self._transfers.pop(transfer, None):
                    task.cancel()
            case Discard(record):
                self.store.discard(record)
            case _:
                self._application(effect)

    def _send(self, peer: Peer, message: Message) -> None:
        try:
            self._connections.send(self.node.self_peer, peer, message)
        except LocalProtocolError as error:
            kind = type(message).__name__
            # Once a kind at a level that is seen: what cannot be sent is often tried again.
            logger.log(logging.DEBUG if kind in self._unsendable else logging.ERROR, "%s to %s is dropped: %s", kind, peer, error)
            self._unsendable.add(kind)
            self._application(Notify("unsendable", {"peer": peer, "message": kind, "reason": str(error)}))

    def _arm(self) -> None:
        when = None if self._closed else self.node.next_deadline()
        if when == self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = when
        self._timer = None if when is None else Alarm(self._loop, not_before(when), self._ring)

    def _ring(self) -> None:
        self._timer = self._armed_for = None
        self.dispatch(TimerFired())

    def _fail(self, error: Exception) -> None:
        """Loudly: whoever awaits `failed` gets it, and the log has it in any case."""
        logger.critical("the node %s stops: a mistake in FMRec", self.node.self_peer, exc_info=error)
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()
        if not self.failed.done():
            self.failed.set_exception(error)

    # --- what effects start -------------------------------------------------------------------------------------------

    async def _keep(self, effect: KeepPromises) -> None:
        if self._promises is None or await self._promises.keep(effect.promises):
            self._send(effect.answer.peer, effect.answer.message)

    async def _dial(self, peer: Peer, patience: int) -> None:
        ended = await self._connections.dial_fresh(self.node.self_peer, peer, patience)
        self.dispatch(DialEnded(peer, ended.found, ended.refused, ended.reason))

    async def _dial_seed(self, address: Address) -> None:
        ended = await self._connections.dial_seed(self.node.self_peer, address)
        self.dispatch(SeedFailed(address, ended.reason) if ended.found is None else SeedAnswered(address, ended.found))

    async def _push(self, effect: Push) -> None:
        held = self.store.get(effect.record.owner, effect.record.tree)
        if held is None or held[0] != effect.record:
            outcome = PushOutcome("failed", f"version {effect.record.version} is no longer held here")
        else:
            outcome = await self._connections.bulk.push(self.node.self_peer, effect.peer, *held, "replica")
        self._transfers.pop(effect.transfer, None)
        self.dispatch(PushEnded(effect.transfer, outcome.outcome, outcome.reason))

    async def _fetch(self, effect: Fetch) -> None:
        wanted, ended = effect.record, FetchEnded(effect.transfer, None)
        try:
            self._check_room(wanted)
            summary, data = await self.fetch(effect.peer, wanted.owner, wanted.tree, wanted.version, others=effect.others)
            self._check_room(summary)
            self.store.put(summary, data)
            held = self.store.get(*wanted.key)
            ended = FetchEnded(effect.transfer, held[0] if held is not None else None)
        except BulkError as error:
            ended = FetchEnded(effect.transfer, None, str(error))
        self._transfers.pop(effect.transfer, None)
        self.dispatch(ended)

    def _check_room(self, record: RecordSummary) -> None:
        """BulkError where there is no room for it. Our own record is never refused: it is what we go on from."""
        reason = self._no_room(record) if record.owner != self.node.self_peer.id else None
        if reason is not None:
            raise BulkError(reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
