"""Judges of a run, with the global view, as things happen.

P3, no wrong root. A message for key k is delivered at D, and another node Q is closer to k: that is wrong when Q lives, is awake, is
settled, and Q and D have both been awake and have reached each other for grace_s without a break. Otherwise it is excused, and counted.
Awake: not stopped, and no further behind with what has reached it than delay_max_s, which is what the parameters call a healthy peer. A
node with more to do than it has time for hangs, as far as anybody else can see.

Lost: its sender lives at the end, and it was never delivered. Of these, `excused`: the last node that is known to have had it died or left
with it; `said`: who had it gave it up after hold_max_s and told so (a node that is cut off from the ring, say). The others are mistakes. A
message that arrives more than once is a duplicate.

A false death: a node declares a peer dead that lives, has been awake, and has been reached by the judge without a break for the
last window_s, which is longer than a suspicion and its trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.identifiers import NodeId, Peer
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Datagram, Route
from scripts.simulation.cluster import Cluster, Process

ID_BYTES = 8
EXAMPLES = 5
"""Of each kind of mistake so many are told in words."""


def grace_s(parameters: OverlayParameters) -> float:
    """After a cut or a pause two nodes may not know each other for this long: the remembered dead are dialled again, with back-off, found,
    probed, and told to the neighbours."""
    return 2 * parameters.retry_max_s + 2 * parameters.trial_max_s


def window_s(parameters: OverlayParameters) -> float:
    return parameters.verdict_max_s


def reached_since(cluster: Cluster, a: Process, b: Process, since: float) -> bool:
    """Have both run, and reached each other, all the time since then?"""
    return a.awake_since <= since and b.awake_since <= since and cluster.network.reached_since(a, b, since)


@dataclass(slots=True)
class Batch:
    """Look-ups sent at one instant: when all were delivered by the right node within the time given, it was right."""

    began: float
    within_s: float
    size: int
    right: int = 0


@dataclass(slots=True)
class Underway:
    """A routed message that has not been delivered. holder: who is known to have had it last."""

    key: NodeId
    sender: Process
    began: float
    holder: Process
    batch: Batch | None


@dataclass(slots=True)
class Mistakes:
    """How often, in words the first few, and which nodes were part of it."""

    count: int = 0
    words: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, words: str, *processes: Process) -> None:
        self.count += 1
        if len(self.words) < EXAMPLES:
            self.words.append(words)
            self.names += [process.name for process in processes if process.name not in self.names]


class Routing:
    """Routes messages with numbers in them, and judges each delivery."""

    def __init__(self, cluster: Cluster) -> None:
        self.wrong = Mistakes()
        self.wrong_excused = 0
        self.routed = self.delivered = self.duplicates = 0
        self.hops: dict[int, int] = {}
        """Deliveries of the workload by their hops."""
        self.delay_s = self.direct_s = 0.0
        """Of the workload: what the ways took, and would have taken straight."""
        self.underway: dict[int, Underway] = {}
        self.dropped: set[NodeId] = set()
        """The keys of messages that some node told to have dropped."""
        self._seen = bytearray()
        self._cluster = cluster
        self._grace_s = grace_s(cluster.parameters)
        cluster.on_delivered = self._on_delivered
        cluster.on_route = self._on_route

    def route(self, sender: Process, key: NodeId, batch: Batch | None = None) -> None:
        number = self.routed
        self.routed += 1
        self._seen.append(0)
        self.underway[number] = Underway(key, sender, self._cluster.clock.now, sender, batch)
        self._cluster.tell(sender, ev.RouteMessage(key, number.to_bytes(ID_BYTES, "big")))

    def _on_route(self, process: Process, message: Route) -> None:
        body = message.body
        if body.__class__ is Datagram and (found := self.underway.get(int.from_bytes(body.payload, "big"))) is not None:
            found.holder = process

    def _on_delivered(self, process: Process, effect: fx.Delivered) -> None:
        number = int.from_bytes(effect.payload, "big")
        should = self._should(process, effect.key)
        if self._seen[number]:
            self.duplicates += 1
            return
        self._seen[number] = 1
        self.delivered += 1
        message = self.underway.pop(number)
        now = self._cluster.clock.now
        if message.batch is not None:
            message.batch.right += should is None and now - message.began <= message.batch.within_s
            return
        self.hops[effect.hops] = self.hops.get(effect.hops, 0) + 1
        if process is not message.sender:
            self.delay_s += now - message.began
            self.direct_s += self._cluster.network.terrain.one_hop_s(message.sender, process)

    def _should(self, process: Process, key: NodeId) -> Process | None:
        """Who should have delivered it, None where it was this one; and whether that is a mistake."""
        should: Process | None = None
        for other in self._cluster.view.closer(key, process.peer.id):
            if not other.awake or not other.settled:
                continue
            should = should or other
            if reached_since(self._cluster, process, other, self._cluster.clock.now - self._grace_s):
                words = f"{self._cluster.clock.now:.4f}: {process} delivered {key}, which is of {other}"
                self.wrong.add(words, process, other)
                return should
        self.wrong_excused += should is not None
        return should

    def lost(self) -> tuple[Mistakes, int, int]:
        """What will not be delivered any more, but for what its sender took with it: in silence, with its holder, said to be dropped."""
        lost, excused, said = Mistakes(), 0, 0
        for number, message in self.underway.items():
            if not message.sender.alive:
                continue
            if not message.holder.alive:
                excused += 1
                continue
            if message.key in self.dropped:
                said += 1
                continue
            lost.add(
                f"message {number} of {message.sender} for {message.key}, routed at {message.began:.4f}, last with {message.holder.name}",
                message.sender,
                message.holder,
            )
        return lost, excused, said


class Deaths:
    """Judges the verdicts of the failure detectors, and counts all facts."""

    def __init__(self, cluster: Cluster, routing: Routing | None = None) -> None:
        self._routing = routing
        self.false = Mistakes()
        self.false_excused = 0
        """Of living peers that had slept, restarted, or been cut off shortly before."""
        self.facts: dict[str, int] = {}
        self._cluster = cluster
        self._window_s = window_s(cluster.parameters)
        cluster.on_fact = self._on_fact

    def _on_fact(self, judge: Process, effect: fx.Notify) -> None:
        self.facts[effect.fact] = self.facts.get(effect.fact, 0) + 1
        if effect.fact == "route_dropped" and self._routing is not None:
            self._routing.dropped.add(effect.details["key"])
        peer = effect.details.get("peer")
        if effect.fact != "peer_died" or not isinstance(peer, Peer):
            return
        process = self._cluster.view.get(peer.id)
        if process is None or process.peer != peer:
            return
        since = self._cluster.clock.now - self._window_s
        reached = process.awake and process.awake_since <= since and self._cluster.network.reached_since(judge, process, since)
        if not reached:
            self.false_excused += 1
            return
        reason = effect.details.get("reason", "")
        self.false.add(f"{self._cluster.clock.now:.4f}: {judge} declared {process} dead: {reason}", judge, process)
