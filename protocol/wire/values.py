"""The values that messages carry: what is said of a record, a member, a departure, a subtree. Frozen; their fields are their wire form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.identifiers import NodeId, Peer, TreeId

DIGEST_BYTES = 32
_NOBODY = NodeId(0)  # the XOR over no members


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What is said of a record without its bytes. `version` only grows in one life of its owner, `incarnation`, and goes on from what that
    life has found; `order` says which of several records is the newest.

    round, iteration: the job that the record was taken in and how many of its iterations were done.
    complete: the record holds the finished contribution of that round.
    ValueError for a digest that is none: summaries of many records travel in one message.
    """

    owner: NodeId
    tree: TreeId
    version: int
    incarnation: int
    round: int
    iteration: int
    complete: bool
    record_bytes: int
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise ValueError(f"a record's digest has {DIGEST_BYTES} bytes, not {len(self.digest)}")

    @property
    def key(self) -> tuple[NodeId, TreeId]:
        return self.owner, self.tree

    @property
    def order(self) -> tuple[int, int]:
        """The newest of several is the largest of these: first the life, then its count. An earlier life may have counted further, on
        the other side of a cut, or in a version that was never committed (overlay/terms.py, rule 2): it is over all the same.
        """
        return self.incarnation, self.version


@dataclass(frozen=True, slots=True)
class Holding:
    """One holder of one record."""

    holder: Peer
    record: RecordSummary


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """One member of a tree, as the root knows it by name."""

    peer: Peer
    name: str
    role: str
    pid: int


@dataclass(frozen=True, slots=True)
class Departed:
    """One life of a member that a subtree no longer has, and why."""

    id: NodeId
    incarnation: int
    cause: Literal["died", "left", "moved", "orphaned"]
    reason: str
    silent_ms: int = 0
    iteration: int = -1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one member is in its job, and its last loss (None before the first)."""

    round: int = -1
    iteration: int = 0
    loss: float | None = None
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class SubtreeDigest:
    """Sums over the members of a subtree: root traffic grows with its fan-out, not with N.

    check: XOR over members of id x (2 incarnation + 1) mod 2**128 (overlay/roster.py); a parent whose own view gives another value asks
    for the whole list.
    """

    members: int = 0
    check: NodeId = _NOBODY
    iterations_sum: int = 0
    iterations_min: int = 0
    iterations_max: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    replicas_sum: int = 0
