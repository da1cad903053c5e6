"""Forwarding: one step of a routed message, by Pastry's rule, with MSPastry's acknowledgement of each hop. A part of the machine Pastry.

1. Next hop (Pastry 2.2). Where the leaf set covers the key: the numerically closest of it and us. Else the table's entry. Else, the rare
   case, any node that we know with no shorter a prefix and closer to the key; else any closer one.
2. Each hop acknowledges (MSPastry 3.2). Without an acknowledgement within a timeout made of the hop's round trip, the message goes
   around it at once, and the hop is suspected: it is probed, not believed dead.
3. The last hop cannot be gone around: the message waits for its verdict, and then goes there or to the next closest (no wrong root).
4. What a hop has not acknowledged when it is found dead goes another way.
5. We deliver only what is certainly ours (`claim`; Pastry's rule 3). What waits longer than `hold_max_s` is dropped, and said to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from protocol.identifiers import NodeId, Peer, rank, shared_prefix
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import DeliverBody, Effect, Notify, Send, Suspect
from protocol.overlay.judgement import Judgement
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.proximity import Proximity
from protocol.overlay.routing_table import RoutingTable
from protocol.parameters import OverlayParameters
from protocol.wire.messages import JoinRequest, Route, RouteAck

HOPS_TRIED_MAX = 4
"""A message that so many hops have not acknowledged waits for a verdict on one of them."""
SENT_MAX = 4096
"""Acknowledgements awaited; beyond, the oldest message is on its own."""
EXPIRY = 0
"""The deadline of the message that has been held for longest; hops' sequence numbers are above it."""


@dataclass(slots=True)
class _Sent:
    """A message whose hop has not acknowledged it."""

    hop: Peer
    message: Route
    at: float
    began: float
    tried: tuple[NodeId, ...]


@dataclass(slots=True)
class _Held:
    """A message that waits for a verdict."""

    message: Route
    began: float


class Forwarding:
    """`inactive`: who is joining itself (Pastry's rule 2), kept by its owner. `ready`: are we in the ring at all?

    `claim`: is a key, to which we know nobody closer, certainly ours; else, who may take it on.
    """

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        leaf_set: LeafSet,
        table: RoutingTable,
        proximity: Proximity,
        inactive: Collection[NodeId],
        judge: Judgement,
        ready: Callable[[], bool],
        claim: Callable[[NodeId], tuple[bool, Peer | None]],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._leaf_set = leaf_set
        self._table = table
        self._proximity = proximity
        self._inactive = inactive
        self._judge = judge
        self._ready = ready
        self._claim = claim
        self._held: deque[_Held] = deque()
        self._sent: dict[int, _Sent] = {}
        self._sequence = 0
        self.deadlines: Deadlines[int] = Deadlines()

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    # --- rule 1 -------------------------------------------------------------------------------------------------------

    def next_hop(self, key: NodeId, avoid: Collection[NodeId] = (), tried: tuple[NodeId, ...] = ()) -> tuple[Peer | None, bool]:
        """The next hop towards key, and whether it may be used now; None where no known node but us is closest.

        avoid: nodes that shall not be hops; tried: hops that have just missed an acknowledgement.
        """
        if self._leaf_set.covers(key):
            hop = self._leaf_set.closest(key, avoid)
            return hop, hop is None or not (hop.id in tried or self._judge.is_suspect(hop.id))
        entry = self._table.towards(key)
        if entry is not None and entry.id not in avoid and entry.id not in tried and not self._judge.is_suspect(entry.id):
            return entry, True
        mine, prefix = rank(key, self._me.id), shared_prefix(self._me.id, key)
        closer = [peer for peer in (*self._leaf_set, *self._table) if peer.id not in avoid and rank(key, peer.id) < mine]
        well = [peer for peer in closer if peer.id not in tried and not self._judge.is_suspect(peer.id)]
        far = [peer for peer in well if shared_prefix(peer.id, key) >= prefix]
        hop = min(far or well or closer, key=lambda peer: rank(key, peer.id), default=None)
        return hop, hop is None or bool(well)

    # --- rules 2 to 5 -------------------------------------------------------------------------------------------------

    def received(self, sender: Peer, message: Route, now: float) -> list[Effect]:
        """From the hop before: we answer for it from here, unless too much is held."""
        if len(self._held) >= self._parameters.held_messages_max:
            return [Notify("route_dropped", {"key": message.key, "reason": "too many messages are held"})]
        acknowledged: list[Effect] = [Send(sender, RouteAck(message.sequence))] if message.sequence > 0 else []
        return acknowledged + self.route(message, now)

    def route(self, message: Route, now: float, began: float | None = None, tried: tuple[NodeId, ...] = ()) -> list[Effect]:
        """One step: deliver, forward, or hold."""
        body, began = message.body, now if began is None else began
        if message.hops > self._parameters.hops_max:
            return [Notify("route_dropped", {"key": message.key, "reason": f"more than {self._parameters.hops_max} hops"})]
        hop, usable = self.next_hop(message.key, {body.joiner.id, *self._inactive} if isinstance(body, JoinRequest) else (), tried)
        if hop is None and not isinstance(body, JoinRequest):
            ours, hop = self._claim(message.key)
            usable = ours or (hop is not None and hop.id not in tried and not self._judge.is_suspect(hop.id))
        if not self._ready() or not usable:
            return self._hold(message, now, began)
        if hop is None:
            return [DeliverBody(message.key, body, message.hops)]
        if isinstance(body, JoinRequest):
            body = JoinRequest(body.joiner, self.with_row(body.candidates, body.joiner.id))
        self._sequence += 1
        onward = Route(message.key, body, message.hops + 1, self._sequence)
        if len(self._sent) >= SENT_MAX:
            self.deadlines.drop(oldest := next(iter(self._sent)))
            del self._sent[oldest]
        self._sent[self._sequence] = _Sent(hop, message, now, began, tried)
        self.deadlines.set(self._sequence, now + self._proximity.ack_timeout_s(hop.id) * self._judge.patience)
        return [Send(hop, onward)]

    def with_row(self, candidates: tuple[Peer, ...], joiner: NodeId) -> tuple[Peer, ...]:
        """The candidates of the way so far, ourselves, and the rows of ours that are of use to the joiner; each once."""
        shared = shared_prefix(self._me.id, joiner)
        first = 0 if not candidates else shared
        mine = (self._me, *(peer for row in range(first, shared + 1) for peer in self._table.row(row)))
        seen = {peer.id: peer for peer in (*candidates, *mine) if peer.id != joiner}
        return tuple(seen.values())[: 8 * self._parameters.leaf_set_size]

    def _hold(self, message: Route, now: float, began: float) -> list[Effect]:
        if began + self._parameters.hold_max_s <= now:
            return [self._expired(message)]
        if len(self._held) >= self._parameters.held_messages_max:
            return [Notify("route_dropped", {"key": message.key, "reason": "too many messages are held"})]
        self._held.append(_Held(replace(message, sequence=0), began))
        # The latest to be held need not be the last to expire: it may have been on its way for long.
        self.deadlines.set(EXPIRY, min(waiting.began for waiting in self._held) + self._parameters.hold_max_s)
        return []

    def _expired(self, message: Route) -> Effect:
        waited = f"it waited {self._parameters.hold_max_s:g} s for a verdict"
        return Notify("route_dropped", {"key": message.key, "reason": waited})

    def release(self, now: float) -> list[Effect]:
        """Try again what was held: something about the ring has become known."""
        if not self._held:
            return []
        effects: list[Effect] = []
        held, self._held = self._held, deque()
        for waiting in held:
            effects += self.route(waiting.message, now, waiting.began)
        return effects

    def acknowledged(self, sender: Peer, sequence: int, now: float) -> list[Effect]:
        sent = self._sent.get(sequence)
        if sent is None or sent.hop.id != sender.id:
            return []
        del self._sent[sequence]
        self.deadlines.drop(sequence)
        self._proximity.sample(sender.id, now - sent.at)
        return []

    def died(self, peer: Peer, now: float) -> list[Effect]:
        """Rule 4."""
        effects: list[Effect] = []
        for sequence in [number for number, sent in self._sent.items() if sent.hop.id == peer.id]:
            sent = self._sent.pop(sequence)
            self.deadlines.drop(sequence)
            effects += self.route(sent.message, now, sent.began)
        return effects

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for sequence in self.deadlines.due(now):
            effects += self._expire(now) if sequence == EXPIRY else self._missed(sequence, now)
        return effects

    def _missed(self, sequence: int, now: float) -> list[Effect]:
        sent = self._sent.pop(sequence)
        self._proximity.missed(sent.hop.id)
        tried = (*sent.tried, sent.hop.id)
        suspicion = Suspect(sent.hop, f"no acknowledgement within {now - sent.at:.3f} s")
        if len(tried) >= HOPS_TRIED_MAX:
            return [suspicion, *self._hold(sent.message, now, sent.began)]
        return [suspicion, *self.route(sent.message, now, sent.began, tried)]

    def _expire(self, now: float) -> list[Effect]:
        patience_s = self._parameters.hold_max_s
        late = [waiting for waiting in self._held if waiting.began + patience_s <= now]
        self._held = deque(waiting for waiting in self._held if waiting.began + patience_s > now)
        if self._held:
            self.deadlines.set(EXPIRY, min(waiting.began for waiting in self._held) + patience_s)
        return [self._expired(waiting.message) for waiting in late]

    def check_invariants(self) -> None:
        assert len(self._held) <= self._parameters.held_messages_max, "too many messages are held"
        assert not self._held or EXPIRY in self.deadlines, "a message is held for ever"
        assert all(sequence in self.deadlines for sequence in self._sent), "an acknowledgement is awaited for ever"
