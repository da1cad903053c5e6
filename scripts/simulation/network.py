"""The network: what TCP does to messages between processes.

1. Order is kept on each connection; a message that stalls delays those behind it.
2. A message to whom there is no connection waits for a dial (dialling.py): the handshake, then both hellos.
3. What is sent into a cut waits for TCP to try again after the cut is healed, as late as the cut was long; dials do not.
4. A reset loses the unread suffix in one direction or in both; both ends hear of it. A killed process resets its connections, and what
   it sent last may be lost with it. A host that vanishes resets nothing.
5. Half-open: one end is gone, the other learns it when it next sends (stale), or sends into the void until the kernel's keepalive finds
   out (aio/sockets.py), as it does of a cut that lasts.
6. A node's connections are capped; beyond, the one that was used longest ago is parted with, in words, so that nobody is suspected.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush, nsmallest
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Literal

from protocol.aio.sockets import half_open_max_s
from protocol.identifiers import Address, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Datagram, Message, Route
from scripts.simulation.clock import Clock
from scripts.simulation.dialling import Dialling
from scripts.simulation.terrain import Cut, Terrain

if TYPE_CHECKING:
    from scripts.simulation.cluster import Process

RETRANSMIT_MAX_S = 60.0
IDLE_LISTED = 64
"""Connections that are listed at once as unused for longest: to look through all of them for each one costs too much."""
_first = itemgetter(0)
Codec = tuple[Callable[[Message], bytes], Callable[[bytes], Message]]


class Link:
    """One direction of one connection, as its sender sees it."""

    __slots__ = ("alive", "delay_s", "index", "last", "name", "open", "peer", "queue", "sender", "source", "state", "target", "twin")

    def __init__(self, source: Process, target: Process, peer: Peer, delay_s: float) -> None:
        self.source = source
        self.target = target
        self.peer = peer
        self.sender = source.peer
        self.index = target.index
        self.name = target.name
        self.delay_s = delay_s
        self.last = 0.0
        """When the last message arrives: none overtakes it."""
        self.state: Literal["dialling", "open", "stale", "void", "closed"] = "dialling"
        self.open = False
        """Messages can leave at once: no need to look closer."""
        self.alive = True
        """What is under way will be read."""
        self.queue: list[Message] = []
        self.twin: Link | None = None


class Network:
    """Between the processes of one cluster; `tell` hands an event to a process."""

    index, name = 0, "network"

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        parameters: OverlayParameters,
        terrain: Terrain,
        tell: Callable[[Process, ev.Event], None],
        receive: Callable[[Link, Message], None],
        codec: Codec | None = None,
    ) -> None:
        self.clock = clock
        self.terrain = terrain
        self.at: dict[Address, Process] = {}
        """Who listens, or last listened, at an address."""
        self.cuts: list[Cut] = []
        self.healed: list[Cut] = []
        """Cuts of the past, for whoever asks since when two processes reach each other."""
        self.stall_share = 0.0
        self.stall_s = (0.0, 0.0)
        self.sent: dict[type, int] = {}
        """Messages by type; what is routed by the type of its body."""
        self.dialling = Dialling(self, parameters, rng)
        self._rng = rng
        self._random = rng.random
        self._parameters = parameters
        self.tell = tell
        self._receive = receive
        self._codec = codec
        self._idle: dict[int, list[tuple[float, Link]]] = {}
        """By process: some of its connections, when each was last used, the longest unused last."""
        self._held: dict[Link, float] = {}
        """Links with messages in front of a cut, and since when."""

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, source: Process, effect: fx.Send) -> None:
        """Over the connection with this life of the peer, which is made where there is none."""
        peer, message = effect.peer, effect.message
        kind: type = message.__class__
        if isinstance(message, Route):
            kind = message.body.__class__
        try:
            self.sent[kind] += 1
        except KeyError:
            self.sent[kind] = 1
        if self._codec is not None:
            message = self._codec[1](self._codec[0](message))
        link = source.links.get(peer.id)
        if link is None or not link.open or self.cuts or (link.peer is not peer and link.peer != peer):
            self._send_slowly(source, peer, message)
            return
        clock = self.clock
        when = clock.now + link.delay_s + self.terrain.jitter_s * self._random()
        if self.stall_share and self._random() < self.stall_share:
            when += self._rng.uniform(*self.stall_s)
        if when < link.last:
            when = link.last
        link.last = when
        heappush(clock.heap, (when, clock.ticket(), self._receive, link, message))

    def _send_slowly(self, source: Process, peer: Peer, message: Message) -> None:
        link = self.link(source, peer)
        if link is None:
            link = self._new_link(source, peer)
            link.queue.append(message)
            self.dialling.begin(source, peer.address, peer, link)
            self.dialling.for_look_ups += isinstance(message, Route) and isinstance(message.body, Datagram)
        elif link.state == "open" and not link.queue and not self.blocked(source, link.target):
            self._transmit(link, message)
        elif link.state in ("open", "dialling"):
            if link.open:
                self._held[link] = self.clock.now
                link.open = False
            if len(link.queue) < self._parameters.send_queue_max:
                link.queue.append(message)
        elif link.state == "stale" and not self.blocked(source, link.target):
            link.state = "void"
            self.clock.after(2 * link.delay_s, self.lose, link, "connection reset")

    def _transmit(self, link: Link, message: Message, extra_s: float = 0.0) -> None:
        when = self.clock.now + extra_s + link.delay_s + self.terrain.jitter_s * self._random()
        if self.stall_share and self._random() < self.stall_share:
            when += self._rng.uniform(*self.stall_s)
        link.last = when = max(when, link.last)
        self.clock.at(when, self._receive, link, message)

    def flush(self, link: Link, extra_s: float = 0.0) -> None:
        queue, link.queue = link.queue, []
        for message in queue:
            self._transmit(link, message, extra_s)
        link.open = link.state == "open"

    def dial(self, source: Process, effect: fx.Dial) -> None:
        self.dialling.begin(source, effect.peer.address, effect.peer, patience=effect.patience)

    def dial_seed(self, source: Process, effect: fx.DialSeed) -> None:
        self.dialling.begin(source, effect.address)

    # --- links --------------------------------------------------------------------------------------------------------

    def link(self, source: Process, peer: Peer) -> Link | None:
        """The connection of a process with this life of the peer; a tuple is its key where another life has the plain one."""
        found = source.links.get(peer.id)
        if found is not None and found.peer == peer:
            return found
        return source.links.get((peer.id, peer.incarnation, peer.host, peer.port))

    def _new_link(self, source: Process, peer: Peer) -> Link:
        target = self.at.get(peer.address, source.cluster.nobody)
        link = Link(source, target, peer, self.terrain.delay(source, target))
        self._put(link)
        if len(source.links) > self._parameters.connections_max:
            self._evict(source)
        return link

    def _put(self, link: Link) -> None:
        links, peer = link.source.links, link.peer
        known = links.get(peer.id)
        if known is None or known.peer.incarnation <= peer.incarnation:
            if known is not None and known.peer != peer:
                links[known.peer.id, known.peer.incarnation, known.peer.host, known.peer.port] = known
            links[peer.id] = link
        else:
            links[peer.id, peer.incarnation, peer.host, peer.port] = link

    def _drop(self, link: Link) -> bool:
        """Out of the table; False where another connection has taken its place."""
        links, peer = link.source.links, link.peer
        for key in (peer.id, (peer.id, peer.incarnation, peer.host, peer.port)):
            if links.get(key) is link:
                del links[key]
                return True
        return False

    def _evict(self, source: Process) -> None:
        """The connection that was used longest ago is parted with: the other side is told why, and loses nobody."""
        idle = self._idle.setdefault(source.index, [])
        for _ in range(2):
            while idle:
                used, link = idle.pop()
                # Not used since the list was made: then it is still the one unused for longest.
                if link.state != "closed" and link.twin is not None and max(link.last, link.twin.last) == used:
                    self._part(link)
                    return
            found = [(max(link.last, link.twin.last), link) for link in source.links.values() if link.twin is not None]
            idle += sorted(nsmallest(IDLE_LISTED, found, key=_first), key=_first, reverse=True)

    def _part(self, link: Link) -> None:
        self._drop(link)
        link.state, link.open = "closed", False
        twin = link.twin
        if twin is not None and twin.state == "open":
            if self.blocked(link.source, link.target):
                twin.state, twin.open = "stale", False
            else:
                self.clock.at(max(self.clock.now + link.delay_s, link.last), self._parted, twin)

    def _parted(self, link: Link, _: None) -> None:
        if self._drop(link):
            link.state, link.open = "closed", False
            self._held.pop(link, None)

    def pair(self, source: Process, target: Process, delay_s: float) -> tuple[Link, Link]:
        """A new connection; it replaces what the two had, and takes over what waits there."""
        pair = Link(source, target, target.peer, delay_s), Link(target, source, source.peer, delay_s)
        for link, twin in (pair, pair[::-1]):
            before = self.link(link.source, link.peer)
            if before is not None:
                link.queue = before.queue
                before.state, before.open, before.queue = "closed", False, []
                self._held.pop(before, None)
                self._drop(before)
            link.twin, link.state, link.last = twin, "open", self.clock.now
            self._put(link)
        for link in pair:
            if len(link.source.links) > self._parameters.connections_max:
                self._evict(link.source)
        return pair

    def lose(self, link: Link, reason: str) -> None:
        """The sender of this link learns that its connection is gone."""
        if not self._drop(link):
            return
        link.state, link.open = "closed", False
        self._held.pop(link, None)
        self.tell(link.source, ev.PeerLost(link.peer, reason))

    def close(self, link: Link) -> None:
        """By the will of its sender: what it wrote still leaves, what comes is no longer read; the other side sees the end."""
        self._drop(link)
        link.state, link.open = "closed", False
        self._held.pop(link, None)
        twin = link.twin
        if twin is None or twin.state in ("closed", "void"):
            return
        twin.alive = twin.open = False
        twin.state = "stale"
        if not self.blocked(link.source, link.target):
            self.clock.at(max(self.clock.now + link.delay_s, link.last), self.lose, twin, "closed by the other side")

    def disconnect(self, source: Process, effect: fx.Disconnect) -> None:
        link = self.link(source, effect.peer)
        if link is not None:
            self.close(link)

    # --- faults -------------------------------------------------------------------------------------------------------

    def vanish(self, process: Process, *, silent: bool) -> None:
        """The process is dead. Its kernel resets its connections, unless the host has gone with it."""
        for link in process.links.values():
            twin = link.twin
            link.open = False
            if twin is None or twin.state == "closed":
                continue
            twin.open, twin.state = False, "void" if silent else "stale"
            if silent or self.blocked(process, link.target):
                self._find_half_open(twin)
                continue
            link.alive = self._random() < 0.5
            when = self.clock.now + link.delay_s
            self.clock.at(max(when, link.last) if link.alive else when, self.lose, twin, "connection reset")

    def host_is_back(self, process: Process) -> None:
        """Its last process died with the host: whoever still believes in a connection will be told when it sends."""
        for link in process.links.values():
            if link.twin is not None and link.twin.state == "void":
                link.twin.state = "stale"

    def reset(self, link: Link) -> None:
        """What is unread in one direction, or in both, is lost; both ends hear of it, each in its time."""
        twin = link.twin
        if twin is None or link.state != "open" or twin.state != "open":
            return
        lost = self._rng.choice([(True, False), (False, True), (True, True)])
        for end, gone in zip((link, twin), lost, strict=True):
            end.state, end.open = "void", False
            end.alive = not gone
            self.clock.after(self._rng.uniform(0.0, 2 * link.delay_s), self.lose, end, "connection reset")

    def half_open(self, link: Link) -> None:
        """Our end is gone, and we know; the other side does not."""
        twin = link.twin
        if twin is None or link.state != "open" or twin.state != "open":
            return
        twin.state, twin.open, twin.alive = self._rng.choice(["stale", "void"]), False, False
        link.alive = False
        self.lose(link, "connection timed out")
        self._find_half_open(twin)

    def _find_half_open(self, link: Link) -> None:
        """The kernel's keepalive."""
        self.clock.after(half_open_max_s(self._parameters), self.lose, link, "connection timed out")

    def cut(self, here: frozenset[int], there: frozenset[int], *, one_way: bool = False) -> Cut:
        """From now on; ended by heal()."""
        made = Cut(here, there, one_way, self.clock.now)
        self.cuts.append(made)
        self.clock.after(half_open_max_s(self._parameters), self._outlasted, self, made)
        return made

    def started(self, process: Process, before: Process | None) -> None:
        """A life begins, on the host of the one before it if that is given: it is on one side of every cut that lasts."""
        for cut in self.cuts:
            cut.admit(process.index, before.index if before is not None else None, self._rng)

    def _outlasted(self, _: object, cut: Cut) -> None:
        """The cut is longer than the kernels' keepalive: the connections through it are lost, for both ends."""
        if cut in self.cuts:
            for process in list(self.at.values()):
                for link in list(process.links.values()) if process.alive else ():
                    if link.state == "open" and (self.blocked(process, link.target) or self.blocked(link.target, process)):
                        self.lose(link, "connection timed out")

    def heal(self, cut: Cut) -> None:
        """TCP tries again what waited, after a time as long as the cut at most."""
        if cut not in self.cuts:
            return
        self.cuts.remove(cut)
        cut.ended = self.clock.now
        self.healed.append(cut)
        for link, since in list(self._held.items()):
            if not self.blocked(link.source, link.target):
                del self._held[link]
                late_s = self._rng.uniform(0.0, min(self.clock.now - since, RETRANSMIT_MAX_S))
                self.clock.after(late_s, self._retransmit, link)

    def _retransmit(self, link: Link, _: None) -> None:
        if link.state != "open":
            return
        if self.blocked(link.source, link.target):
            self._held.setdefault(link, self.clock.now)
            return
        self.flush(link)

    def blocked(self, source: Process, target: Process) -> bool:
        return any(cut.stops(source.index, target.index) for cut in self.cuts)

    def reached_since(self, a: Process, b: Process, since: float) -> bool:
        """Have the two reached each other, both ways, all the time since then?"""
        cuts = (*self.cuts, *(cut for cut in self.healed if cut.ended > since))
        return not any(cut.stops(a.index, b.index) or cut.stops(b.index, a.index) for cut in cuts)
