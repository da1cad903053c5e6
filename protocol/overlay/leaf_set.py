"""The leaf set (Pastry, section 2.2): the L/2 nodes that follow us on the ring and the L/2 that precede us.

In a ring of at most L + 1 nodes the two sides overlap and the leaf set is everybody: it then covers every key. A side is full when
it holds L/2 nodes; we believe the ring to be small as long as fewer than L nodes are known.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.identifiers import NodeId, Peer, clockwise, rank


class LeafSet:
    """The neighbours of `center`, at most `side` on each side."""

    def __init__(self, center: NodeId, side: int) -> None:
        self.center = center
        self.side = side
        self._peers: dict[NodeId, Peer] = {}
        self.right: tuple[Peer, ...] = ()
        """Successors, nearest first."""
        self.left: tuple[Peer, ...] = ()
        """Predecessors, nearest first."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        """In the order of the ring, beginning after us."""
        return iter(sorted(self._peers.values(), key=lambda peer: clockwise(self.center, peer.id)))

    def __contains__(self, identifier: NodeId) -> bool:
        return identifier in self._peers

    def get(self, identifier: NodeId) -> Peer | None:
        return self._peers.get(identifier)

    @property
    def overlaps(self) -> bool:
        """Fewer than L nodes are known: we believe that they are the whole ring."""
        return len(self._peers) < 2 * self.side

    def admits(self, identifier: NodeId) -> bool:
        """Would this node belong to one of the sides?"""
        if identifier == self.center or identifier in self._peers:
            return False
        if self.overlaps:
            return True
        return clockwise(self.center, identifier) < clockwise(self.center, self.right[-1].id) or clockwise(
            identifier, self.center
        ) < clockwise(self.left[-1].id, self.center)

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
        around = list(self)
        self.right = tuple(around[: self.side])
        self.left = tuple(reversed(around[-self.side :]))
        keep = {peer.id for peer in self.right} | {peer.id for peer in self.left}
        self._peers = {identifier: peer for identifier, peer in self._peers.items() if identifier in keep}

    def covers(self, key: int) -> bool:
        """Is the key within our range, so that its closest node is here or us?"""
        if self.overlaps:
            return True
        first, last = self.left[-1].id, self.right[-1].id
        return clockwise(first, key) <= clockwise(first, last)

    def closest(self, key: int, avoid: NodeId | None = None) -> Peer | None:
        """The member closest to key, other than `avoid`; None where we are closer than all of them."""
        best, found = rank(key, self.center), None
        for peer in self._peers.values():
            if peer.id != avoid and rank(key, peer.id) < best:
                best, found = rank(key, peer.id), peer
        return found

    def alternating(self) -> list[Peer]:
        """Every member once, nearest first, right and left in turn: the order in which replicas are placed."""
        order: list[Peer] = []
        for index in range(self.side):
            for side in (self.right, self.left):
                if index < len(side) and side[index] not in order:
                    order.append(side[index])
        return order
