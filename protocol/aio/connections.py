"""One listener for all nodes of a process, and the pool of control connections with their peers.

1. A connection belongs to the local node that its hello asked for, and to one life (id, incarnation) of the peer that its
   hello named. That peer is the one that messages are said to come from.
2. send() dials where there is no connection. The node is told that a peer is lost when the last control connection with that
   life has ended, or when none could be made; never when it was we who ended it, nor when the peer said that it parts.
3. Control connections are capped, for all nodes of the process together; beyond the cap, the one that was silent longest is
   parted with. The peer is told so (Refusal "busy"): a close alone would make it suspect us, for a killed process closes too.
   Heartbeats keep ring neighbours and tree relatives among the last to go.
4. Descriptors may run out before the cap is reached. A connection that takes one of the last makes another go; a dial that
   finds none left closes some and tries once more.
5. A process that is too busy to accept finds connections that their diallers have given up. They are dropped unread, and are no sign of
   a death: else each would cost a trial, whose dials keep the next one busy.
6. Fresh dials and dials of both sides at once leave more than one connection with a peer. Those that nobody uses for orphan_max_s, when
   no doubt is left, are parted with: by the side with the lower id, so that the two don't each part with the other's.
7. Bulk and status connections are no part of the pool: each serves one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from typing import Any, Protocol

from protocol.aio.bulk import Bulk
from protocol.aio.dialling import DialFailed, dial
from protocol.aio.lane import Lane, LaneKey
from protocol.aio.link import Link, LinkClosed
from protocol.aio.listener import Listener
from protocol.aio.sockets import descriptors_left, find_half_open
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.identifiers import Address, NodeId, Peer
from protocol.parameters import OverlayParameters
from protocol.wire.codec import encode
from protocol.wire.framing import frame
from protocol.wire.messages import Channel, Message, Refusal, StatusReply, StatusRequest, StopRequest
from protocol.wire.session import Session

logger = logging.getLogger(__name__)

HALF_OPEN_MAX = 256
"""Inbound connections that have not said hello; beyond, new ones are dropped at once."""
DIALS_AT_ONCE = 16
"""Dials that may take our time, of either sort: for a verdict, or to send. More at a time find the other side, and us, too busy for any of
them. One without an answer within delay_max_s takes none, and stands in nobody's way."""
EVICTED_AT_ONCE = 8
"""Peers parted with when file descriptors have run out."""
DESCRIPTORS_KEPT = 24
"""The last file descriptors of the process: a connection that takes one of them makes another go. They are for our own dials, for
the disk, and for the many that may be accepted in one turn of the loop."""
PARTING = Refusal("busy", "too many connections: this one was silent longest")
SPARE = Refusal("busy", "there are other connections with this peer: this one is not used")


class LocalNode(Protocol):
    """Who is told what happens on a local node's control connections. Both are called from the loop and must not block."""

    def received(self, peer: Peer, message: Message) -> None: ...

    def lost(self, peer: Peer, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Dialled:
    """How a fresh dial ended. found: who answered, perhaps a later life; None where nobody did, with the reason.

    refused: the host said that nobody listens there, or that the id does not live there.
    """

    found: Peer | None
    refused: bool = False
    reason: str = ""


class Connections:
    """The network of one process, used from one event loop.

    bulk: transfers of records, on this listener. status_document: gives the JSON text for a status request; stop: called on a
    stop request; each is None where the process does not offer it.
    """

    def __init__(self, cluster: str, parameters: OverlayParameters) -> None:
        self.cluster = cluster
        self.parameters = parameters
        self.status_document: Callable[[], str] | None = None
        self.stop: Callable[[], None] | None = None
        self.bulk = Bulk(self._dial_bulk, parameters)
        self._nodes: dict[NodeId, tuple[Peer, LocalNode]] = {}  # the first is the default
        self._lanes: dict[LaneKey, Lane] = {}
        self._lane_of: dict[Link, Lane] = {}
        self._links: set[Link] = set()  # every one that is open, of any channel
        self._fresh_dials, self._lane_dials = asyncio.Semaphore(DIALS_AT_ONCE), asyncio.Semaphore(DIALS_AT_ONCE)
        self._half_open: dict[Link, None] = {}  # inbound, no hello yet; the oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None
        self._scarce = False  # descriptors are, and it was said
        self._closed = False

    # --- local nodes --------------------------------------------------------------------------------------------------

    async def listen(self, host: str, port: int) -> Address:
        """Accepts connections; port 0 takes a free one. The address bound; OSError, or ValueError for no port, where it cannot be."""
        if not 0 <= port < 1 << 16:
            raise ValueError("ports are 0 to 65535")  # uvloop would take the lower 16 bits
        self._listener = Listener(self._accepted, self._exhausted, self._spawn)
        return await self._listener.listen(host, port)

    def serve(self, local: Peer, node: LocalNode) -> None:
        """The node lives here from now on. The first is who answers a hello that asks for nobody in particular."""
        self._nodes[local.id] = local, node

    def withdraw(self, local: Peer) -> None:
        """The node no longer lives here; its connections are closed, nobody is told."""
        self._nodes.pop(local.id, None)
        self.bulk.withdraw(local.id)
        for lane in [lane for key, lane in self._lanes.items() if key[0] == local.id]:
            self._shut(lane, "the node has left")

    # --- control ------------------------------------------------------------------------------------------------------

    def send(self, local: Peer, remote: Peer, message: Message) -> None:
        """Towards this life of `remote`, dialling first where there is no connection. No promise; where none can be made,
        the local node is told that the peer is lost. LocalProtocolError, nothing sent, for a message that has no wire form or
        is longer than a control frame may be."""
        payload = encode(message)
        if len(payload) > self.parameters.control_frame_bytes_max:
            limit = self.parameters.control_frame_bytes_max
            raise LocalProtocolError(f"{type(message).__name__} has {len(payload)} bytes where a control frame has at most {limit}")
        data = frame(payload)
        if self._closed:
            return
        lane = self._lane(local, remote)
        lane.send(data)
        if not lane.links and lane.dialling is None:
            lane.dialling = self._spawn(self._dial_lane(lane))

    async def dial_fresh(self, local: Peer, peer: Peer, patience: int = 1) -> Dialled:
        """A new connection with its hello, whatever connections exist, within probe_timeout_s times `patience`. Never raises for what
        the network does. A connection that was made stays in the pool, first in line."""
        return await self._dial_kept(local, peer.address, peer.id, patience)

    async def dial_seed(self, local: Peer, address: Address) -> Dialled:
        """As dial_fresh(), whoever lives there; finding ourselves is a failure."""
        return await self._dial_kept(local, address, None)

    def disconnect(self, local: Peer, remote: Peer) -> None:
        """Ends every control connection with this life of the peer, once what was written has left. Nobody is told."""
        lane = self._lanes.get((local.id, remote.id, remote.incarnation))
        if lane is not None:
            self._shut(lane, "disconnected")

    def drop(self, local: Peer, remote: Peer, reason: str) -> None:
        """The peer erred: says so in a Refusal on every control connection with this life, and ends them. The node is told
        that the peer is lost."""
        lane = self._lanes.get((local.id, remote.id, remote.incarnation))
        for link in list(lane.links) if lane is not None else ():
            logger.warning("%s: dropped: %s", link, reason)
            link.refuse(Refusal("malformed", reason))

    def peers(self, local: Peer) -> list[Peer]:
        """With whom the node has a control connection now."""
        return [lane.remote for lane in self._lanes.values() if lane.local.id == local.id and lane.links]

    async def farewell(self, local: Peer, timeout_s: float) -> None:
        """After a Goodbye: until every peer has closed its end, at most so long. Closing first, with something of theirs
        unread, would reset the connection, and a reset destroys the goodbye before it is read."""
        links = [link for link, lane in self._lane_of.items() if lane.local.id == local.id]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(link.closed() for link in links))

    async def close(self) -> None:
        """Stops listening and ends every connection: in order where the other side reads, else after probe_timeout_s. All
        tasks and sockets are gone when this returns."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.bulk.close()
        self._lanes.clear()
        links = list(self._links)
        for link in links:
            link.close("closing")
        await asyncio.gather(*(link.closed() for link in links))

    # --- lanes --------------------------------------------------------------------------------------------------------

    def _lane(self, local: Peer, remote: Peer) -> Lane:
        key = local.id, remote.id, remote.incarnation
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(local, remote, self.parameters.send_queue_max)
        return lane

    async def _dial_lane(self, lane: Lane) -> None:
        reason, link = "", None
        try:
            async with self._turn(self._lane_dials):
                link = await self._dial(lane.local, lane.remote.address, lane.remote.id, "control", self.parameters.trial_max_s)
            if link.peer.incarnation != lane.remote.incarnation:
                reason = f"incarnation {link.peer.incarnation} lives there, not {lane.remote.incarnation}"
        except DialFailed as error:
            reason = str(error)
        lane.dialling = None
        if not lane.links:
            self._end(lane, reason or "the connection ended at once", parted=link is not None and not reason and link.parted)

    def _end(self, lane: Lane, reason: str, *, parted: bool) -> None:
        """The last of the lane is gone, and not by our will: the peer is lost, unless it has said that it parts. What was sent since
        goes on a new connection."""
        if self._lanes.get(lane.key) is not lane:
            return
        if parted and lane.waiting:
            lane.dialling = self._spawn(self._dial_lane(lane))
            return
        del self._lanes[lane.key]
        if parted:
            logger.debug("%s has parted: %s", lane.remote, reason)
            return
        found = self._nodes.get(lane.local.id)
        if found is not None and not self._closed:
            found[1].lost(lane.remote, reason)

    def _shut(self, lane: Lane, reason: str) -> None:
        """By our will: out of the table first, so that nobody is told."""
        del self._lanes[lane.key]
        lane.shut(reason)

    def _evict(self, count: int) -> list[Link]:
        """Parts with the control connections that were silent longest, and returns them."""
        links = nsmallest(count, self._lane_of, key=lambda link: link.used_at)
        for link in links:
            logger.debug("%s: parted with, the least recently used of %d connections", link, len(self._lane_of))
            self._part(link, PARTING)
        return links

    def _part(self, link: Link, last_word: Refusal) -> None:
        """Nobody is told, on either side."""
        lane = self._lane_of.pop(link)
        lane.detach(link)
        if not lane.links and lane.dialling is None and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
        link.part(last_word)

    def _tidy_later(self, lane: Lane) -> None:
        """Rule 6, again and again until there is one link."""
        lane.tidied = len(lane.links) > 1 and lane.local.id < lane.remote.id
        if lane.tidied:
            asyncio.get_running_loop().call_later(self.parameters.orphan_max_s, self._tidy, lane)

    def _tidy(self, lane: Lane) -> None:
        for link in lane.spares(asyncio.get_running_loop().time() - self.parameters.orphan_max_s):
            logger.debug("%s: parted with, %d others are left", link, len(lane.links) - 1)
            self._part(link, SPARE)
        self._tidy_later(lane)

    # --- dials --------------------------------------------------------------------------------------------------------

    async def _dial_kept(self, local: Peer, address: Address, receiver: NodeId | None, patience: int = 1) -> Dialled:
        try:
            async with self._turn(self._fresh_dials):
                link = await self._dial(local, address, receiver, "control", self.parameters.probe_timeout_s * patience)
        except DialFailed as error:
            return Dialled(None, error.refused, str(error))
        if link.peer == local:
            link.close("a connection with ourselves")
            return Dialled(None, False, f"{address} is this node itself")
        return Dialled(link.peer)

    @contextlib.asynccontextmanager
    async def _turn(self, dials: asyncio.Semaphore) -> AsyncIterator[None]:
        """One of the dials that may be under way; after delay_max_s the next may begin, whether this one has ended or not."""
        await dials.acquire()
        passed_on = False

        def pass_on() -> None:
            nonlocal passed_on
            if not passed_on:
                passed_on = True
                dials.release()

        timer = asyncio.get_running_loop().call_later(self.parameters.delay_max_s, pass_on)
        try:
            yield
        finally:
            timer.cancel()
            pass_on()

    async def _dial_bulk(self, local: Peer, remote: Peer) -> Link:
        return await self._dial(local, remote.address, remote.id, "bulk", self.parameters.probe_timeout_s)

    async def _dial(self, local: Peer, address: Address, receiver: NodeId | None, channel: Channel, timeout_s: float) -> Link:
        """A link past its hello, or DialFailed."""

        def make() -> Link:
            limit = self.parameters.control_frame_bytes_max
            return self._link(Session.dialling(self.cluster, local, receiver, channel, limit), inbound=False)

        if self._closed:
            raise DialFailed("this process is closing")
        try:
            return await dial(make, address, timeout_s)
        except DialFailed as error:
            if not error.exhausted:
                raise
        self._say_scarce()
        if links := self._evict(EVICTED_AT_ONCE):
            closing = [asyncio.ensure_future(link.closed()) for link in links]
            await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
        return await dial(make, address, timeout_s)

    # --- links --------------------------------------------------------------------------------------------------------

    def _resident(self, identifier: NodeId | None) -> Peer | None:
        if identifier is None:
            return next((peer for peer, _ in self._nodes.values()), None)
        found = self._nodes.get(identifier)
        return found[0] if found is not None else None

    def _link(self, session: Session, *, inbound: bool) -> Link:
        return Link(session, self, self.parameters.hello_timeout_s, self.parameters.probe_timeout_s, inbound=inbound)

    def _accepted(self) -> Link:
        return self._link(Session.listening(self.cluster, self._resident, self.parameters.control_frame_bytes_max), inbound=True)

    def link_made(self, link: Link) -> None:
        """Part of LinkOwner, as the next two: nobody but a Link calls them."""
        self._links.add(link)
        if link.inbound:
            self._half_open[link] = None
        assert link.transport is not None
        sock = link.transport.get_extra_info("socket")
        find_half_open(sock, self.parameters)
        if len(self._half_open) > HALF_OPEN_MAX:
            # Who has something to say says it at once: the one that has been silent for longest makes room. It ends in a later turn.
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.abort("too many connections have not said hello, this one for longest")
        if self._closed:
            link.abort("closing")
        elif descriptors_left(sock) < DESCRIPTORS_KEPT:
            self._say_scarce()
            if not self._evict(1) and link.inbound:
                link.abort("no file descriptor is left for it")

    def _exhausted(self) -> None:
        """There is no descriptor for one that waits."""
        self._say_scarce()
        self._evict(EVICTED_AT_ONCE)

    def _say_scarce(self) -> None:
        if not self._scarce:
            self._scarce = True
            logger.warning("file descriptors run out: raise the limit (ulimit -n), lower overlay.connections_max or have fewer agents here")

    def link_greeted(self, link: Link) -> None:
        self._half_open.pop(link, None)
        hello = link.session.hello
        assert hello is not None
        if hello.channel == "control":
            # Our own other end (a seed that is ourselves) is no peer; whoever dialled closes it.
            if link.peer != link.local:
                self._attach(link)
        elif link.inbound:
            self._spawn(self.bulk.serve_link(link) if hello.channel == "bulk" else self._serve_status(link))

    def link_ended(self, link: Link, reason: str) -> None:
        self._links.discard(link)
        self._half_open.pop(link, None)
        lane = self._lane_of.pop(link, None)
        if lane is None:
            return
        lane.detach(link)
        if not lane.links and lane.dialling is None:
            self._end(lane, reason, parted=link.parted)

    def _attach(self, link: Link) -> None:
        if len(self._lane_of) >= self.parameters.connections_max:
            self._evict(1)
        lane = self._lane_of[link] = self._lane(link.local, link.peer)
        lane.attach(link, first=not link.inbound)
        if not lane.tidied:
            self._tidy_later(lane)
        link.deliver(partial(self._received, link))

    def _received(self, link: Link, message: Message) -> None:
        found = self._nodes.get(link.local.id)
        if found is not None:
            found[1].received(link.peer, message)

    # --- status -------------------------------------------------------------------------------------------------------

    async def _serve_status(self, link: Link) -> None:
        """One question, one answer."""
        try:
            async with asyncio.timeout(self.parameters.probe_timeout_s):
                question = await link.receive()
        except (TimeoutError, LinkClosed, RemoteProtocolError) as error:
            link.close(str(error) or "no question came")
            return
        stops = isinstance(question, StopRequest) and self.stop is not None
        if self.status_document is None or not (stops or isinstance(question, StatusRequest)):
            link.refuse(Refusal("malformed", f"{type(question).__name__} is not served here"))
            return
        link.send(StatusReply(self.status_document()))
        link.close("answered")
        if stops and self.stop is not None:
            self.stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
