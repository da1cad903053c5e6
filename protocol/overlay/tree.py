"""One tree as one node sees it: its parent, its children and the members below each, and what is still to be told upwards.

The members of a node are the union of its branches and itself. A member can be in two branches for a moment (it moves, or restarts):
it counts once, by its latest life, and it has gone only when no branch has it. So what is told up is a change of the union, never of a
branch, and the order in which news from two branches arrives does not matter.

What is told up is cut into parts that fit a frame; the digest with each is that of the end, so only the last part is compared. A whole
list counts when its last part is there: one that breaks off is forgotten, and the comparison will show what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from protocol.errors import RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.multicasts import NOTHING, Multicasts, Order, follows
from protocol.overlay.roster import Roster, check_of
from protocol.wire.messages import Alive, Multicast, TreePulse
from protocol.wire.values import Departed, MemberInfo, Progress, SubtreeDigest

Cause = Literal["died", "left", "moved", "orphaned"]

REASON_MAX = 500
"""Characters of a reason that is passed up; what a peer says may be longer."""
DEPARTED_MAX = 4096
"""Deaths of lives that we do not list are kept up to so many, until there is a parent to tell."""
COUNT_MAX = 1 << 48
"""No honest sum is larger, and sums of thousands of these still fit the wire."""
PART_MAX = 500
"""Members, and departures, in one Alive."""
PART_CHARACTERS_MAX = 50_000
"""Characters of their names, roles and reasons: at four bytes each, and with all the rest, a part stays under half of a control frame."""
SUBTREE_MAX = 1 << 16
"""Members below one child: one that lists more is not believed."""


def check_alive(branch: Branch, message: Alive) -> None:
    """RemoteProtocolError where a child says what, added up and passed on, our own parent would not accept; or lists without end."""
    digest, progress = message.digest, message.progress
    if not (
        0 <= digest.members <= COUNT_MAX
        and 0 <= digest.iterations_sum <= COUNT_MAX
        and 0 <= digest.iterations_min <= COUNT_MAX
        and 0 <= digest.iterations_max <= COUNT_MAX
        and 0 <= digest.loss_count <= COUNT_MAX
        and 0 <= digest.replicas_sum <= COUNT_MAX
        and 0 <= progress.replicas <= COUNT_MAX
        and 0 <= progress.iteration <= COUNT_MAX
    ):
        raise RemoteProtocolError(f"an Alive counts what cannot be: {digest}, {progress}")
    if not (message.joined or message.departed):
        return
    texts = (*(text for member in message.joined for text in (member.name, member.role)), *(gone.reason for gone in message.departed))
    if any(len(text) > 2 * REASON_MAX for text in texts):
        raise RemoteProtocolError("an Alive carries a name or a reason that is too long")
    if (len(branch.parts) if message.full else len(branch.members)) + len(message.joined) > SUBTREE_MAX + PART_MAX:
        raise RemoteProtocolError(f"more than {SUBTREE_MAX} members below one child")


@dataclass(slots=True)
class Branch:
    """One child and what lives below it, itself included where it is a member."""

    peer: Peer
    heard: float
    members: Roster = field(default_factory=Roster)
    digest: SubtreeDigest = field(default_factory=SubtreeDigest)
    progress: Progress = field(default_factory=Progress)
    parts: dict[NodeId, MemberInfo] = field(default_factory=dict)
    """Of a whole list, as far as it has come."""
    ask_again_at: float = 0.0
    """Its whole list has been asked for, and is awaited until then."""
    redirected: int = 0
    """Newcomers that were handed to it since its last Alive."""
    seen: Order = NOTHING
    """The last multicast that it has had, as far as we know: what it said, or what we have sent since."""
    floor: Order = NOTHING
    """It came as a newcomer when this one was over: it is sent none that old."""
    served_at: float = -inf
    """When it was last sent anew what it lacked."""

    def agrees(self) -> bool:
        """Is our view of this branch the child's own?"""
        return self.digest.members == len(self.members) and self.digest.check == self.members.check


class Tree:
    """The tree `identifier` as node `me` sees it."""

    def __init__(self, identifier: TreeId, me: Peer, kept_max: int) -> None:
        """kept_max: multicasts that are kept for children that missed some."""
        self.id = identifier
        self.me = me
        self.is_root = False
        self.member: MemberInfo | None = None
        self.progress = Progress()
        self.parent: Peer | None = None
        self.parent_heard = 0.0
        self.joining: Peer | None = None
        """Whom the last JOIN was sent to, while its answer is awaited."""
        self.attempts = 0
        """JOINs since a parent was last there for a heartbeat."""
        self.redirects = 0
        """How often the last JOIN was handed on."""
        self.went_at = -inf
        """When we last left a parent for the way that Pastry knows."""
        self.path: tuple[NodeId, ...] = ()
        """From the root to our parent."""
        self.lost = False
        """Whoever is at the top of this piece of a tree finds no way to the root."""
        self.pulse = TreePulse(identifier, (me.id,))
        """What we answer to an Alive."""
        self.children: dict[NodeId, Branch] = {}
        self.members = Roster()
        self.multicasts = Multicasts(kept_max)
        self.asked = False
        """The parent was told at once, in this heartbeat, that we lack multicasts."""
        self.tell_all = False
        self.told_all_at = -inf
        self.beats = 0
        """Heartbeats until the whole list is told without being asked for."""
        self.revision = 0
        """Grows with each change of the members."""
        self._joined: dict[NodeId, MemberInfo] = {}
        self._departed: dict[NodeId, Departed] = {}

    @property
    def order(self) -> Order:
        """Of the last multicast passed on."""
        return self.multicasts.order

    @property
    def reaches_root(self) -> bool:
        """Does the path that our parent told begin at the root?"""
        return self.path[:1] == (self.id,)

    def place(self, path: tuple[NodeId, ...], lost: bool) -> bool:
        """Hang at the end of this path. False where that is no news."""
        if path == self.path and lost == self.lost:
            return False
        self.path, self.lost = path, lost
        self.pulse = TreePulse(self.id, (*path, self.me.id), lost=lost)
        return True

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
        branch.redirected = 0
        if not (message.joined or message.departed or message.full or branch.parts):
            return
        for departed in message.departed:
            known = branch.members.get(departed.id)
            if known is not None and known.peer.incarnation <= departed.incarnation:
                del branch.members[departed.id]
            self._vanished(departed)
        joined = {member.peer.id: member for member in message.joined}
        if message.full:
            branch.parts.update(joined)
            if message.more:
                return
            joined = branch.parts
            for identifier in [identifier for identifier in branch.members if identifier not in joined]:
                gone = branch.members.pop(identifier)
                self._vanished(Departed(identifier, gone.peer.incarnation, "orphaned", "no longer in its parent's list"))
        branch.parts = {}
        for identifier, member in joined.items():
            if branch.members.get(identifier) != member:
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

    def list_anew(self) -> None:
        """Whom we tell has changed: every member is news to it."""
        self._joined = dict(self.members)

    def reports(self) -> list[Alive]:
        """What the parent is to be told now: one message, or the parts of one that is too long for a frame."""
        digest, seen = self.digest(), self.seen()
        full, self.tell_all = self.tell_all, False
        if full:
            self.list_anew()
        if not (full or self._joined or self._departed):
            return [Alive(self.id, digest, self.progress, seen=seen)]
        parts = list(_cut(*self.take_changes()))
        last = len(parts) - 1
        return [
            Alive(self.id, digest, self.progress, joined, departed, full, index < last, seen)
            for index, (joined, departed) in enumerate(parts)
        ]

    # --- multicasts ---------------------------------------------------------------------------------------------------

    def seen(self) -> Order:
        """What the parent is told: where we stand, or a child further back whom we cannot serve."""
        told = self.multicasts.seen([branch.seen for branch in self.children.values()])
        if self.member is None or self.multicasts.order != NOTHING or told == NOTHING:
            return told
        # A member without any: its child may have had the last one, and it has not.
        return told[0], max(told[1], 1) - 1

    def pass_on(self, message: Multicast, *, old: bool) -> list[tuple[Peer, Multicast]]:
        """To the children; what we had before, only to those that lack it. Who waits for what lies between is sent nothing yet."""
        out: list[tuple[Peer, Multicast]] = []
        for branch in self.children.values():
            if old and message.order <= branch.seen:
                continue
            if message.resumes or follows(message, branch.seen):
                out.append((branch.peer, message))
            elif branch.seen == NOTHING:
                out.append((branch.peer, replace(message, resumes=True)))
            else:
                continue
            branch.seen = max(branch.seen, message.order)
        return out

    def welcome(self, branch: Branch, seen: Order) -> None:
        """Where the child says that it stands; a newcomer begins with the last multicast."""
        branch.parts = {}
        if seen > NOTHING:
            branch.seen, branch.floor = seen, NOTHING
        else:
            branch.seen, branch.floor = NOTHING, max(branch.floor, self.multicasts.begin())

    def lacks(self, branch: Branch, seen: Order) -> bool:
        """Is the child, which says that it stands there, behind us?"""
        return max(seen, branch.floor) < self.order

    def serve(self, branch: Branch) -> list[tuple[Peer, Multicast]]:
        """What the child lacks and we keep. Nothing where our parent must be asked first for what comes before that."""
        if branch.seen != NOTHING and not self.is_root and not self.multicasts.reach(branch.seen):
            return []
        lacking = self.multicasts.after(branch.seen, branch.floor)
        if lacking:
            branch.seen = max(branch.seen, lacking[-1].order)
        return [(branch.peer, message) for message in lacking]

    # --- sums ---------------------------------------------------------------------------------------------------------

    def digest(self) -> SubtreeDigest:
        """Sums over our branches and ourselves."""
        parts = [branch.digest for branch in self.children.values() if branch.digest.members]
        if self.member is not None:
            done, loss = self.progress.iteration, self.progress.loss
            own = SubtreeDigest(1, self.members.check, done, done, done, loss or 0.0, 0 if loss is None else 1, self.progress.replicas)
            if not self.children:
                return own
            parts.append(own)
        return SubtreeDigest(
            members=len(self.members),
            check=self.members.check,
            iterations_sum=sum([part.iterations_sum for part in parts]),
            iterations_min=min([part.iterations_min for part in parts], default=0),
            iterations_max=max([part.iterations_max for part in parts], default=0),
            loss_sum=sum([part.loss_sum for part in parts]),
            loss_count=sum([part.loss_count for part in parts]),
            replicas_sum=sum([part.replicas_sum for part in parts]),
        )

    def check_invariants(self) -> None:
        """The members are the union of the branches and ourselves, each by its latest life."""
        union = {self.member.peer.id: self.member.peer.incarnation} if self.member is not None else {}
        for branch in self.children.values():
            for identifier, member in branch.members.items():
                union[identifier] = max(member.peer.incarnation, union.get(identifier, member.peer.incarnation))
        lives = {identifier: member.peer.incarnation for identifier, member in self.members.items()}
        assert lives == union, f"members {lives.items() ^ union.items()} are not the union of the branches, each by its latest life"
        for roster in (self.members, *(branch.members for branch in self.children.values())):
            assert roster.check == check_of(roster.values()), "the fingerprint of a list of members is not that of its members"
        assert self.parent is None or self.parent.id not in self.children, "a parent is also a child"
        assert self.me.id not in self.path, "a node is on its own path"


def _cut(joined: tuple[MemberInfo, ...], departed: tuple[Departed, ...]) -> Iterator[tuple[tuple[MemberInfo, ...], tuple[Departed, ...]]]:
    """Parts that fit a frame, at least one; who went before who came."""
    came: list[MemberInfo] = []
    went: list[Departed] = []
    characters = 0
    everything: list[MemberInfo | Departed] = [*departed, *joined]
    for news in everything:
        size = len(news.reason) if isinstance(news, Departed) else len(news.name) + len(news.role)
        if len(came) + len(went) == PART_MAX or characters + size > PART_CHARACTERS_MAX:
            yield tuple(came), tuple(went)
            came, went, characters = [], [], 0
        characters += size
        if isinstance(news, Departed):
            went.append(news)
        else:
            came.append(news)
    yield tuple(came), tuple(went)
