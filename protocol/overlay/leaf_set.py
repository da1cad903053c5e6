"""The leaf set (Pastry, section 2.1): the L/2 nodes that follow us on the ring and the L/2 that precede us.

In a ring of at most L + 1 nodes the two sides overlap and the leaf set is everybody: it then covers every key. A side is full when
it holds L/2 nodes; with fewer than L nodes known, each may be on both sides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from itertools import zip_longest

from protocol.identifiers import NodeId, Peer, clockwise, rank


class LeafSet:
    """The neighbours of `center`, at most `side` on each side."""

    def __init__(self, center: NodeId, side: int) -> None:
        self.center = center
        self.side = side
        self._peers: dict[NodeId, Peer] = {}
        self._around: list[Peer] = []
        """Every member in the order of the ring, beginning after us."""
        self.ways: list[int] = []
        """How far each of these is, clockwise, in order."""
        self.right: tuple[Peer, ...] = ()
        """Successors, nearest first."""
        self.left: tuple[Peer, ...] = ()
        """Predecessors, nearest first."""
        self._alternating: list[Peer] | None = []
        """Found when it is asked for, and good until the set changes."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        """In the order of the ring, beginning after us."""
        return iter(tuple(self._around))

    def __contains__(self, identifier: NodeId) -> bool:
        return identifier in self._peers

    def get(self, identifier: NodeId) -> Peer | None:
        return self._peers.get(identifier)

    @property
    def overlaps(self) -> bool:
        """Fewer than L nodes are known: they may be the whole ring."""
        return len(self._peers) < 2 * self.side

    def admits(self, identifier: NodeId) -> bool:
        """Would this node belong to one of the sides?"""
        if identifier == self.center or identifier in self._peers:
            return False
        if self.overlaps:
            return True
        way = clockwise(self.center, identifier)
        return way < self.ways[self.side - 1] or way > self.ways[-self.side]

    def insert(self, peer: Peer) -> bool:
        """Take the peer in, or a later life of one that is in; True where the set changed."""
        known = self._peers.get(peer.id)
        if known is not None:
            if known == peer or known.incarnation > peer.incarnation:
                return False
            self._peers[peer.id] = peer
            self._arrange()
            return True
        if not self.admits(peer.id):
            return False
        self._peers[peer.id] = peer
        self._arrange()
        return True

    def remove(self, identifier: NodeId) -> bool:
        if self._peers.pop(identifier, None) is None:
            return False
        self._arrange()
        return True

    def _arrange(self) -> None:
        around = sorted(self._peers.values(), key=lambda peer: clockwise(self.center, peer.id))
        self.right = tuple(around[: self.side])
        self.left = tuple(reversed(around[-self.side :]))
        if len(around) > 2 * self.side:
            around = around[: self.side] + around[-self.side :]
            self._peers = {peer.id: peer for peer in around}
        self._around, self._alternating = around, None
        self.ways = [clockwise(self.center, peer.id) for peer in around]

    def covers(self, key: int) -> bool:
        """Is the key within our range, so that its closest node is here or us?"""
        if self.overlaps:
            return True
        way = clockwise(self.center, key)
        return way <= self.ways[self.side - 1] or way >= self.ways[-self.side]

    def closest(self, key: int, avoid: Collection[NodeId] = ()) -> Peer | None:
        """The member closest to key, none of `avoid`; None where we are closer than all of them."""
        if not self._around:
            return None
        best, found = rank(key, self.center), None
        around = self._around
        if not avoid:  # only the members on either side of the key can be closest
            index = bisect_left(self.ways, clockwise(self.center, key))
            around = [around[index - 1], around[index % len(around)]]
        for peer in around:
            if peer.id not in avoid and (near := rank(key, peer.id)) < best:
                best, found = near, peer
        return found

    def alternating(self) -> list[Peer]:
        """Every member once, nearest first, right and left in turn: the order in which replicas are placed."""
        if self._alternating is None:
            order: dict[NodeId, Peer] = {}
            for pair in zip_longest(self.right, self.left):
                for peer in pair:
                    if peer is not None:
                        order.setdefault(peer.id, peer)
            self._alternating = list(order.values())
        return list(self._alternating)
