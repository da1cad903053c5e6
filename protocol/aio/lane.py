"""All control connections between one of our nodes and one life of one peer, and what waits to be sent on them.

There is more than one when both sides dialled at the same moment, or when a fresh dial found an old life well. Sends stay on
the first; a fresh dial's link becomes the first, for it was made because the other was in doubt. What neither side uses any more is a
spare, and the pool parts with it. Messages wait while a connection is being made or is full, up to a limit; what comes beyond it is
dropped, which the overlay expects of a network.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from protocol.aio.link import Link
from protocol.identifiers import NodeId, Peer

logger = logging.getLogger(__name__)

LINKS_MAX = 4
"""Connections kept with one life of a peer; beyond, the oldest that is not in use is closed."""
QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""Of messages that wait for one peer, beside the limit on their number: a peer that reads nothing costs no more than this."""

LaneKey = tuple[NodeId, NodeId, int]


class Lane:
    """Made with nothing in it: the caller dials, or attaches a link that came in."""

    def __init__(self, local: Peer, remote: Peer, send_queue_max: int) -> None:
        self.local = local
        self.remote = remote
        self.links: list[Link] = []
        self.dialling: asyncio.Task[None] | None = None
        self.tidied = False  # the pool looks for spares until there is one link
        self.dropped = 0  # messages, since the lane was made
        self._queue: deque[bytes] | tuple[()] = ()  # a deque while there is something in it: an empty one has 760 bytes
        self._queue_bytes = 0
        self._queue_max = send_queue_max
        self._full = False  # said already

    @property
    def key(self) -> LaneKey:
        return self.local.id, self.remote.id, self.remote.incarnation

    @property
    def waiting(self) -> int:
        """Messages that are kept."""
        return len(self._queue)

    @property
    def _current(self) -> Link | None:
        """The link that sends stay on."""
        return next((link for link in self.links if not link.closing), None)

    def send(self, data: bytes) -> None:
        """One frame: written, kept, or dropped with a notice."""
        link = self._current
        if not self._queue and link is not None and not link.paused:
            link.send_frame(data)
        elif len(self._queue) < self._queue_max and self._queue_bytes + len(data) <= QUEUE_BYTES_MAX:
            if isinstance(self._queue, tuple):
                self._queue = deque()
            self._queue.append(data)
            self._queue_bytes += len(data)
        else:
            self.dropped += 1
            if not self._full:
                self._full = True
                logger.warning("%s reads too slowly: messages to it are dropped while %d wait", self.remote, len(self._queue))

    def attach(self, link: Link, *, first: bool) -> None:
        """Takes the link in; what has waited leaves. Beyond LINKS_MAX the one that was not used for longest is closed: on any of the others
        the peer may be sending."""
        if first:
            self.links.insert(0, link)
        else:
            self.links.append(link)
        link.on_writable = self._flush
        if len(self.links) > LINKS_MAX:
            idlest = min(self.links[1:], key=lambda other: other.used_at)
            idlest.close("there are newer connections with this peer")
        self._flush()

    def detach(self, link: Link) -> None:
        """The link has ended, or is about to; the next one, if any, goes on."""
        self.links.remove(link)
        self._flush()

    def spares(self, unused_since: float) -> list[Link]:
        """The links beside the one that sends stay on that have carried nothing in either direction since then (loop time)."""
        current = self._current
        return [link for link in self.links if link is not current and link.used_at < unused_since and not link.closing]

    def shut(self, reason: str) -> None:
        """Closes everything and forgets what waits."""
        self._queue = ()
        self._queue_bytes = 0
        if self.dialling is not None:
            self.dialling.cancel()
        for link in list(self.links):
            link.close(reason)

    def _flush(self) -> None:
        link = self._current
        while isinstance(self._queue, deque) and link is not None and not link.paused:
            data = self._queue.popleft()
            self._queue_bytes -= len(data)
            self._queue = self._queue or ()
            link.send_frame(data)
        if not self._queue:
            self._full = False
