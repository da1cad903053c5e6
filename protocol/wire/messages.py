"""Every message that peers exchange (who keeps which copies: keeping.py; how one is moved: moving.py; a root and its electors:
electing.py), and the one table of them: tag, who sends, who receives, what answers.

A message is a frozen dataclass; its fields are its wire form. Tags are never reused. Adding a field with a default is compatible
with the version before (unknown fields are ignored); anything else raises WIRE_VERSION.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from protocol.identifiers import NodeId, Peer, TreeId
from protocol.wire.electing import RootQuery, RootReply, TermReply, TermRequest
from protocol.wire.keeping import Absent, FarQuery, FarReply, Release, Stray, Withdrawn
from protocol.wire.moving import BulkAccept, BulkFetch, BulkPush, BulkRefuse, BulkStored, BulkWant
from protocol.wire.values import Departed, Holding, MemberInfo, Progress, RecordSummary, SubtreeDigest

Channel = Literal["control", "bulk", "status"]
Phase = Literal["init", "train", "adapt", "done"]
RecoveryMode = Literal["substitute", "exact", "drop"]

# --- session ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First on every connection, from both sides. `receiver` None: whoever lives at this address (a seed, a status client).

    credentials: room for a proof that binds the id to a certificate; empty until there is one.
    """

    wire_version: int
    cluster: str
    channel: Channel
    sender: Peer
    receiver: NodeId | None = None
    credentials: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Last on a connection that is not accepted, or not kept. `code` is for programs, `reason` for people.

    busy, on a control connection that was in use: the sender has too many; it lives, and may be dialled again.
    """

    code: Literal["version", "cluster", "receiver", "superseded", "busy", "malformed"]
    reason: str


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """Answer to a tag that this version does not know."""

    tag: int


# --- Pastry -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """To the left neighbour on the ring, when nothing else was sent to it: each notices its right neighbour's silence (MSPastry 4.1)."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Routed with the joiner's id as key; each hop adds itself and the row that it shares with the joiner."""

    joiner: Peer
    candidates: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinReply:
    """From the live node closest to the joiner: the rows of the way, and its leaf set."""

    candidates: tuple[Peer, ...]
    leaf_set: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class LeafProbe:
    """MSPastry's LS-PROBE: our leaf set and whom we believe failed. The receiver verifies both for itself.

    lacking: the sender's leaf set is short; the reply shall also say who, of all that the receiver knows, is nearest to it.
    active: the sender is in the ring; else it is joining, and delivers and places nobody.
    """

    leaf_set: tuple[Peer, ...]
    failed: tuple[NodeId, ...] = ()
    lacking: bool = False
    active: bool = True


@dataclass(frozen=True, slots=True)
class LeafProbeReply:
    """near: only where the prober lacks members, from leaf set and table, on both sides of it."""

    leaf_set: tuple[Peer, ...]
    failed: tuple[NodeId, ...] = ()
    near: tuple[Peer, ...] = ()
    active: bool = True


@dataclass(frozen=True, slots=True)
class Ping:
    """Does this table entry, or candidate for one, live, and how far is it?"""


@dataclass(frozen=True, slots=True)
class Pong:
    pass


@dataclass(frozen=True, slots=True)
class Measured:
    """The round trip that the sender has measured to the receiver: distance is symmetric, the receiver need not measure (MSPastry 4.2)."""

    rtt_us: int


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What is in row `row` of your routing table? For repair of an entry, and to find nearer ones (Pastry 2.5, MSPastry 4.2)."""

    row: int


@dataclass(frozen=True, slots=True)
class RowReply:
    row: int
    entries: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class IndirectProbe:
    """SWIM's ping-req: the suspect gave me no answer; do you get one?"""

    suspect: Peer


@dataclass(frozen=True, slots=True)
class IndirectAnswer:
    """What the helper's dial came to. `silent` is Lifeguard's nack: the helper lives, the suspect gave it no answer either."""

    suspect: Peer
    verdict: Literal["answered", "refused", "silent"]


@dataclass(frozen=True, slots=True)
class Suspected:
    """A helper tells the suspect who doubts it, so that it can refute: it dials `by` (SWIM 4.2, Lifeguard's buddy system)."""

    by: Peer


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender leaves in order: no suspicion, no recovery."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer incarnation of the receiver lives: the older one leaves and says why."""

    by: Peer


# --- Scribe -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TreeJoin:
    """To the next hop towards the treeId, which becomes a forwarder and joins in turn (Scribe III-A).

    seen: the last multicast that the child has had, as (root's incarnation, sequence).
    """

    tree: TreeId
    seen: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class TreeWelcome:
    """You are my child. `path` runs from the root to me; it begins with the treeId only where the root has been reached."""

    tree: TreeId
    path: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class TreeRefusal:
    """Not through me: I am below you (a cycle), or not active yet."""

    tree: TreeId
    reason: str


@dataclass(frozen=True, slots=True)
class TreeRedirect:
    """I have as many children as I may: join through `child`, which is one of them (push-down)."""

    tree: TreeId
    child: Peer


@dataclass(frozen=True, slots=True)
class TreeLeave:
    tree: TreeId


@dataclass(frozen=True, slots=True)
class Alive:
    """Child to parent each heartbeat, and at once when members change: the digest and who came and went since.

    progress: of the sender itself. full: `joined` is the whole list, what the parent knew before is forgotten; where it is too long
    for one frame, all but the last part say `more`. seen: the order of the last multicast that the sender has passed on.
    """

    tree: TreeId
    digest: SubtreeDigest
    progress: Progress
    joined: tuple[MemberInfo, ...] = ()
    departed: tuple[Departed, ...] = ()
    full: bool = False
    more: bool = False
    seen: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class TreePulse:
    """Parent's answer to Alive, and at once when the path changes. resync: my view differs from your digest, send the whole list.

    lost: the top of this path finds no way to the root, perhaps because that leads through us.
    """

    tree: TreeId
    path: tuple[NodeId, ...]
    resync: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class RoundOpen:
    """The manager's order to the members: work on `phase` of `round` from this theta.

    theta: the record of the tree's root; fetched from the parent in the tree, or from `holder`. None in phase `init`, in which
    the agent `asked` makes theta_0 from the seed. theta_digest: of its tensors, whatever record they are in: a root that takes the place
    of another seals the same theta anew, and work that was begun from it goes on. chosen: the sources that train in this round; the
    others rest. Empty: all of them.
    """

    phase: Phase
    round: int
    seed: int
    mode: RecoveryMode
    holder: Peer
    theta: RecordSummary | None = None
    asked: NodeId | None = None
    theta_digest: bytes = b""
    chosen: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Multicast:
    """Down the tree, in order. `order` is (root's incarnation, sequence), `previous` that of the one before it: a node passes on only what
    follows what it has passed on. resumes: the parent has nothing older, so what lies between is lost, and is said to be.
    """

    tree: TreeId
    order: tuple[int, int]
    body: RoundOpen
    previous: tuple[int, int] = (0, 0)
    resumes: bool = False


# --- replication ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LookUp:
    """Routed with the owner's id as key: who holds which version of its record?

    far: routed to the owner's far places instead, as FarQuery is. all: the answer waits for everyone who can be heard.
    """

    request: int
    owner: NodeId
    tree: TreeId
    asker: Peer
    far: bool = False
    turned: bool = False
    all: bool = False


@dataclass(frozen=True, slots=True)
class LookUpReply:
    """From the live node closest to the owner, for its leaf set and itself; newest first. silent: neighbours that did not answer. settled:
    have those who died near us, the owner beside, been replaced as holders? What they held, one of the silent may be the last to have."""

    request: int
    holdings: tuple[Holding, ...]
    silent: int = 0
    far: bool = False
    settled: bool = True


@dataclass(frozen=True, slots=True)
class HoldingsQuery:
    request: int
    owner: NodeId
    tree: TreeId


@dataclass(frozen=True, slots=True)
class HoldingsReply:
    request: int
    record: RecordSummary | None


# --- routing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes from one application to whoever is closest to a key."""

    payload: bytes


Routable = JoinRequest | LookUp | Stray | FarQuery | RootQuery | Datagram


@dataclass(frozen=True, slots=True)
class Route:
    """The envelope of what is routed by prefix. Delivered by the live node numerically closest to the key, and by nobody else.

    sequence: of this one hop; the receiver acknowledges it. 0: no acknowledgement is wanted.
    """

    key: NodeId
    body: Routable
    hops: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class RouteAck:
    """The next hop has the message, and answers for it from here (MSPastry 3.2)."""

    sequence: int


# --- status channel ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusRequest:
    pass


@dataclass(frozen=True, slots=True)
class StatusReply:
    """A JSON object as text."""

    document: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Leave in order and exit."""


# --- the table --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of the protocol: who sends the message to whom, and what answers it."""

    tag: int
    message: type
    sender: str
    receiver: str
    answer: type | None = None


TABLE = (
    Row(1, Hello, "either side", "the other", Hello),
    Row(2, Refusal, "either side", "the other"),
    Row(3, NotUnderstood, "any node", "any node"),
    Row(10, Heartbeat, "ring neighbour", "ring neighbour"),
    Row(11, JoinRequest, "joiner", "closest node, inside Route", JoinReply),
    Row(12, JoinReply, "closest node", "joiner"),
    Row(13, LeafProbe, "any node", "leaf-set candidate", LeafProbeReply),
    Row(14, LeafProbeReply, "leaf-set candidate", "prober"),
    Row(15, Ping, "any node", "table candidate", Pong),
    Row(16, Pong, "table candidate", "prober"),
    Row(17, Goodbye, "leaving node", "every node it knows"),
    Row(18, Superseded, "any node", "older incarnation"),
    Row(19, Route, "any node", "next hop", RouteAck),
    Row(20, Datagram, "application", "closest node, inside Route"),
    Row(21, RouteAck, "next hop", "hop before"),
    Row(22, Measured, "prober", "table candidate"),
    Row(23, RowRequest, "any node", "table entry", RowReply),
    Row(24, RowReply, "table entry", "asker"),
    Row(25, IndirectProbe, "who suspects", "helper", IndirectAnswer),
    Row(26, IndirectAnswer, "helper", "who suspects"),
    Row(27, Suspected, "helper", "suspect"),
    Row(30, TreeJoin, "child", "next hop to the treeId", TreeWelcome),
    Row(31, TreeWelcome, "parent", "child"),
    Row(32, TreeRefusal, "parent", "child"),
    Row(33, TreeLeave, "child", "parent"),
    Row(34, Alive, "child", "parent", TreePulse),
    Row(35, TreePulse, "parent", "child"),
    Row(36, Multicast, "parent", "child"),
    Row(37, RoundOpen, "root", "members, inside Multicast"),
    Row(38, TreeRedirect, "full parent", "child"),
    Row(40, Stray, "holder", "closest node, inside Route", Release),
    Row(41, Release, "owner or closest node", "holder"),
    Row(42, Withdrawn, "owner", "holder"),
    Row(43, FarQuery, "owner", "closest node, inside Route", FarReply),
    Row(44, FarReply, "closest node", "owner"),
    Row(45, Absent, "closest node", "holder"),
    Row(50, LookUp, "manager or owner", "closest node, inside Route", LookUpReply),
    Row(51, LookUpReply, "closest node", "asker"),
    Row(52, HoldingsQuery, "closest node", "its leaf set", HoldingsReply),
    Row(53, HoldingsReply, "leaf-set member", "closest node"),
    Row(54, RootQuery, "standby", "closest node, inside Route", RootReply),
    Row(55, RootReply, "root, or closest node", "standby"),
    Row(56, TermRequest, "root or standby", "elector", TermReply),
    Row(57, TermReply, "elector", "root or standby"),
    Row(60, BulkPush, "owner", "holder or manager", BulkWant),
    Row(61, BulkFetch, "whoever needs a record", "holder", BulkAccept),
    Row(62, BulkAccept, "holder", "whoever needs a record", BulkWant),
    Row(63, BulkRefuse, "receiver of push or fetch", "the other"),
    Row(64, BulkStored, "holder or manager", "owner"),
    Row(65, BulkWant, "receiver of the record", "its sender"),
    Row(70, StatusRequest, "status client", "daemon", StatusReply),
    Row(71, StatusReply, "daemon", "status client"),
    Row(72, StopRequest, "status client", "daemon", StatusReply),
)

Message = (
    Hello | Refusal | NotUnderstood | Heartbeat | JoinReply | LeafProbe | LeafProbeReply | Ping | Pong | Measured | RowRequest | RowReply
    | IndirectProbe | IndirectAnswer | Suspected | Goodbye | Superseded | Route | RouteAck
    | TreeJoin | TreeWelcome | TreeRefusal | TreeRedirect | TreeLeave | Alive | TreePulse | Multicast
    | LookUpReply | HoldingsQuery | HoldingsReply | Release | Absent | Withdrawn | FarReply | RootReply | TermRequest | TermReply
    | BulkPush | BulkFetch | BulkAccept | BulkWant | BulkRefuse | BulkStored | StatusRequest | StatusReply | StopRequest
)  # fmt: skip
"""What a frame may hold at its top: every row but the bodies that travel inside Route and Multicast."""
