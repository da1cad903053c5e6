"""One Scribe under test, and a few of them that reach each other at once on routes that the test lays out.

No ring, no detector: a death is told to everybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay.roster import check_of
from protocol.overlay.scribe import Scribe
from protocol.overlay.tree import Tree
from protocol.parameters import OverlayParameters
from protocol.wire import messages as m
from protocol.wire.values import Progress, SubtreeDigest
from tests.overlay.scene import ME, P, detector, member, node_id, peer

TREE = node_id(0x10)
ROOT = peer(0x10)
PARENT, CHILD, OTHER = peer(0x40), peer(0x90), peer(0x70)
BODY = m.RoundOpen("train", 1, 1, "exact", ROOT)


class Route:
    """The ring below one node of a tree, as the test dictates it."""

    def __init__(self, hop: Callable[[], Peer | None]) -> None:
        self.active = True
        self._hop = hop

    def next_hop(self, key: NodeId) -> Peer | None:
        return self._hop()

    def next_beat(self, now: float) -> float:
        return now + P.heartbeat_interval_s


class Node:
    """A Scribe under test; `hop` and `ready` are Pastry's word."""

    def __init__(self, me: Peer = ME, hop: Peer | None = PARENT, parameters: OverlayParameters = P) -> None:
        self.hop = hop
        self._ring = Route(lambda: self.hop)
        self.judge = detector(parameters)
        self.scribe = Scribe(me, parameters, Random(1), self._ring, self.judge)

    @property
    def ready(self) -> bool:
        return self._ring.active

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ring.active = ready

    def until(self, end: float) -> list[tuple[float, fx.Effect]]:
        seen: list[tuple[float, fx.Effect]] = []
        while (when := self.scribe.next_deadline()) is not None and when <= end:
            seen += [(when, effect) for effect in self.scribe.on_timer(when)]
            self.scribe.check_invariants()
        return seen


def attached() -> Node:
    """A member below PARENT, which hangs on the root."""
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.welcome_received(PARENT, m.TreeWelcome(TREE, (TREE, PARENT.id)), 0.0)
    return node


def rooted(*children: Peer) -> Node:
    node = Node(ROOT, hop=None)
    node.scribe.create(TREE, 0.0)
    for child in children:
        node.scribe.join_received(child, m.TreeJoin(TREE), 0.0)
        node.scribe.alive_received(child, lists(child), 0.0)
    return node


def lists(*peers: Peer, full: bool = True) -> m.Alive:
    """An Alive of a subtree with exactly these members."""
    joined = tuple(member(one) for one in peers)
    check = check_of(joined)
    return m.Alive(TREE, SubtreeDigest(members=len(joined), check=check), Progress(), joined, (), full)


class Grove:
    """`routes`: the next hop of each node towards the tree, None where it is closest; nodes by the leading digits of their ids."""

    def __init__(self, tree: NodeId, routes: dict[int, int | None], parameters: OverlayParameters = P) -> None:
        self.tree = tree
        self.routes = dict(routes)
        self.parameters = parameters
        self.now = 0.0
        self.scribes: dict[int, Scribe] = {}
        self.down: set[int] = set()
        self.sent: list[tuple[int, int, m.Message]] = []
        """Everything that was delivered: from, to, what."""
        self.received: dict[int, list[fx.MulticastReceived]] = {}
        self.root_told: list[fx.MembersChanged] = []
        self.lose: Callable[[int, int, m.Message], bool] = lambda sender, receiver, message: False
        self._waiting: deque[tuple[int, int, m.Message]] = deque()
        for leading in routes:
            self.start(leading)

    def start(self, leading: int, incarnation: int = 1) -> None:
        """A node begins a life."""
        self.down.discard(leading)
        self.received.setdefault(leading, [])
        me = peer(leading, incarnation)
        ring = Route(partial(self._hop, leading))
        self.scribes[leading] = Scribe(me, self.parameters, Random(leading), ring, detector(self.parameters))

    def _hop(self, leading: int) -> Peer | None:
        hop = self.routes[leading]
        return None if hop is None else self.scribes[hop]._me

    def create(self, leading: int) -> None:
        self.do(leading, self.scribes[leading].create(self.tree, self.now))

    def join(self, *members: int) -> None:
        for leading in members:
            self.do(leading, self.scribes[leading].join(self.tree, member(self.scribes[leading]._me), self.now))

    def leave(self, leading: int) -> None:
        self.do(leading, self.scribes[leading].leave(self.tree))

    def order(self, root: int, number: int) -> None:
        body = m.RoundOpen("train", number, 1, "exact", self.scribes[root]._me)
        self.do(root, self.scribes[root].multicast(self.tree, body))

    def die(self, leading: int) -> None:
        """The node stops; every detector knows at once."""
        self.down.add(leading)
        for other, scribe in self.scribes.items():
            if other not in self.down:
                self.do(other, scribe.died(self.scribes[leading]._me, "refused", False, 0.0, self.now))

    def do(self, leading: int, effects: list[fx.Effect]) -> None:
        """Carry out what a node wants, and what follows from that."""
        self._take(leading, effects)
        while self._waiting:
            sender, receiver, message = self._waiting.popleft()
            if receiver in self.down or sender in self.down or self.lose(sender, receiver, message):
                continue
            self.sent.append((sender, receiver, message))
            self._take(receiver, self._deliver(self.scribes[receiver], self.scribes[sender]._me, message))
            self.scribes[receiver].check_invariants()

    def _take(self, leading: int, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Send):
                self._waiting.append((leading, next(i for i, s in self.scribes.items() if s._me.id == effect.peer.id), effect.message))
            elif isinstance(effect, fx.MulticastReceived):
                self.received[leading].append(effect)
            elif isinstance(effect, fx.MembersChanged):
                self.root_told.append(effect)

    def _deliver(self, scribe: Scribe, sender: Peer, message: m.Message) -> list[fx.Effect]:
        match message:
            case m.TreeJoin():
                return scribe.join_received(sender, message, self.now)
            case m.TreeWelcome():
                return scribe.welcome_received(sender, message, self.now)
            case m.TreeRefusal():
                return scribe.refusal_received(sender, message, self.now)
            case m.TreeRedirect():
                return scribe.redirect_received(sender, message, self.now)
            case m.TreeLeave():
                return scribe.leave_received(sender, message)
            case m.Alive():
                return scribe.alive_received(sender, message, self.now)
            case m.TreePulse():
                return scribe.pulse_received(sender, message, self.now)
            case m.Multicast():
                return scribe.multicast_received(sender, message, self.now)
        raise AssertionError(f"{message} is not Scribe's")

    def run(self, seconds: float) -> None:
        """Let time pass: every timer rings when it is due."""
        end = self.now + seconds
        while True:
            due = [(when, i) for i, s in self.scribes.items() if i not in self.down and (when := s.next_deadline()) is not None]
            if not due or min(due)[0] > end:
                break
            self.now, leading = min(due)
            self.do(leading, self.scribes[leading].on_timer(self.now))
        self.now = end

    # --- the view from above ------------------------------------------------------------------------------------------

    def at(self, leading: int) -> Tree:
        return self.scribes[leading].trees[self.tree]

    def in_tree(self) -> set[int]:
        return {leading for leading, scribe in self.scribes.items() if self.tree in scribe.trees and leading not in self.down}

    def way_up(self, leading: int) -> list[int]:
        """The parents of a node, up to where there is none, or a cycle closes."""
        way: list[int] = []
        while (parent := self.at(leading).parent) is not None:
            leading = next(i for i, s in self.scribes.items() if s._me.id == parent.id)
            way.append(leading)
            if len(set(way)) < len(way):
                break
        return way

    def messages(self, kind: type) -> list[tuple[int, int]]:
        """The links over which messages of this kind went."""
        return [(sender, receiver) for sender, receiver, message in self.sent if isinstance(message, kind)]

    def rounds(self, leading: int) -> list[int]:
        return [effect.body.round for effect in self.received[leading]]


def capped(fan_out_max: int, **others: int) -> OverlayParameters:
    return replace(P, fan_out_max=fan_out_max, **others)
