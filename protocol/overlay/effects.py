"""What an overlay node wants done. The driver does it in production, the simulator under virtual time.

An effect whose doing takes time ends in an event (named in its docstring), or never: no machine waits for one without a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.overlay.promise import TreePromise
from protocol.wire.messages import Message, RoundOpen, Routable
from protocol.wire.values import Departed, Holding, MemberInfo, RecordSummary

# --- for the network --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Over the peer's control connection, dialled where there is none. No promise; a failed dial ends in PeerLost."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class KeepPromises:
    """Put these on disk, in place of those before them; carry out the answer when they would survive a power cut, in order."""

    promises: tuple[TreePromise, ...]
    answer: Send


@dataclass(frozen=True, slots=True)
class Dial:
    """A fresh connection with its hello, whatever connections exist: is this process there? Ends in DialEnded, within probe_timeout_s
    times `patience`: both ends, and the hello's way, wait for our own loop."""

    peer: Peer
    patience: int = 1


@dataclass(frozen=True, slots=True)
class DialSeed:
    """Ends in SeedAnswered or SeedFailed."""

    address: Address


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close every connection to this life of the peer, without a PeerLost."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Push:
    """Move the record from the store to `peer` on a connection of its own. Ends in PushEnded."""

    transfer: int
    peer: Peer
    record: RecordSummary


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the record from `peer` into the store and verify it. Ends in FetchEnded.

    others: hold this very record too. They are asked as well where it is large, and for the rest where `peer` does not deliver.
    """

    transfer: int
    peer: Peer
    record: RecordSummary
    others: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelTransfer:
    """The transfer's end is no longer of interest; it need not go on."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Discard:
    """The store may forget this record."""

    record: RecordSummary


# --- for the application ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activated:
    """The node is in the ring: its leaf set has answered."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A datagram whose key is closest to this node."""

    key: NodeId
    payload: bytes
    hops: int


@dataclass(frozen=True, slots=True)
class MulticastReceived:
    """An order from the root, through `parent`: each once and in order. gap: some before it were missed, and nobody near has them still."""

    tree: TreeId
    parent: Peer
    body: RoundOpen
    order: tuple[int, int] = (0, 0)
    gap: bool = False


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """Root only: who came (a known id with a higher incarnation is a restart) and who went."""

    tree: TreeId
    joined: tuple[MemberInfo, ...]
    departed: tuple[Departed, ...]


@dataclass(frozen=True, slots=True)
class Durable:
    """The record is held by its write quorum."""

    record: RecordSummary
    holders: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class RetrievalEnded:
    """record: verified and held here, or None where `holdings` is empty or no holder could deliver.

    complete: everyone who might hold one was heard. sure: fewer than a write quorum were not, so that a holder of what is durable was.
    located_s, transferred_s: how long the look-up and the transfer took; attempts: holders that were asked.
    """

    request: int
    record: RecordSummary | None
    holdings: tuple[Holding, ...]
    located_s: float
    transferred_s: float
    attempts: int
    reason: str = ""
    complete: bool = True
    sure: bool = True

    @property
    def missed(self) -> tuple[Holding, ...]:
        """Who was said to hold a newer version than came."""
        return tuple(holding for holding in self.holdings if self.record is None or holding.record.order > self.record.order)

    @property
    def none_left(self) -> bool:
        """Everyone who might hold one was heard, and nobody does."""
        return self.complete and not self.holdings


@dataclass(frozen=True, slots=True)
class RootAnswered:
    """By `peer`: the tree's root, or, where `rooted` is False, the live node closest to the treeId: the ring has no root of it. version:
    the newest of the tree's record that it knows of, committed or about to be; 0 for none."""

    request: int
    peer: Peer
    rooted: bool
    term: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class ElectorAnswered:
    """One elector's word on a term. gone: its host refuses, its process is over, and with it its promises.

    promised: the latest term that it has promised; version, written: the newest that it agreed to before, and the term of its writer.
    remembers: no promise of an earlier life of it is of account any more (terms.py, rule 8).
    """

    request: int
    elector: NodeId
    answer: Literal["granted", "refused", "gone"]
    promised: int = 0
    version: int = 0
    written: int = 0
    reason: str = ""
    remembers: bool = False


@dataclass(frozen=True, slots=True)
class Quit:
    """This node must stop: a newer incarnation of it lives, `by`."""

    reason: str
    by: Peer


@dataclass(frozen=True, slots=True)
class Notify:
    """A fact for logs and metrics, such as `peer_died` with peer and reason. Decides nothing."""

    fact: str
    details: Mapping[str, object] = field(default_factory=dict)


# --- between the machines of one node (node.py consumes these, they never leave it) -----------------------------------


@dataclass(frozen=True, slots=True)
class PeerDied:
    """Verified: this life of the peer is over, or it left in order. silent_s: since it was last heard; in_silence: nobody said so, neither
    its host nor its next life, so it may be we who are cut off.
    """

    peer: Peer
    reason: str
    in_order: bool = False
    silent_s: float = 0.0
    in_silence: bool = False


@dataclass(frozen=True, slots=True)
class PeerCleared:
    """A suspect, or one remembered as dead, has answered: it lives. missed_since: this very life was believed dead from then on."""

    peer: Peer
    missed_since: float | None = None


@dataclass(frozen=True, slots=True)
class LeafSetChanged:
    """The ring's neighbourhood moved, or the verdict on a suspect in it fell."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A machine missed something from a peer: the detector is to find out whether it lives. hearsay: others only have missed it."""

    peer: Peer
    reason: str
    hearsay: bool = False


@dataclass(frozen=True, slots=True)
class RouteBody:
    """Route this body towards key."""

    key: NodeId
    body: Routable


@dataclass(frozen=True, slots=True)
class DeliverBody:
    """A routed body has arrived at the node closest to its key."""

    key: NodeId
    body: Routable
    hops: int


Effect = (
    Send | KeepPromises | Dial | DialSeed | Disconnect | Push | Fetch | CancelTransfer | Discard
    | Activated | Delivered | MulticastReceived | MembersChanged | Durable | RetrievalEnded | RootAnswered | ElectorAnswered | Quit | Notify
    | PeerDied | PeerCleared | LeafSetChanged | Suspect | RouteBody | DeliverBody
)  # fmt: skip
