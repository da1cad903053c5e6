"""One Pastry under test, and the failure detector's word on its peers as the test dictates it."""

from __future__ import annotations

from math import inf
from random import Random

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.pastry import Pastry
from protocol.parameters import OverlayParameters
from protocol.wire.messages import LeafProbe, LeafProbeReply
from tests.overlay.scene import ME, P


class Ring:
    """`pastry` is ME. Who is suspect or dead, and who was heard when, is what the test writes into these sets."""

    def __init__(self, parameters: OverlayParameters = P, seed: int = 1) -> None:
        self.now = 0.0
        self.suspects: set[NodeId] = set()
        self.dead: set[Peer] = set()
        self.heard: dict[NodeId, float] = {}
        self.patience = 1
        self.pastry = Pastry(ME, parameters, Random(seed), self)

    def is_suspect(self, identifier: NodeId) -> bool:
        return identifier in self.suspects

    def is_dead(self, other: Peer) -> bool:
        return other in self.dead

    def recently_dead(self, now: float) -> tuple[NodeId, ...]:
        return tuple(sorted(other.id for other in self.dead))

    def heard_at(self, identifier: NodeId) -> float:
        return self.heard.get(identifier, -inf)

    def until(self, end: float) -> list[tuple[float, fx.Effect]]:
        """Fire each timer at its time; what followed, and when."""
        seen: list[tuple[float, fx.Effect]] = []
        while (when := self.pastry.next_deadline()) is not None and when <= end:
            seen += [(when, effect) for effect in self.pastry.on_timer(when)]
            self.pastry.check_invariants()
            ahead = self.pastry.next_deadline()
            assert ahead is None or ahead > when, "the timer would ring for ever"
        self.now = max(self.now, end)
        return seen

    def join(self, other: Peer, now: float = 0.0) -> list[fx.Effect]:
        """It probes us, and answers our probe, naming us alone."""
        effects = self.pastry.probe_received(other, LeafProbe((ME,)), now)
        return effects + self.pastry.probe_received(other, LeafProbeReply((ME,)), now)

    def settle(self, now: float = 0.0) -> list[fx.Effect]:
        """Every member names us as its neighbour on both sides, as those next to us would."""
        return [effect for other in self.pastry.leaf_set for effect in self.pastry.probe_received(other, LeafProbeReply((ME,)), now)]


def among(*others: Peer, parameters: OverlayParameters = P) -> Ring:
    """Active, with these as its leaf set; none of them has yet said whom it knows."""
    ring = Ring(parameters)
    ring.pastry.start((), (), 0.0)
    for other in others:
        ring.pastry.probe_received(other, LeafProbe(()), 0.0)
    return ring
