"""The messages about who keeps which copies (overlay/takeover.py, far_places.py). A part of messages.py, in whose table they are."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identifiers import NodeId, Peer, TreeId
from protocol.wire.values import RecordSummary


@dataclass(frozen=True, slots=True)
class Stray:
    """Routed with the owner's id as key: `holder` holds this record of an owner that it does not see. Whose is it to keep?

    absent_s: for how long the holder, which would see it, has not; 0 where it would not. seen_s: how long ago it, or another, has seen it
    last; below 0: never, as far as is known.
    """

    record: RecordSummary
    holder: Peer
    absent_s: float = 0.0
    seen_s: float = -1.0


@dataclass(frozen=True, slots=True)
class Release:
    """To a holder that is far from the owner's id: k others hold this version, or a newer one; your copy of it may go. Or, to any holder:
    nobody needs it any more, the tree is `closed`; or it is `forgotten`, its owner has been away for too long."""

    owner: NodeId
    tree: TreeId
    version: int
    incarnation: int
    closed: bool = False
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """To a holder that has told of this version: its owner has been away for absent_s seconds, longer than you know."""

    owner: NodeId
    tree: TreeId
    version: int
    incarnation: int
    absent_s: float


@dataclass(frozen=True, slots=True)
class FarQuery:
    """Routed to the point opposite to the owner's id, and from there, `turned`, to its point in another zone: who is there?"""

    owner: NodeId
    asker: Peer
    turned: bool = False


@dataclass(frozen=True, slots=True)
class FarReply:
    """From the live node closest to the owner's point in another zone: itself and its neighbours. None: there is no other zone."""

    owner: NodeId
    places: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """To a holder of the sender's record in this tree: the tree is closed, nobody needs it any more."""

    tree: TreeId
