"""A few overlay nodes and the network between them, in memory and step by step: what scenarios and the papers' tests are driven through.

Time is virtual. A message takes `latency_s`, and each link keeps its order. As with TCP, a killed process leaves what it had sent on the
way, and then a reset for whoever was connected to it; where nobody listens a dial is refused; a stopped process, or a cut, is silence. A
cut of one way soon silences the other one too, for want of acknowledgements. A link can be held: what is sent over it waits until it is
delivered, or dropped, one message at a time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from protocol.identifiers import BITS, DIGIT_BITS, Address, NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters, loopback
from protocol.wire.messages import Message

LATENCY_S = 0.001
SETTLED_WITHIN_S = 5.0
UNACKNOWLEDGED_S = 0.3
"""How long TCP goes on sending new data when no acknowledgement comes back: about one retransmission timeout."""

Link = tuple[str, str]


def node_id(digits: str) -> NodeId:
    """An id by its leading hexadecimal digits: node_id("5a") is 5a000..."""
    return NodeId(int(digits, 16) << (BITS - DIGIT_BITS * len(digits)))


@dataclass(frozen=True, slots=True)
class Happened:
    """One line of the trace. what: a message that arrived `at` a node, was held or lost on the way there; the end of a dial; an effect."""

    when: float
    at: str
    what: object
    other: str = ""
    fate: str = ""


@dataclass(slots=True)
class Process:
    """One life of one node."""

    name: str
    peer: Peer
    node: OverlayNode
    alive: bool = True
    stopped: bool = False
    inbox: list[tuple[ev.Event, str]] = field(default_factory=list)
    connected: dict[str, None] = field(default_factory=dict)
    timer: float | None = None


class Network:
    """Nodes by name; a later life of `b` is named `b#2`."""

    def __init__(self, parameters: OverlayParameters | None = None, seed: int = 1) -> None:
        self.parameters = parameters or loopback()
        self.seed = seed
        self.now = 0.0
        self.trace: list[Happened] = []
        self.processes: dict[str, Process] = {}
        self.latency_s: dict[Link, float] = {}
        self.held: dict[Link, deque[ev.Event]] = {}
        self.cuts: dict[Link, float] = {}
        """Since when what is sent over a link is lost."""
        self.blocked: set[Link] = set()
        """Who cannot dial whom (a firewall): connections that are made the other way carry both ways."""
        self._ids: dict[str, NodeId] = {}
        self._lives: dict[str, int] = {}
        self._at: dict[Address, Process] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._on_the_way = 0
        """Messages and answers that will arrive."""

    # --- nodes --------------------------------------------------------------------------------------------------------

    def name(self, name: str, digits: str) -> None:
        """Give a node its id and its address; it does not run yet."""
        self._ids[name] = node_id(digits)

    def address(self, name: str) -> Address:
        process = self.processes.get(name)
        return process.peer.address if process is not None else Address("10.0.0.1", 10001 + list(self._ids).index(name))

    def start(self, name: str, seeds: Iterable[str] = (), hints: Iterable[str] = (), elsewhere: bool = False) -> Process:
        """Start the node, or its next life: at the address of the one before, or `elsewhere`."""
        life = self._lives[name] = self._lives.get(name, 0) + 1
        full = name if life == 1 else f"{name}#{life}"
        address = self.address(name)
        if elsewhere:
            address = Address("10.0.0.2", address.port + 1000 * life)
        peer = Peer(self._ids[name], address.host, address.port, life)
        process = Process(full, peer, OverlayNode(peer, self.parameters, Random(f"{self.seed} {full}")))
        self.processes[full] = self._at[address] = process
        self.tell(full, ev.Started(tuple(self.address(s) for s in seeds), tuple(self.address(h) for h in hints)))
        return process

    def ring(self, **digits: str) -> None:
        """One ring of these nodes, each joined through the first after the one before has; every one is named by its neighbours."""
        for name, leading in digits.items():
            self.name(name, leading)
        first = next(iter(digits))
        for name in digits:
            node = self.start(name, [] if name == first else [first]).node
            assert self.run_until(lambda node=node: node.pastry.active, SETTLED_WITHIN_S), f"{name} has not joined"
        nodes = [self.processes[name].node for name in digits]
        assert self.run_until(lambda: all(node.pastry.settled for node in nodes), SETTLED_WITHIN_S), "the ring has not settled"
        self.settle()

    def __getitem__(self, name: str) -> OverlayNode:
        return self.processes[name].node

    def peer(self, name: str) -> Peer:
        return self.processes[name].peer

    def tell(self, name: str, event: ev.Event, sender: str = "") -> None:
        """Hand the event to the node, and do what it wants."""
        process = self.processes[name]
        if not process.alive:
            return
        if process.stopped:
            process.inbox.append((event, sender))
            return
        self._note(process, event, sender)
        for effect in process.node.handle(event, self.now):
            self._do(process, effect)
        process.node.check_invariants()
        self._arm(process)

    def kill(self, name: str) -> None:
        """SIGKILL: what it has sent still arrives, and then a reset."""
        process = self.processes[name]
        process.alive = process.stopped = False
        for other in process.connected:
            self.processes[other].connected.pop(name, None)
            self._post(name, other, ev.PeerLost(process.peer, "connection reset"))

    def stop(self, name: str) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        self.processes[name].stopped = True

    def resume(self, name: str) -> None:
        """SIGCONT: what has come in is read first, as an event loop does; then the timer that is late."""
        process = self.processes[name]
        process.stopped = False
        inbox, process.inbox = process.inbox, []
        for event, sender in inbox:
            self.tell(name, event, sender)
        self.tell(name, ev.TimerFired())

    # --- time ---------------------------------------------------------------------------------------------------------

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        end = self.now + within_s
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return condition()
            self.now, _, action = heapq.heappop(self._heap)
            action()
        return True

    def advance(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def settle(self) -> None:
        """Until everything that is on its way has arrived, and what followed from it."""
        assert self.run_until(lambda: not self._on_the_way, SETTLED_WITHIN_S), "something is always on its way"

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, action))

    def _arrives(self, delay_s: float, action: Callable[[], None]) -> None:
        self._on_the_way += 1

        def arrive() -> None:
            self._on_the_way -= 1
            action()

        self._after(delay_s, arrive)

    def _arm(self, process: Process) -> None:
        when = process.node.next_deadline()
        if when is None or when == process.timer:
            return
        process.timer = when

        def fire() -> None:
            if process.timer == when:
                process.timer = None
                self.tell(process.name, ev.TimerFired())

        self._after(max(0.0, when - self.now), fire)

    # --- links --------------------------------------------------------------------------------------------------------

    def cut(self, link: Link) -> None:
        self.cuts.setdefault(link, self.now)

    def hold(self, link: Link) -> None:
        self.held.setdefault(link, deque())

    def deliver(self, link: Link) -> None:
        """The first message that waits on a held link."""
        self._hand(link, self.held[link].popleft())

    def drop(self, link: Link) -> None:
        event = self.held[link].popleft()
        self.trace.append(Happened(self.now, link[1], event, link[0], "dropped"))

    def release(self, link: Link) -> None:
        """Whatever waits goes, and the link is as any other again."""
        for event in self.held.pop(link):
            self._travel(link, event)

    def _note(self, process: Process, what: object, other: str = "", fate: str = "") -> None:
        self.trace.append(Happened(self.now, process.name, what, other, fate))

    def _reaches(self, source: Process, target: Process) -> bool:
        back_cut_at = self.cuts.get((target.name, source.name))
        unacknowledged = back_cut_at is not None and self.now > back_cut_at + UNACKNOWLEDGED_S
        return (source.name, target.name) not in self.cuts and not unacknowledged

    def _post(self, source: str, target: str, event: ev.Event) -> None:
        link = source, target
        if link in self.held:
            self.held[link].append(event)
            self.trace.append(Happened(self.now, target, event, source, "held"))
        else:
            self._travel(link, event)

    def _travel(self, link: Link, event: ev.Event) -> None:
        self._arrives(self.latency_s.get(link, LATENCY_S), lambda: self._hand(link, event))

    def _hand(self, link: Link, event: ev.Event) -> None:
        source, target = link
        if not self.processes[target].alive:
            self.trace.append(Happened(self.now, target, event, source, "lost"))
        else:
            self.tell(target, event, source)

    def _do(self, process: Process, effect: fx.Effect) -> None:
        match effect:
            case fx.Send():
                self._send(process, effect.peer, effect.message)
            case fx.Dial():
                self._dial(process, effect.peer.address, effect.peer)
            case fx.DialSeed():
                self._dial(process, effect.address, None)
            case fx.Disconnect():
                for name in [name for name in process.connected if self.processes[name].peer == effect.peer]:
                    del process.connected[name]
            case fx.Quit():
                self._note(process, effect)
                process.alive = False
            case _:
                self._note(process, effect)

    def _send(self, source: Process, peer: Peer, message: Message) -> None:
        target = self._at.get(peer.address)
        event = ev.MessageReceived(source.peer, message)
        if target is None or not target.alive or target.peer.id != peer.id:
            gone = next((p for p in self.processes.values() if p.peer == peer), source)
            self._note(gone, event, source.name, "refused")
            self._arrives(2 * LATENCY_S, lambda: self.tell(source.name, ev.PeerLost(peer, "refused")))
        elif not self._reaches(source, target):
            self._note(target, event, source.name, "lost in the cut")
        else:
            source.connected[target.name] = target.connected[source.name] = None
            self._post(source.name, target.name, event)

    def _is_silent(self, source: Process, target: Process) -> bool:
        """Does a dial get no answer at all, not even a refusal?"""
        link = source.name, target.name
        return target.stopped or link in self.blocked or not self._reaches(source, target) or not self._reaches(target, source)

    def reset(self, one: str, other: str) -> None:
        """The connection between them breaks; both live."""
        for here, there in ((one, other), (other, one)):
            self.processes[here].connected.pop(there, None)
            self._post(there, here, ev.PeerLost(self.peer(there), "connection reset"))

    def _dial(self, source: Process, address: Address, peer: Peer | None) -> None:
        """A dial needs both ways: the hello goes there and back."""
        target = self._at.get(address)
        ended: ev.Event
        if target is not None and self._is_silent(source, target):
            late = "no hello in time"
            ended = ev.SeedFailed(address, late) if peer is None else ev.DialEnded(peer, None, False, late)
            self._after(self.parameters.probe_timeout_s, lambda: self.tell(source.name, ended))
            return
        if target is None or not target.alive:
            ended = ev.SeedFailed(address, "refused") if peer is None else ev.DialEnded(peer, None, True, "refused")
        else:
            ended = ev.SeedAnswered(address, target.peer) if peer is None else ev.DialEnded(peer, target.peer)
        way_s = self.latency_s.get((source.name, target.name), LATENCY_S) if target is not None else LATENCY_S
        self._arrives(2 * way_s, lambda: self.tell(source.name, ended))
