"""What an overlay node is told. Each is handled at a time `now` that the caller gives.

From the network: what was heard, and how the slow things that effects started have ended (they may also never end: every
machine sets its own deadline). From the application above: what it wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.wire.messages import Message, RoundOpen
from protocol.wire.values import MemberInfo, Progress, RecordSummary

# --- from the network -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message from a peer that its connection's hello has named."""

    peer: Peer
    message: Message


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The last control connection with this peer was reset or closed, or could not be made."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class DialEnded:
    """A fresh dial to `peer` ended. `found`: who answered with a hello (perhaps a later incarnation), None where nobody did.

    refused: the host answered that nobody listens there: the process is gone for certain.
    """

    peer: Peer
    found: Peer | None
    refused: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SeedAnswered:
    """The node at a seed's address said hello."""

    address: Address
    peer: Peer


@dataclass(frozen=True, slots=True)
class SeedFailed:
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class PushEnded:
    """A Push effect ended. Refused: the holder answered no (full), and is not to be asked again for this record."""

    transfer: int
    outcome: Literal["stored", "refused", "failed"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """A Fetch effect ended; where `record` is given, its bytes are verified and held here."""

    transfer: int
    record: RecordSummary | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecordHeld:
    """The store now holds this record, pushed by its owner or found on disk at the start."""

    record: RecordSummary


@dataclass(frozen=True, slots=True)
class TimerFired:
    """`next_deadline()` has come. Early or spurious ones do no harm."""


# --- from the application ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """Enter the ring. seeds: named by the user; hints: peers remembered from an earlier life.

    Without seeds, and when no hint answers, the node is a ring of one; with seeds it keeps trying. shared: another node listens at our own
    address, which is then a seed like any other; else it is passed over.
    """

    seeds: tuple[Address, ...] = ()
    hints: tuple[Address, ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye to everyone known and stop."""


@dataclass(frozen=True, slots=True)
class RouteMessage:
    """Deliver bytes at the live node closest to key."""

    key: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class CreateTree:
    """Root the tree here; this node's id is the treeId."""

    tree: TreeId


@dataclass(frozen=True, slots=True)
class JoinTree:
    """Become a member."""

    tree: TreeId
    member: MemberInfo


@dataclass(frozen=True, slots=True)
class LeaveTree:
    tree: TreeId


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """How far this member is; goes up with the next alive message."""

    tree: TreeId
    progress: Progress


@dataclass(frozen=True, slots=True)
class SendMulticast:
    """Root only: down the tree to every member."""

    tree: TreeId
    body: RoundOpen


@dataclass(frozen=True, slots=True)
class Replicate:
    """Keep k replicas of this record, which the store already holds; a newer version supersedes it."""

    record: RecordSummary


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Find the newest record of (owner, tree) and bring it here; answered by RetrievalEnded with the same request number."""

    request: int
    owner: NodeId
    tree: TreeId


@dataclass(frozen=True, slots=True)
class AskRoot:
    """Who roots this tree? Ends in RootAnswered, or never."""

    request: int
    tree: TreeId


@dataclass(frozen=True, slots=True)
class AskElectors:
    """May this term go on, with this version? Each elector that answers, or is gone, ends in an ElectorAnswered; the silent never do.

    Asked again under the same number, it goes to those of `electors` alone.
    """

    request: int
    tree: TreeId
    term: int
    version: int
    electors: tuple[Peer, ...]
    sounding: bool = False


Event = (
    MessageReceived | PeerLost | DialEnded | SeedAnswered | SeedFailed | PushEnded | FetchEnded | RecordHeld | TimerFired
    | Started | Leave | RouteMessage | CreateTree | JoinTree | LeaveTree | ReportProgress | SendMulticast | Replicate | Retrieve
    | AskRoot | AskElectors
)  # fmt: skip
