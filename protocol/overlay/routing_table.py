"""The routing table (Pastry, section 2.1): row n holds nodes that share n digits with us, one for each value of digit n + 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from protocol.identifiers import NodeId, Peer, digit, shared_prefix

NEARER = 0.8
"""A newcomer takes an entry's place when its round trip is shorter by this factor: noise does not make entries change."""


class RoutingTable:
    """The table of `center`. Of two nodes for one place the nearer stays (Pastry 2.5); `distance` gives a round trip, None for unknown."""

    def __init__(self, center: NodeId, distance: Callable[[NodeId], float | None] = lambda identifier: None) -> None:
        self.center = center
        self._distance = distance
        self._slots: dict[tuple[int, int], Peer] = {}
        self._entries: dict[NodeId, Peer] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._slots.values())

    def slot(self, identifier: int) -> tuple[int, int]:
        """Row and column of another id than ours."""
        row = shared_prefix(self.center, identifier)
        return row, digit(identifier, row)

    def wants(self, identifier: NodeId) -> bool:
        """Is the slot of this node free?"""
        return identifier != self.center and self.slot(identifier) not in self._slots

    def insert(self, peer: Peer) -> bool:
        """Fill the peer's slot, renew its own entry, or take the place of one that is farther; True where the table changed."""
        if peer.id == self.center:
            return False
        slot = self.slot(peer.id)
        entry = self._slots.get(slot)
        if entry is not None and entry.id == peer.id:
            if entry.incarnation >= peer.incarnation:
                return False
        elif entry is not None and not self._nearer(peer.id, entry.id):
            return False
        if entry is not None:
            del self._entries[entry.id]
        self._slots[slot] = self._entries[peer.id] = peer
        return True

    def _nearer(self, newcomer: NodeId, entry: NodeId) -> bool:
        ours, theirs = self._distance(newcomer), self._distance(entry)
        return ours is not None and (theirs is None or ours < NEARER * theirs)

    def remove(self, identifier: NodeId) -> bool:
        if self._entries.pop(identifier, None) is None:
            return False
        del self._slots[self.slot(identifier)]
        return True

    def get(self, identifier: NodeId) -> Peer | None:
        """The entry for exactly this node."""
        return self._entries.get(identifier)

    def towards(self, key: int) -> Peer | None:
        """The entry that shares one more digit with the key than we do."""
        return None if key == self.center else self._slots.get(self.slot(key))

    def at(self, slot: tuple[int, int]) -> Peer | None:
        """The entry in this place."""
        return self._slots.get(slot)

    def row(self, index: int) -> tuple[Peer, ...]:
        """The entries of one row, by digit."""
        return tuple(self._slots[slot] for slot in sorted(self._slots) if slot[0] == index)

    @property
    def rows(self) -> int:
        """How many rows, counted from the first, have entries."""
        return max((row for row, _ in self._slots), default=-1) + 1
