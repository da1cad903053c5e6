"""What the other machines may ask the failure detector: its word on peers, and how patient this node is to be."""

from __future__ import annotations

from typing import Protocol

from protocol.identifiers import NodeId, Peer


class Judgement(Protocol):
    """Kept by the detector (detector.py); who asks changes nothing."""

    @property
    def patience(self) -> int:
        """By what every timeout of this node is multiplied now: 1 when it is well."""

    def is_suspect(self, identifier: NodeId) -> bool:
        """Is it on trial?"""

    def is_dead(self, peer: Peer) -> bool:
        """Is this life of the peer known to be over?"""

    def recently_dead(self, now: float) -> tuple[NodeId, ...]:
        """Whom we have lately found dead, latest first."""

    def heard_at(self, identifier: NodeId) -> float:
        """When this peer was last heard; -inf for never."""
