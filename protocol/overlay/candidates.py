"""Candidates of the leaf set: who is under probe, and has not answered. A part of the machine Pastry.

1. Of all members and candidates, a newcomer must be among the L/2 nearest on one of our sides: what lies farther is not worth a probe.
2. What a peer lists costs a bounded number of probes: at most CANDIDATES_PER_LEAF candidates for each place in the leaf set.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from protocol.identifiers import NodeId, Peer, clockwise
from protocol.overlay.leaf_set import LeafSet

CANDIDATES_PER_LEAF = 16


class Candidates:
    """Candidates for this leaf set, by id; of each, how often its probe has not been answered."""

    def __init__(self, leaf_set: LeafSet) -> None:
        self._leaf_set = leaf_set
        self._peers: dict[NodeId, Peer] = {}
        self._missed: dict[NodeId, int] = {}
        self._ways: list[int] = []
        """How far those that are no members are, clockwise, in order."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._peers)

    def __contains__(self, identifier: NodeId) -> bool:
        return identifier in self._peers

    def get(self, identifier: NodeId) -> Peer | None:
        return self._peers.get(identifier)

    def wanted(self, peer: Peer) -> bool:
        """Is this peer worth a probe, and not yet under one? A later life of a member is."""
        identifier, around = peer.id, self._leaf_set
        if identifier in self._peers or len(self._peers) >= 2 * CANDIDATES_PER_LEAF * around.side:
            return False
        member = around.get(identifier)
        if member is not None:
            return member.incarnation < peer.incarnation
        if not around.admits(identifier):
            return False
        if not self._ways:
            return True
        way = clockwise(around.center, identifier)
        nearer = bisect_left(around.ways, way) + bisect_left(self._ways, way)
        return min(nearer, len(around) + len(self._ways) - nearer) < around.side

    def add(self, peer: Peer) -> None:
        """The peer is being probed."""
        self._peers[peer.id] = peer
        if peer.id not in self._leaf_set:
            insort(self._ways, clockwise(self._leaf_set.center, peer.id))

    def remove(self, identifier: NodeId) -> bool:
        """It has answered, or is no candidate any more; False where it was none."""
        self._missed.pop(identifier, None)
        if self._peers.pop(identifier, None) is None:
            return False
        if identifier not in self._leaf_set:
            del self._ways[bisect_left(self._ways, clockwise(self._leaf_set.center, identifier))]
        return True

    def missed(self, identifier: NodeId) -> int:
        """It has not answered; how often that has happened."""
        self._missed[identifier] = count = self._missed.get(identifier, 0) + 1
        return count

    def leaf_set_changed(self) -> None:
        """To be called whenever it has: candidates may have become members, or members candidates."""
        center = self._leaf_set.center
        self._ways = sorted(clockwise(center, identifier) for identifier in self._peers if identifier not in self._leaf_set)

    def check_invariants(self) -> None:
        ways = [clockwise(self._leaf_set.center, identifier) for identifier in self._peers if identifier not in self._leaf_set]
        assert self._ways == sorted(ways), "the ways of the candidates are not kept"
        assert self._missed.keys() <= self._peers.keys(), "a miss of no candidate"
