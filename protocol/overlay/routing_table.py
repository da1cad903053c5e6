"""The routing table (Pastry, section 2.2): row n holds nodes that share n digits with us, one for each value of digit n + 1."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.identifiers import NodeId, Peer, digit, shared_prefix


class RoutingTable:
    """The table of `center`. An entry is replaced only by a later life of the same node."""

    def __init__(self, center: NodeId) -> None:
        self.center = center
        self._slots: dict[tuple[int, int], Peer] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._slots.values())

    def _slot(self, identifier: int) -> tuple[int, int]:
        row = shared_prefix(self.center, identifier)
        return row, digit(identifier, row)

    def wants(self, identifier: NodeId) -> bool:
        """Is the slot of this node free?"""
        return identifier != self.center and self._slot(identifier) not in self._slots

    def insert(self, peer: Peer) -> bool:
        """Fill the peer's slot, or renew its own entry; True where the table changed."""
        if peer.id == self.center:
            return False
        slot = self._slot(peer.id)
        entry = self._slots.get(slot)
        if entry is None or (entry.id == peer.id and entry.incarnation < peer.incarnation):
            self._slots[slot] = peer
            return True
        return False

    def remove(self, identifier: NodeId) -> bool:
        if identifier == self.center or (entry := self.get(identifier)) is None:
            return False
        del self._slots[self._slot(entry.id)]
        return True

    def get(self, identifier: NodeId) -> Peer | None:
        """The entry for exactly this node."""
        if identifier == self.center:
            return None
        entry = self._slots.get(self._slot(identifier))
        return entry if entry is not None and entry.id == identifier else None

    def towards(self, key: int) -> Peer | None:
        """The entry that shares one more digit with the key than we do."""
        return None if key == self.center else self._slots.get(self._slot(key))

    def row(self, index: int) -> tuple[Peer, ...]:
        """The entries of one row, by digit."""
        return tuple(self._slots[slot] for slot in sorted(self._slots) if slot[0] == index)
