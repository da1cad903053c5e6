"""Who of a tree's members is alive, suspect, dead or gone, and why.

The overlay says who came and who went (a death is verified before it is told). This decides what that means for a member that is known
by name through all its lives. Every verdict has a reason.

1. Heard in the tree: alive. A later incarnation: the earlier life is dead, the member is alive again.
2. Died, by refusal or by silence: dead, at once.
3. Orphaned (its parent in the tree died): suspect until it is heard through another parent, for `orphan_max_s`; then dead.
4. Left in order: left; nobody waits for it, and no later news of that life counts. It may come back.
5. After a restart of the manager, everyone on record is suspect in the same way until heard.
6. Who is dead may be retired (root.py, rule 10): nobody waits for it, as for one that has left. Both may come back as everyone may. The
   last GONE_KEPT of these are kept, to be shown; whoever went before them is forgotten.

    unknown --joined--> alive --orphaned--> suspect --late--> dead
                          |  \\--died--------------------------^  |
                          \\--left--> left                        \\--joined (later life, or wrongly judged)--> alive
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.identifiers import NodeId
from protocol.wire.values import Departed, MemberInfo

State = Literal["alive", "suspect", "dead", "left"]
Cause = Literal["death", "heartbeat", "restart", "deadline"]
GONE_KEPT = 256


@dataclass(slots=True)
class Member:
    """One member through all its lives. iteration: the last that was heard of its present or, when dead, its last life. died_in: the round
    that was next, or open, when its last life was over. retired: dead, and given up for good."""

    info: MemberInfo
    state: State
    reason: str
    since: float
    iteration: int = -1
    died_in: int = 0
    retired: bool = False

    @property
    def gone(self) -> bool:
        """Nobody waits for it."""
        return self.state == "left" or self.retired

    def loss(self, cause: Cause | None = None, silent_s: float = 0.0) -> Loss:
        """Of its present or, when dead, its last life, for the reason that its state has. That tells the cause where none is given."""
        peer = self.info.peer
        return Loss(peer.id, peer.incarnation, cause or cause_of(self.reason), self.reason, silent_s, self.iteration)


@dataclass(frozen=True, slots=True)
class Loss:
    """A life of a member has ended: its meta knowledge is to be recovered. silent_s: how long it had not been heard."""

    agent: NodeId
    incarnation: int
    cause: Cause
    reason: str
    silent_s: float
    iteration: int


def cause_of(reason: str) -> Cause:
    """A death that silence gave away, or one that the connection did."""
    return "heartbeat" if "silent" in reason else "death"


class Liveness:
    """The members of one tree. orphan_max_s: how long a member whose parent died may take to be heard again."""

    def __init__(self, orphan_max_s: float) -> None:
        self._orphan_max_s = orphan_max_s
        self.members: dict[NodeId, Member] = {}

    def expect(self, infos: Iterable[MemberInfo], now: float) -> None:
        """These were members when the manager last committed: suspect until heard."""
        for info in infos:
            self.members.setdefault(info.peer.id, Member(info, "suspect", "not heard since the manager restarted", now))

    def changed(self, joined: Iterable[MemberInfo], departed: Iterable[Departed], now: float) -> list[Loss]:
        """What the overlay has told; returns the lives that are over and were not known to be."""
        losses: list[Loss] = []
        for gone in departed:
            member = self.members.get(gone.id)
            if member is None or gone.incarnation < member.info.peer.incarnation:
                continue
            if member.state == "left" and gone.incarnation == member.info.peer.incarnation:
                continue
            member.iteration = max(member.iteration, gone.iteration)
            if gone.cause == "died":
                losses += self._dies(member, gone.reason, gone.silent_ms / 1000, now)
            elif gone.cause == "left":
                member.state, member.reason, member.since = "left", gone.reason, now
            elif member.state == "alive":
                member.state, member.reason, member.since = "suspect", gone.reason, now
        for info in joined:
            member = self.members.get(info.peer.id)
            if member is None:
                self.members[info.peer.id] = Member(info, "alive", "joined", now)
                continue
            if info.peer.incarnation < member.info.peer.incarnation:
                continue
            reason = "heard again"
            if info.peer.incarnation > member.info.peer.incarnation:
                reason = f"restarted as incarnation {info.peer.incarnation}"
                if member.state in ("alive", "suspect"):
                    losses += self._dies(member, reason, 0.0, now, "restart")
                member.iteration = -1
            member.info, member.state, member.reason, member.since, member.retired = info, "alive", reason, now, False
        return losses

    def _dies(self, member: Member, reason: str, silent_s: float, now: float, cause: Cause | None = None) -> list[Loss]:
        if member.state == "dead":
            return []
        member.state, member.reason, member.since = "dead", reason, now
        return [member.loss(cause, silent_s)]

    def is_anew(self, info: MemberInfo) -> bool:
        """To be asked before it is changed(): is this nobody who was alive to us all the time?"""
        member = self.members.get(info.peer.id)
        return member is None or member.state in ("dead", "left") or info.peer.incarnation > member.info.peer.incarnation

    def late(self, now: float) -> list[Loss]:
        """Suspects whose time is up."""
        losses: list[Loss] = []
        for member in self.members.values():
            if member.state == "suspect" and now >= member.since + self._orphan_max_s:
                reason = f"{member.reason}, and not heard through another parent for {now - member.since:.1f} s"
                losses += self._dies(member, reason, now - member.since, now, "heartbeat")
        return losses

    def retire(self, agent: NodeId, reason: str, now: float) -> None:
        """Rule 6."""
        member = self.members[agent]
        member.retired, member.reason, member.since = True, reason, now

    def forget_gone(self, spared: Callable[[NodeId], bool]) -> None:
        """Rule 6; spared: of whom news is still awaited."""
        gone = sorted((member.since, agent) for agent, member in self.members.items() if member.gone)
        for _, agent in gone[:-GONE_KEPT]:
            if not spared(agent):
                del self.members[agent]

    def next_deadline(self) -> float | None:
        return min((m.since + self._orphan_max_s for m in self.members.values() if m.state == "suspect"), default=None)

    def of_role(self, role: str) -> Mapping[NodeId, Member]:
        """Members of one role that are not gone, by id."""
        return {i: m for i, m in sorted(self.members.items()) if m.info.role == role and not m.gone}

    def staying(self) -> tuple[MemberInfo, ...]:
        """Who is not gone, by id: what a record names as the members."""
        return tuple(member.info for _, member in sorted(self.members.items()) if not member.gone)

    def counts(self) -> dict[str, int]:
        """How many are in each state."""
        states = [member.state for member in self.members.values()]
        return {state: states.count(state) for state in ("alive", "suspect", "dead", "left")}
