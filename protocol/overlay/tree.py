"""One tree as one node sees it: its parent, its children and the members below each, and what is still to be told upwards.

The members of a node are the union of its branches and itself. A member can be in two branches for a moment (it moves, or restarts):
it counts once, by its latest life, and it has gone only when no branch has it. So what is told up is a change of the union, never of a
branch, and the order in which news from two branches arrives does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from operator import xor
from typing import Literal

from protocol.errors import RemoteProtocolError
from protocol.identifiers import RING, NodeId, Peer, TreeId
from protocol.wire.messages import Alive, Multicast
from protocol.wire.values import Departed, MemberInfo, Progress, SubtreeDigest

Cause = Literal["died", "left", "moved", "orphaned"]


REASON_MAX = 500
"""Characters of a reason that is passed up; what a peer says may be longer."""
DEPARTED_MAX = 4096
"""Deaths of lives that we do not list are kept up to so many, until there is a parent to tell."""
COUNT_MAX = 1 << 48
"""No honest sum is larger, and sums of thousands of these still fit the wire."""


def check_of(members: dict[NodeId, MemberInfo]) -> NodeId:
    """XOR over the members of id times (2 incarnation + 1): views that differ have different values, but for chance.

    The product, because with id ^ incarnation two members that both restart (1 -> 2) would cancel out.
    """
    return NodeId(reduce(xor, (member.peer.id * (2 * member.peer.incarnation + 1) % RING for member in members.values()), 0))


def check_alive(message: Alive) -> None:
    """RemoteProtocolError where a child says what, added up and passed on, our own parent would not accept."""
    digest, progress = message.digest, message.progress
    counts = (digest.members, digest.iterations_sum, digest.iterations_min, digest.iterations_max, digest.loss_count)
    if not all(0 <= count <= COUNT_MAX for count in (*counts, digest.replicas_sum, progress.replicas, progress.iteration)):
        raise RemoteProtocolError(f"an Alive counts what cannot be: {digest}, {progress}")
    texts = (*(text for member in message.joined for text in (member.name, member.role)), *(gone.reason for gone in message.departed))
    if any(len(text) > 2 * REASON_MAX for text in texts):
        raise RemoteProtocolError("an Alive carries a name or a reason that is too long")


@dataclass(slots=True)
class Branch:
    """One child and what lives below it, itself included where it is a member."""

    peer: Peer
    heard: float
    members: dict[NodeId, MemberInfo] = field(default_factory=dict)
    digest: SubtreeDigest = field(default_factory=SubtreeDigest)
    progress: Progress = field(default_factory=Progress)

    def agrees(self) -> bool:
        """Is our view of this branch the child's own?"""
        return self.digest.members == len(self.members) and self.digest.check == check_of(self.members)


class Tree:
    """The tree `identifier` as node `me` sees it."""

    def __init__(self, identifier: TreeId, me: Peer) -> None:
        self.id = identifier
        self.me = me
        self.is_root = False
        self.member: MemberInfo | None = None
        self.progress = Progress()
        self.parent: Peer | None = None
        self.parent_heard = 0.0
        self.joining: Peer | None = None
        """Whom the last JOIN was sent to, while its answer is awaited."""
        self.path: tuple[NodeId, ...] = ()
        """From the root to our parent."""
        self.children: dict[NodeId, Branch] = {}
        self.members: dict[NodeId, MemberInfo] = {}
        self.last: Multicast | None = None
        self.tell_all = False
        self.revision = 0
        """Grows with each change of the members."""
        self._joined: dict[NodeId, MemberInfo] = {}
        self._departed: dict[NodeId, Departed] = {}

    @property
    def order(self) -> tuple[int, int]:
        """Of the last multicast seen."""
        return self.last.order if self.last is not None else (0, 0)

    # --- changes of the union -----------------------------------------------------------------------------------------

    def add_self(self, member: MemberInfo) -> None:
        """We become a member."""
        self.member = member
        self._appeared(member.peer.id)

    def remove_self(self, cause: Cause, reason: str) -> None:
        """We are a member no longer."""
        if self.member is not None:
            me, self.member = self.member.peer, None
            self._vanished(Departed(me.id, me.incarnation, cause, reason))

    def update_branch(self, branch: Branch, message: Alive) -> None:
        """What the child says of itself and those below it."""
        branch.digest, branch.progress = message.digest, message.progress
        joined = {member.peer.id: member for member in message.joined}
        if message.full:
            for identifier in [identifier for identifier in branch.members if identifier not in joined]:
                gone = branch.members.pop(identifier)
                self._vanished(Departed(identifier, gone.peer.incarnation, "orphaned", "no longer in its parent's list"))
        for departed in message.departed:
            known = branch.members.get(departed.id)
            if known is not None and known.peer.incarnation <= departed.incarnation:
                del branch.members[departed.id]
            self._vanished(departed)
        for identifier, member in joined.items():
            branch.members[identifier] = member
            self._appeared(identifier)

    def remove_branch(self, identifier: NodeId, cause: Cause, reason: str, silent_ms: int = 0) -> None:
        """The child is gone: `cause` is its own, those below it are orphaned."""
        branch = self.children.pop(identifier)
        for member in branch.members.values():
            mine = member.peer.id == identifier
            self._vanished(
                Departed(
                    member.peer.id,
                    member.peer.incarnation,
                    cause if mine else "orphaned",
                    (reason if mine else f"its parent {identifier.short}: {reason}")[:REASON_MAX],
                    silent_ms if mine else 0,
                    branch.progress.iteration if mine else -1,
                )
            )

    def _elsewhere(self, identifier: NodeId) -> MemberInfo | None:
        """The latest life of this member in any branch, or ourselves."""
        found = [branch.members[identifier] for branch in self.children.values() if identifier in branch.members]
        if self.member is not None and self.member.peer.id == identifier:
            found.append(self.member)
        return max(found, key=lambda member: member.peer.incarnation, default=None)

    def _appeared(self, identifier: NodeId) -> None:
        """A branch has come to list it, perhaps by an earlier life than before."""
        member = self._elsewhere(identifier)
        if member is None or self.members.get(identifier) == member:
            return
        self._list(member)
        self.revision += 1
        departed = self._departed.get(identifier)
        if departed is not None and departed.cause != "died" and departed.incarnation <= member.peer.incarnation:
            del self._departed[identifier]

    def _vanished(self, departed: Departed) -> None:
        known = self.members.get(departed.id)
        if known is None or known.peer.incarnation > departed.incarnation:
            if departed.cause == "died" and len(self._departed) < DEPARTED_MAX:
                # The death of an earlier life: the later one is listed already, but the root wants to know of both.
                self._depart(departed)
                self.revision += 1
            return
        self.revision += 1
        if (other := self._elsewhere(departed.id)) is not None:
            if other != known:
                self._list(other)
            return
        del self.members[departed.id]
        self._joined.pop(departed.id, None)
        self._depart(departed)

    def _list(self, member: MemberInfo) -> None:
        """Members, and what is told up: whoever was told of a later life than this one must forget that first."""
        identifier = member.peer.id
        known = self.members.get(identifier)
        if known is not None and known.peer.incarnation > member.peer.incarnation:
            self._depart(Departed(identifier, known.peer.incarnation, "moved", "an earlier life is listed again"))
        self.members[identifier] = self._joined[identifier] = member

    def _depart(self, departed: Departed) -> None:
        """To be told up: of every life to the latest that is over."""
        before = self._departed.get(departed.id)
        if before is not None and before.incarnation > departed.incarnation:
            departed = replace(departed, incarnation=before.incarnation)
        self._departed[departed.id] = departed

    def take_changes(self) -> tuple[tuple[MemberInfo, ...], tuple[Departed, ...]]:
        """Who came and who went since the last call."""
        joined, departed = tuple(self._joined.values()), tuple(self._departed.values())
        self._joined, self._departed = {}, {}
        return joined, departed

    # --- sums ---------------------------------------------------------------------------------------------------------

    def digest(self) -> SubtreeDigest:
        """Sums over our branches and ourselves."""
        parts = [branch.digest for branch in self.children.values()]
        if self.member is not None:
            done, loss = self.progress.iteration, self.progress.loss
            parts.append(
                SubtreeDigest(
                    members=1,
                    iterations_sum=done,
                    iterations_min=done,
                    iterations_max=done,
                    loss_sum=loss or 0.0,
                    loss_count=0 if loss is None else 1,
                    replicas_sum=self.progress.replicas,
                )
            )
        parts = [part for part in parts if part.members]
        return SubtreeDigest(
            members=len(self.members),
            check=check_of(self.members),
            iterations_sum=sum(part.iterations_sum for part in parts),
            iterations_min=min((part.iterations_min for part in parts), default=0),
            iterations_max=max((part.iterations_max for part in parts), default=0),
            loss_sum=sum(part.loss_sum for part in parts),
            loss_count=sum(part.loss_count for part in parts),
            replicas_sum=sum(part.replicas_sum for part in parts),
        )

    def check_invariants(self) -> None:
        """The members are the union of the branches and ourselves, each by its latest life."""
        union = {self.member.peer.id: self.member.peer.incarnation} if self.member is not None else {}
        for branch in self.children.values():
            for identifier, member in branch.members.items():
                union[identifier] = max(member.peer.incarnation, union.get(identifier, member.peer.incarnation))
        lives = {identifier: member.peer.incarnation for identifier, member in self.members.items()}
        assert lives == union, f"members {lives.items() ^ union.items()} are not the union of the branches, each by its latest life"
        assert self.parent is None or self.parent.id not in self.children, "a parent is also a child"
        assert self.me.id not in self.path, "a node is on its own path"
