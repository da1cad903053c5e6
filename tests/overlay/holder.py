"""A Replication under test, with its leaf set: what the tests of its four parts share."""

from __future__ import annotations

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.replication import Replication
from protocol.parameters import OverlayParameters
from tests.overlay.scene import ME, P, node_id, of, peer, record

TREE = node_id(0x10)
FIVE = [peer(leading) for leading in (0x90, 0x70, 0xA0, 0x60, 0xB0)]
"""The leaf set in order of placement."""
OWNER, ASKER = peer(0x55), peer(0x20)


class Node:
    """A Replication under test, and its leaf set."""

    def __init__(self, *neighbours: Peer, parameters: OverlayParameters = P) -> None:
        self.leaf_set = LeafSet(ME.id, parameters.side)
        self.suspects: set[NodeId] = set()
        self.active = True
        self.machine = Replication(ME, parameters, self.leaf_set, self.suspects.__contains__, lambda: self.active)
        self.transfers: dict[Peer, int] = {}
        self.neighbours = list(neighbours)

    @property
    def neighbours(self) -> list[Peer]:
        return self.leaf_set.alternating()

    @neighbours.setter
    def neighbours(self, peers: list[Peer]) -> None:
        for gone in list(self.leaf_set):
            self.leaf_set.remove(gone.id)
        for one in peers:
            self.leaf_set.insert(one)

    def replicate(self, version: int, now: float = 0.0) -> list[fx.Effect]:
        return self.note(self.machine.replicate(record(ME, version), now))

    def note(self, effects: list[fx.Effect]) -> list[fx.Effect]:
        self.machine.check_invariants()
        self.transfers |= {effect.peer: effect.transfer for effect in of(fx.Push, effects)}
        return effects

    def ends(self, holder: Peer, outcome: str, now: float = 0.1) -> list[fx.Effect]:
        """The push to this holder ends."""
        return self.note(self.machine.push_ended(self.transfers[holder], outcome, "why", now))

    def until(self, end: float) -> list[fx.Effect]:
        seen: list[fx.Effect] = []
        while (when := self.machine.next_deadline()) is not None and when <= end:
            seen += self.note(self.machine.on_timer(when))
        return seen


def targets(effects: list[fx.Effect]) -> list[Peer]:
    return [effect.peer for effect in of(fx.Push, effects)]
