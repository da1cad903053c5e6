"""What the papers' tests share: one node that is fed by hand, and readable ids. Whole rings come from tests/scenarios/network.py."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TypeVar

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters
from protocol.wire import messages as m
from tests.scenarios.network import node_id

Kind = TypeVar("Kind")
Seen = list[tuple[float, fx.Effect]]
P = OverlayParameters()
SMALL = OverlayParameters(leaf_set_size=4, replicas=2)


def peer(digits: str, life: int = 1) -> Peer:
    """The node whose id begins with these digits."""
    return Peer(node_id(digits), "10.0.0.1", 10000 + int(digits, 16) % 50000, life)


def of(kind: type[Kind], effects: Iterable[object]) -> list[Kind]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Iterable[object], kind: type[Kind]) -> list[tuple[Peer, Kind]]:
    """To whom which messages of this kind were sent."""
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, fx.Send) and isinstance(effect.message, kind)]


def told(effects: Iterable[object], kind: type) -> set[str]:
    """The leading two digits of everyone to whom such a message was sent."""
    return {to.id.short[:2] for to, _ in sent(effects, kind)}


class Fed:
    """One node, active, of which nobody else is real: the test plays all the others."""

    def __init__(self, *members: str, digits: str = "80", parameters: OverlayParameters = P) -> None:
        """members: nodes that have probed it, and that name it as their neighbour on both sides."""
        self.me = peer(digits)
        self.now = 0.0
        self.node = OverlayNode(self.me, parameters, Random(1))
        self.pastry = self.node.pastry
        self.do(ev.Started())
        self.join(*members)

    def do(self, event: ev.Event) -> list[fx.Effect]:
        effects = self.node.handle(event, self.now)
        self.node.check_invariants()
        return effects

    def hear(self, digits: str, message: m.Message) -> list[fx.Effect]:
        return self.do(ev.MessageReceived(peer(digits), message))

    def join(self, *members: str) -> None:
        for member in members:
            self.hear(member, m.LeafProbe((self.me,)))
            self.hear(member, m.LeafProbeReply((self.me,)))

    def learn(self, digits: str, rtt_s: float) -> None:
        """A table entry that has measured the way to us."""
        self.hear(digits, m.Measured(round(1e6 * rtt_s)))

    def route(self, key: str) -> list[fx.Effect]:
        return self.do(ev.RouteMessage(node_id(key), b"x"))

    def kill(self, digits: str) -> list[fx.Effect]:
        """Its connection is reset, and our dial refused."""
        effects = self.do(ev.PeerLost(peer(digits), "reset"))
        return effects + self.do(ev.DialEnded(peer(digits), None, refused=True))

    def lose(self, digits: str) -> None:
        """It falls silent; our dial, and those of all who are asked, come to nothing."""
        self.do(ev.PeerLost(peer(digits), "timed out"))
        for helper in told(self.do(ev.DialEnded(peer(digits), None, reason="no answer")), m.IndirectProbe):
            self.hear(helper, m.IndirectAnswer(peer(digits), "silent"))

    def until(self, end: float, hearing: Iterable[str] = ()) -> Seen:
        """Let time pass; `hearing`: who sends a heartbeat in each interval."""
        seen: Seen = []
        beat = self.now
        while True:
            due = self.node.next_deadline()
            when = min(end, beat if hearing else end, due if due is not None else end)
            self.now = max(self.now, when)
            if hearing and when == beat:
                beat += P.heartbeat_interval_s
                seen += [(self.now, effect) for member in hearing for effect in self.hear(member, m.Heartbeat())]
            if due is not None and due <= self.now:
                seen += [(self.now, effect) for effect in self.do(ev.TimerFired())]
            elif self.now >= end:
                return seen

    def leaf_set(self) -> set[str]:
        return {member.id.short[:2] for member in self.pastry.leaf_set}

    def dead(self, effects: Iterable[object]) -> set[NodeId]:
        return {note.details["peer"].id for note in of(fx.Notify, effects) if note.fact == "peer_died"}  # type: ignore[attr-defined]
