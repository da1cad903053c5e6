"""What the overlay's tests share: peers with readable ids, records, and a pool of arbitrary but well-typed messages and events."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, nan
from random import Random
from typing import Literal, TypeVar

from protocol.identifiers import BITS, Address, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.detector import Detector
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters
from protocol.wire import messages as m
from protocol.wire.keeping import Absent, FarQuery, FarReply, Release, Stray, Withdrawn

Kind = TypeVar("Kind")
P = OverlayParameters()


def node_id(leading: int) -> NodeId:
    """An id by its first two digits: node_id(0x35) is 35000..."""
    return NodeId(leading << (BITS - 8))


def peer(leading: int, incarnation: int = 1) -> Peer:
    """The node 35000... listens on port 10035."""
    return Peer(node_id(leading), "10.0.0.1", 10000 + leading, incarnation)


ME = peer(0x80)


def of(kind: type[Kind], effects: Iterable[object]) -> list[Kind]:
    """The effects of one kind, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Iterable[object], kind: type[Kind]) -> list[tuple[Peer, Kind]]:
    """To whom which messages of this kind were sent."""
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, fx.Send) and isinstance(effect.message, kind)]


def facts(effects: Iterable[object]) -> list[str]:
    return [effect.fact for effect in of(fx.Notify, effects)]


def detector(parameters: OverlayParameters = P, seed: int = 1, friends: Iterable[Peer] = ()) -> Detector:
    """A failure detector; `friends` may be asked to help."""
    return Detector(ME, parameters, Random(seed), lambda: friends)


def watching(*peers: Peer, now: float = 0.0, friends: Iterable[Peer] = ()) -> Detector:
    """All of `peers` heard and watched."""
    found = detector(friends=friends)
    for one in peers:
        found.heard(one, now)
    found.watch(peers, now)
    return found


def run_timers(judge: Detector, until: float) -> list[tuple[float, fx.Effect]]:
    """Fire each timer at its time."""
    seen: list[tuple[float, fx.Effect]] = []
    while (when := judge.next_deadline()) is not None and when <= until:
        seen += [(when, effect) for effect in judge.on_timer(when)]
        judge.check_invariants()
        ahead = judge.next_deadline()
        assert ahead is None or ahead > when, "the timer would ring for ever"
    return seen


def deaths(seen: Iterable[tuple[float, object]]) -> list[tuple[float, fx.PeerDied]]:
    return [(when, effect) for when, effect in seen if isinstance(effect, fx.PeerDied)]


FRIENDS = tuple(peer(leading) for leading in (0x11, 0x22, 0x33, 0x44, 0x55))
ASKED_AT = 1.0 + P.delay_max_s


def on_trial(suspect: Peer) -> tuple[Detector, list[Peer]]:
    """It was reset at 1.0, is dialled, and gives no answer; after delay_max_s some FRIENDS are asked. The detector, and whom it asked."""
    judge = watching(suspect, friends=FRIENDS)
    judge.suspect(suspect, "reset", 1.0)
    return judge, [to for to, _ in sent((effect for _, effect in run_timers(judge, ASKED_AT)), m.IndirectProbe)]


def record(owner: Peer, version: int, tree: NodeId | None = None, record_bytes: int = 1000) -> m.RecordSummary:
    tree = node_id(0x10) if tree is None else tree
    return m.RecordSummary(owner.id, tree, version, owner.incarnation, version, 0, True, record_bytes, bytes(32))


def member(of_peer: Peer, name: str = "agent") -> m.MemberInfo:
    return m.MemberInfo(of_peer, name, "source", 1)


def answer_dials(node: OverlayNode, effects: Iterable[fx.Effect], now: float, alive: bool = True) -> list[fx.Effect]:
    """Let every fresh dial among the effects end: with a hello, or refused."""
    found: list[fx.Effect] = []
    for dial in of(fx.Dial, effects):
        found += node.handle(ev.DialEnded(dial.peer, dial.peer if alive else None, refused=not alive, reason="refused"), now)
    return found


class Pool:
    """Arbitrary messages and events over a few ids, so that they meet: well-typed is all that a peer's bytes are known to be."""

    def __init__(self, rng: Random, me: Peer, ids: int = 8, wild: bool = False) -> None:
        """wild: incarnations are absurd now and then, which makes most of what follows an older life's."""
        self.rng = rng
        self.me = me
        self.wild = wild
        self.lives: dict[NodeId, int] = {}
        self.ids = [me.id, *(NodeId(rng.getrandbits(BITS)) for _ in range(ids))]
        self.trees = [me.id, self.ids[1], NodeId(rng.getrandbits(BITS))]

    def number(self) -> int:
        return self.rng.choice([0, 1, 2, 3, self.rng.randrange(40), -1, 2**63 - 1, -(2**63), 2**64 - 1])

    def small(self) -> int:
        return self.rng.randrange(12)

    def seconds(self) -> float:
        return self.rng.choice([0.0, 0.0, self.rng.random(), 1e6, 1e300, -1.0, inf, nan])

    def identifier(self) -> NodeId:
        return self.rng.choice(self.ids) if self.rng.random() < 0.95 else NodeId(self.rng.getrandbits(BITS))

    def tree(self) -> NodeId:
        return self.rng.choice(self.trees) if self.rng.random() < 0.97 else NodeId(self.rng.getrandbits(BITS))

    def life(self, identifier: NodeId) -> int:
        """Mostly its present one; now and then one before, or it restarts."""
        now = self.lives.setdefault(identifier, 1)
        draw = self.rng.random()
        if draw < 0.01:
            self.lives[identifier] = now + 1
        if draw > 0.99:
            return self.number() if self.wild else max(0, now - 1)
        return self.lives[identifier]

    def peer(self) -> Peer:
        identifier = self.identifier()
        return Peer(identifier, "10.0.0.1", 10000 + identifier % 50, self.life(identifier))

    def other(self) -> Peer:
        """A peer as the hello of a connection names it; seldom one that says that it is us."""
        while (found := self.peer()).id == self.me.id and self.rng.random() < 0.9:
            pass
        return found

    def several(self, make: object, most: int = 4) -> tuple:
        assert callable(make)
        return tuple(make() for _ in range(self.rng.randrange(most)))

    def summary(self) -> m.RecordSummary:
        bytes_ = self.rng.choice([0, 1000, 1 << 20, self.number()])
        return m.RecordSummary(
            self.identifier(), self.tree(), self.number(), self.number(), self.small(), self.small(), True, bytes_, bytes(32)
        )

    def member(self) -> m.MemberInfo:
        return m.MemberInfo(self.peer(), "x" * self.rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5000]), "source", self.number())

    def departed(self) -> m.Departed:
        cause = self.rng.choice(["died", "left", "moved", "orphaned"])
        gone = self.peer()
        return m.Departed(
            gone.id, gone.incarnation, cause, "y" * self.rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5000]), self.number(), self.number()
        )

    def progress(self) -> m.Progress:
        loss = self.rng.choice([None, 0.5, float("inf"), -1.0])
        return m.Progress(self.small(), self.rng.choice([self.small(), self.number()]), loss, self.small())

    def digest(self) -> m.SubtreeDigest:
        draw = self.small if self.rng.random() < 0.8 else self.number
        return m.SubtreeDigest(draw(), self.identifier(), draw(), draw(), draw(), 0.5, draw(), draw())

    def body(self) -> m.RoundOpen:
        theta = self.summary() if self.rng.random() < 0.5 else None
        return m.RoundOpen("train", self.small(), 1, "exact", self.peer(), theta, None)

    def verdict(self) -> Literal["answered", "refused", "silent"]:
        return self.rng.choice(("answered", "refused", "silent"))

    def order(self) -> tuple[int, int]:
        """Of a multicast; mostly of a root that counts."""
        return (self.number(), self.number()) if self.rng.random() < 0.3 else (1, self.small())

    def holding(self) -> m.Holding:
        return m.Holding(self.peer(), self.summary())

    def routable(self) -> m.Routable:
        kind = self.rng.randrange(5)
        if kind == 0:
            return m.JoinRequest(self.peer(), self.several(self.peer))
        if kind == 1:
            return m.LookUp(self.small(), self.identifier(), self.tree(), self.peer())
        if kind == 2:
            return Stray(self.summary(), self.peer(), self.seconds())
        if kind == 3:
            return FarQuery(self.identifier(), self.peer(), self.rng.random() < 0.5)
        return m.Datagram(b"x")

    def message(self) -> m.Message:
        few, many = self.several(self.peer), self.several(self.peer, self.rng.choice([3, 30]))
        makes = (
            m.Heartbeat,
            lambda: m.NotUnderstood(self.number()),
            lambda: m.JoinReply(many, few),
            lambda: m.LeafProbe(many, self.several(self.identifier), self.rng.random() < 0.3),
            lambda: m.LeafProbeReply(many, self.several(self.identifier), few),
            m.Ping,
            m.Pong,
            lambda: m.Measured(self.number()),
            lambda: m.RowRequest(self.number()),
            lambda: m.RowReply(self.number(), many),
            lambda: m.IndirectProbe(self.peer()),
            lambda: m.IndirectAnswer(self.peer(), self.verdict()),
            lambda: m.Suspected(self.peer()),
            m.Goodbye,
            lambda: m.Superseded(self.peer()),
            lambda: m.Route(self.identifier(), self.routable(), self.number(), self.number()),
            lambda: m.Route(self.identifier(), self.routable(), self.small(), 1 + self.small()),
            lambda: m.RouteAck(self.number()),
            lambda: m.TreeJoin(self.tree(), self.order()),
            lambda: m.TreeWelcome(self.tree(), self.several(self.identifier, self.rng.choice([3, 80]))),
            lambda: m.TreeRefusal(self.tree(), "no"),
            lambda: m.TreeRedirect(self.tree(), self.peer()),
            lambda: m.TreeLeave(self.tree()),
            lambda: m.Alive(
                self.tree(),
                self.digest(),
                self.progress(),
                self.several(self.member),
                self.several(self.departed),
                self.rng.random() < 0.3,
                self.rng.random() < 0.2,
                self.order(),
            ),
            lambda: m.TreePulse(self.tree(), self.several(self.identifier), self.rng.random() < 0.3, self.rng.random() < 0.2),
            lambda: m.Multicast(self.tree(), self.order(), self.body(), self.order(), self.rng.random() < 0.2),
            lambda: m.LookUpReply(self.small(), self.several(self.holding, 30)),
            lambda: m.HoldingsQuery(self.number(), self.identifier(), self.tree()),
            lambda: m.HoldingsReply(self.small(), self.summary() if self.rng.random() < 0.7 else None),
            lambda: Release(self.identifier(), self.tree(), self.number(), self.number(), self.rng.random() < 0.1, self.rng.random() < 0.1),
            lambda: Absent(self.identifier(), self.tree(), self.number(), self.number(), self.seconds()),
            lambda: Withdrawn(self.tree()),
            lambda: FarReply(self.identifier(), self.several(self.peer, 30)),
            lambda: m.BulkFetch(self.identifier(), self.tree(), 1),
            lambda: m.StatusRequest(),
        )
        return self.rng.choice(makes)()

    def answer(self, effect: fx.Effect) -> ev.Event | None:
        """How the effect may end, as a healthy network and honest peers would have it."""
        match effect:
            case fx.Dial():
                silent = self.rng.random() < 0.4
                return ev.DialEnded(effect.peer, None if silent else effect.peer, silent and self.rng.random() < 0.7, "no")
            case fx.DialSeed():
                return ev.SeedAnswered(effect.address, self.other())
            case fx.Push():
                return ev.PushEnded(effect.transfer, self.rng.choice(["stored", "stored", "refused", "failed"]))
            case fx.Fetch():
                return ev.FetchEnded(effect.transfer, self.rng.choice([effect.record, effect.record, None]))
            case fx.Send(peer, message):
                found = self._reply(message)
                return ev.MessageReceived(peer, found) if found is not None else None
        return None

    def _reply(self, message: m.Message) -> m.Message | None:
        match message:
            case m.LeafProbe():
                near = self.several(self.peer) if message.lacking else ()
                return m.LeafProbeReply(self.several(self.peer), self.several(self.identifier, 2), near)
            case m.Route() if self.rng.random() < 0.5:
                return m.RouteAck(message.sequence)
            case m.IndirectProbe():
                return m.IndirectAnswer(message.suspect, self.verdict())
            case m.RowRequest():
                return m.RowReply(message.row, self.several(self.peer, 8))
            case m.Route(body=m.JoinRequest()):
                return m.JoinReply(self.several(self.peer), self.several(self.peer))
            case m.Route(body=m.LookUp() as wanted):
                own = m.RecordSummary(wanted.owner, wanted.tree, self.small(), 1, 0, 0, True, self.number(), bytes(32))
                return m.LookUpReply(wanted.request, self.several(lambda: m.Holding(self.peer(), own), 30))
            case m.Ping():
                return m.Pong() if self.rng.random() < 0.7 else m.Measured(self.rng.randrange(10**6))
            case m.TreeJoin():
                return m.TreeWelcome(message.tree, self.several(self.identifier, 2))
            case m.TreeWelcome() | m.TreePulse():
                joined = self.several(self.member)
                return m.Alive(message.tree, m.SubtreeDigest(len(joined)), m.Progress(), joined, self.several(self.departed), True)
            case m.Alive():
                return m.TreePulse(message.tree, self.several(self.identifier, 2), self.rng.random() < 0.1)
            case m.HoldingsQuery():
                held = m.RecordSummary(message.owner, message.tree, self.small(), 1, 0, 0, True, 1, bytes(32))
                return m.HoldingsReply(message.request, self.rng.choice([None, held]))
        return None

    def event(self) -> ev.Event:
        """From the network, or from the application above; half of them messages."""
        if self.rng.random() < 0.6:
            return ev.MessageReceived(self.other(), self.message())
        peer = self.other()
        makes = (
            lambda: ev.PeerLost(peer, "reset"),
            lambda: ev.DialEnded(peer, None, self.rng.random() < 0.5, "no"),
            lambda: ev.DialEnded(peer, self.other()),
            lambda: ev.SeedAnswered(peer.address, self.peer()),
            lambda: ev.SeedFailed(Address("10.0.0.1", 10001), "refused"),
            lambda: ev.PushEnded(self.small(), self.rng.choice(["stored", "refused", "failed"])),
            lambda: ev.FetchEnded(self.small(), self.summary() if self.rng.random() < 0.5 else None),
            lambda: ev.RecordHeld(self.summary()),
            ev.TimerFired,
            lambda: ev.RouteMessage(self.identifier(), b"x"),
            lambda: ev.CreateTree(self.tree()),
            lambda: ev.JoinTree(self.tree(), member(self.me)),
            lambda: ev.LeaveTree(self.tree()),
            lambda: ev.ReportProgress(self.tree(), m.Progress(1, self.small(), 0.5)),
            lambda: ev.SendMulticast(self.tree(), m.RoundOpen("train", 1, 1, "exact", self.me)),
            lambda: ev.Replicate(record(self.me, self.small(), self.tree())),
            lambda: ev.Retrieve(self.small(), self.identifier(), self.tree()),
        )
        return self.rng.choice(makes)()
