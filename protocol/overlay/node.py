"""The overlay node: composes the machines, and is the one way in.

    handle(event, now) -> effects        next_deadline() -> when it wants a TimerFired

A machine never calls another. What one decides and another must know (a death, a new neighbour, a body to route) it returns as an
effect between machines; `_settle` hands these on until only effects for the outside are left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from random import Random

from protocol.errors import RemoteProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.detector import Detector
from protocol.overlay.pastry import Pastry
from protocol.overlay.promise import TreePromise
from protocol.overlay.replication import Replication
from protocol.overlay.scribe import Scribe
from protocol.overlay.terms import LEAP_HEARD_MAX, Terms
from protocol.parameters import OverlayParameters
from protocol.wire import messages as m
from protocol.wire.electing import RootQuery, RootReply, TermReply, TermRequest
from protocol.wire.keeping import Absent, FarQuery, FarReply, Release, Stray, Withdrawn

Effects = list[fx.Effect]


class OverlayNode:
    """One node of the ring. Time is given with each event, chance comes from `rng`; no I/O happens here."""

    def __init__(self, me: Peer, parameters: OverlayParameters, rng: Random, promises: Iterable[TreePromise] | None = None) -> None:
        """promises: what the disk holds of an earlier life's (terms.py); None where there is no disk."""
        self.self_peer = me
        self._parameters = parameters
        self.detector = detector = Detector(me, parameters, rng, self._acquaintances)
        self.pastry = Pastry(me, parameters, rng, detector)
        self.scribe = Scribe(me, parameters, rng, self.pastry, detector)
        self.replication = Replication(me, parameters, self.pastry.leaf_set, detector.is_suspect, lambda: self.pastry.active)
        self.terms = Terms(
            me, parameters, detector.life_of, self._hears, self.scribe.trees.__contains__, lambda: self.pastry.active, promises
        )
        self._clocks = (self.detector.deadlines, *self.pastry.clocks, self.scribe.deadlines, self.replication.deadlines)
        self._left = False
        self._due: float | None = None
        """When the next event may come at the latest: whoever comes much later has slept."""
        self._handled_at = -inf
        self._owed: Effects = []
        """What a wake-up brought; given with the next event that is handled without an error."""
        self._ring_moved = False
        """Has the leaf set changed since the machines that depend on it were last told?"""
        self._watching = (-1, -1)
        """The revisions of the neighbours and relatives that the detector watches."""
        self._events: dict[type, Callable[..., Effects]] = {
            ev.MessageReceived: self._message,
            ev.PeerLost: self._peer_lost,
            ev.DialEnded: self._dial_ended,
            ev.SeedAnswered: self._seed_answered,
            ev.SeedFailed: lambda e, now: self.pastry.seed_failed(e.address, e.reason, now),
            ev.PushEnded: lambda e, now: self.replication.push_ended(e.transfer, e.outcome, e.reason, now),
            ev.FetchEnded: lambda e, now: self.replication.fetch_ended(e.transfer, e.record, e.reason, now),
            ev.RecordHeld: lambda e, now: self.replication.record_held(e.record, now),
            ev.TimerFired: lambda e, now: self._timer(now),
            ev.Started: lambda e, now: self.pastry.start(e.seeds, e.hints, now, e.shared),
            ev.Leave: lambda e, now: self._leave(),
            ev.RouteMessage: lambda e, now: self.pastry.originate(e.key, m.Datagram(e.payload), now),
            ev.CreateTree: lambda e, now: self.scribe.create(e.tree, now),
            ev.JoinTree: lambda e, now: self.scribe.join(e.tree, e.member, now),
            ev.LeaveTree: lambda e, now: self.scribe.leave(e.tree),
            ev.ReportProgress: lambda e, now: self.scribe.report(e.tree, e.progress),
            ev.SendMulticast: lambda e, now: [*self.scribe.multicast(e.tree, e.body), *self._ordered(e.tree, e.body, now)],
            ev.Replicate: lambda e, now: self.replication.replicate(e.record, now),
            ev.Retrieve: lambda e, now: self.replication.retrieve(e.request, e.owner, e.tree, now),
            ev.AskRoot: lambda e, now: self.terms.ask_root(e.request, e.tree),
            ev.AskElectors: self._ask_electors,
        }
        self._between: dict[type, Callable[..., Effects]] = {
            fx.PeerDied: self._died,
            fx.PeerCleared: self._cleared,
            fx.LeafSetChanged: self._leaf_set_changed,
            fx.Suspect: lambda e, now: self.detector.suspect(e.peer, e.reason, now, hearsay=e.hearsay),
            fx.RouteBody: lambda e, now: self.pastry.originate(e.key, e.body, now),
            fx.DeliverBody: self._deliver,
        }
        self._overheard: dict[type, Callable[..., Effects]] = {
            fx.MulticastReceived: lambda e, now: self._ordered(e.tree, e.body, now)
        }
        """Of the effects for the outside, those that concern a machine as well."""
        self._messages = self._message_handlers()

    def _message_handlers(self) -> dict[type, Callable[..., Effects]]:
        """Who handles which message of a control connection."""
        return {
            m.Heartbeat: lambda p, x, now: [],
            m.NotUnderstood: lambda p, x, now: [fx.Notify("not_understood", {"peer": p, "tag": x.tag})],
            m.JoinReply: lambda p, x, now: self.pastry.join_reply(p, x, now),
            m.LeafProbe: lambda p, x, now: self.pastry.probe_received(p, x, now),
            m.LeafProbeReply: lambda p, x, now: self.pastry.probe_received(p, x, now),
            m.Ping: lambda p, x, now: [fx.Send(p, m.Pong())],
            m.Pong: lambda p, x, now: self.pastry.upkeep.pong_received(p, now),
            m.Measured: lambda p, x, now: self.pastry.upkeep.measured(p, x.rtt_us),
            m.RowRequest: self._row_request,
            m.RowReply: lambda p, x, now: self.pastry.upkeep.row_reply(x, now),
            m.RouteAck: lambda p, x, now: self.pastry.forwarding.acknowledged(p, x.sequence, now),
            m.IndirectProbe: lambda p, x, now: self.detector.indirect_probe(p, x.suspect, now),
            m.IndirectAnswer: lambda p, x, now: self.detector.indirect_answer(p, x, now),
            m.Suspected: lambda p, x, now: self.detector.suspected(x.by, now),
            m.Goodbye: lambda p, x, now: self.detector.goodbye(p, now),
            m.Superseded: lambda p, x, now: self._superseded(x.by),
            m.Route: self._route,
            m.TreeJoin: lambda p, x, now: self.scribe.join_received(p, x, now),
            m.TreeWelcome: lambda p, x, now: self.scribe.welcome_received(p, x, now),
            m.TreeRefusal: lambda p, x, now: self.scribe.refusal_received(p, x, now),
            m.TreeRedirect: lambda p, x, now: self.scribe.redirect_received(p, x, now),
            m.TreeLeave: lambda p, x, now: self.scribe.leave_received(p, x),
            m.Alive: lambda p, x, now: self.scribe.alive_received(p, x, now),
            m.TreePulse: lambda p, x, now: self.scribe.pulse_received(p, x, now),
            m.Multicast: self._multicast,
            m.LookUpReply: lambda p, x, now: self.replication.look_up_answered(x, now),
            m.HoldingsQuery: lambda p, x, now: self.replication.query_received(p, x),
            m.HoldingsReply: lambda p, x, now: self.replication.reply_received(p, x),
            FarReply: lambda p, x, now: self.replication.far_replied(x, now),
            Release: lambda p, x, now: self.replication.released(p, x, x.tree in self.scribe.trees, now),
            Absent: lambda p, x, now: self.replication.absence_told(p, x, now),
            Withdrawn: lambda p, x, now: self.replication.withdrawn(p.id, x.tree),
            RootReply: lambda p, x, now: self.terms.root_replied(p, x),
            TermRequest: lambda p, x, now: self.terms.term_requested(p, x, now),
            TermReply: lambda p, x, now: self.terms.replied(p, x),
        }

    # --- the seam -----------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> Effects:
        """Decide what follows from `event` at `now` (monotonic seconds).

        RemoteProtocolError: the message is one that no such peer may send; drop its connection. LocalProtocolError: the application
        asked for what cannot be. State is unchanged by either, but that the peer was heard. After Leave nothing follows from anything.
        """
        if self._left:
            return []
        if self._due is not None and now - self._due > self._parameters.late_max_s:
            self._owed += self._settle(self._wake(now - self._due, now - self._handled_at, now), now)
        self._handled_at = now
        effects = self._settle(self._events[type(event)](event, now), now)
        if self._owed:
            effects, self._owed = self._owed + effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When a TimerFired is wanted, None for never."""
        first = inf
        for clock in self._clocks:
            if clock.first < first:
                first = clock.first
        next_due = first if first < inf and not self._left else None
        # What was due before the last event is late by what has passed since: that one sleep was noticed.
        self._due = max(next_due, self._handled_at) if next_due is not None else None
        return next_due

    def outdated(self, peer: Peer) -> bool:
        """Is a later life of this peer promised, or heard? What this one brings, or asks for, is of the past (terms, rule 3)."""
        return self.terms.is_of_the_past(peer)

    def _settle(self, first: Effects, now: float) -> Effects:
        """What is for the outside, once the machines have told each other everything; the detector watches whom they name."""
        out = self._hand_on(first, now) if first or self._ring_moved else first
        watching = (self.pastry.revision, self.scribe.revision)
        if watching != self._watching:
            self._watching = watching
            self.detector.watch([*self.pastry.watched(), *self.scribe.relatives()], now)
        return out

    def _hand_on(self, first: Effects, now: float) -> Effects:
        """Hand effects between machines on, in order, until only those for the outside are left."""
        out: Effects = []
        waiting = deque(first)
        while waiting or self._ring_moved:
            if not waiting:
                self._ring_moved = False
                more = [*self.pastry.forwarding.release(now), *self.scribe.ring_changed(now), *self.replication.leaf_set_changed(now)]
                waiting.extend(more)
                continue
            effect = waiting.popleft()
            handler = self._between.get(type(effect))
            if handler is not None:
                waiting.extend(handler(effect, now))
            elif type(effect) is not fx.Send:
                out.append(effect)
                if (overheard := self._overheard.get(type(effect))) is not None:
                    waiting.extend(overheard(effect, now))
            elif effect.peer.id == self.self_peer.id:
                # What a machine sends to the node's own id (the closest node to its own key asks itself) takes no wire.
                waiting.extend(self._from_ourselves(effect.message, now))
            else:
                if effect.peer.id == self.pastry.left_id and not isinstance(effect.message, m.Heartbeat):
                    self.pastry.sent_left = True
                out.append(effect)
        return out

    def _from_ourselves(self, message: m.Message, now: float) -> Effects:
        """Others can have us answer ourselves, to what we did not ask: no more than their message is wrong then."""
        try:
            return self._messages[type(message)](self.self_peer, message, now)
        except RemoteProtocolError as error:
            return [fx.Notify("own_message_dropped", {"message": type(message).__name__, "reason": str(error)})]

    def _died(self, effect: fx.PeerDied, now: float) -> Effects:
        self._ring_moved = True
        return [
            *self.pastry.died(effect.peer, now, in_silence=effect.in_silence),
            *self.scribe.died(effect.peer, effect.reason, effect.in_order, effect.silent_s, now),
            *self.replication.died(effect.peer, now, in_order=effect.in_order),
        ]

    def _cleared(self, effect: fx.PeerCleared, now: float) -> Effects:
        effects = [*self.pastry.meet(effect.peer, now), *self.pastry.forwarding.release(now)]
        if effect.missed_since is None:
            return effects
        self.replication.was_blind(effect.missed_since, now)
        return effects + self.pastry.found_again(effect.peer, now)

    def _leaf_set_changed(self, effect: fx.LeafSetChanged, now: float) -> Effects:
        self._ring_moved = True
        return []

    def _ordered(self, tree: TreeId, body: m.RoundOpen, now: float) -> Effects:
        """At the root, which is sent none of its own orders, and at each member."""
        self.replication.tree_waits(tree, body.mode == "exact" and body.phase != "done", now)
        return self.replication.tree_closed(tree) if body.phase == "done" else self.replication.tree_reopened(tree, now)

    def _acquaintances(self) -> list[Peer]:
        """Whom we may ask for help."""
        return [*self.pastry.leaf_set, *self.pastry.table]

    # --- dispatch -----------------------------------------------------------------------------------------------------

    def _message(self, event: ev.MessageReceived, now: float) -> Effects:
        peer, message = event.peer, event.message
        handler = self._messages.get(type(message))
        if handler is None:
            raise RemoteProtocolError(f"{type(message).__name__} does not belong on a control connection")
        if peer.id == self.self_peer.id:
            return self._superseded(peer)
        if (successor := self.terms.successor_of(peer) or self.scribe.successor_of(peer)) is not None:
            return [fx.Send(peer, m.Superseded(successor))]  # a root, whom nobody here would serve (terms, rule 3; scribe, rule 9)
        welcome, effects = self.detector.heard(peer, now)
        if not welcome:
            return effects
        if not isinstance(message, m.Goodbye):
            effects += self.pastry.meet(peer, now)
        try:
            return effects + handler(peer, message, now)
        except RemoteProtocolError:
            self._owed += self._settle(effects, now)  # it lives, whatever it says, and an earlier life of it does not
            raise

    def _peer_lost(self, event: ev.PeerLost, now: float) -> Effects:
        peer = event.peer
        asked = self.terms.lost(peer)
        related = any(peer.id == relative.id for relative in self.scribe.relatives())
        if related or self.pastry.knows(peer):
            return [*asked, *self.detector.suspect(peer, event.reason, now)]
        self.pastry.upkeep.lost(peer)
        return asked

    def _dial_ended(self, event: ev.DialEnded, now: float) -> Effects:
        judged = self.detector.dial_ended(event.peer, event.found, event.refused, event.reason, now)
        return [*judged, *self.terms.dial_ended(event.peer, event.found, event.refused)]

    def _ask_electors(self, event: ev.AskElectors, now: float) -> Effects:
        question = TermRequest(event.request, event.tree, event.term, event.version, event.sounding)
        return self.terms.ask(event.request, question, event.electors)

    def _hears(self, identifier: NodeId, now: float) -> bool:
        """Was it heard lately, and is not in doubt?"""
        recent = self.detector.heard_at(identifier) >= now - self._parameters.silence_max_s
        return recent and not self.detector.is_suspect(identifier)

    def _multicast(self, sender: Peer, message: m.Multicast, now: float) -> Effects:
        """Not from a root whose successor is promised (terms, rule 3)."""
        promised = self.terms.promised(message.tree)
        if message.order[0] < promised:
            return [fx.Notify("order_refused", {"tree": message.tree, "order": message.order, "promised": promised})]
        return self.scribe.multicast_received(sender, message, now)

    def _seed_answered(self, event: ev.SeedAnswered, now: float) -> Effects:
        if event.peer.id == self.self_peer.id:
            return self._superseded(event.peer) or self.pastry.seed_failed(event.address, "it is an earlier life of this node", now)
        _, effects = self.detector.heard(event.peer, now)
        return effects + self.pastry.seed_answered(event.peer, now)

    def _superseded(self, by: Peer) -> Effects:
        if by.id != self.self_peer.id or not 0 < by.incarnation - self.self_peer.incarnation <= LEAP_HEARD_MAX:
            return []  # of the past, or of no clock (terms, rule 7)
        return [fx.Quit(f"a newer life of this agent has started at {by.address} (incarnation {by.incarnation}): this one leaves", by)]

    def _route(self, sender: Peer, message: m.Route, now: float) -> Effects:
        body = message.body
        if not isinstance(body, m.Routable) or message.hops < 0:
            raise RemoteProtocolError(f"{type(body).__name__} after {message.hops} hops is not routed")
        if message.hops > 0:
            self.pastry.in_ring(sender)  # who is not forwards nothing
        effects: Effects = []
        if isinstance(body, m.JoinRequest):
            joiner = body.joiner
            if joiner.id == self.self_peer.id:
                return self._superseded(joiner)
            known = self._known_life(joiner.id)
            if known is not None and known.incarnation < joiner.incarnation:
                effects += [fx.Send(known, m.Superseded(joiner)), *self.detector.heard(joiner, now)[1]]
            if not self.pastry.active:
                effects.append(fx.Send(joiner, self.pastry.probe(now)))  # it is not alone in waiting
        return effects + self.pastry.forwarding.received(sender, message, now)

    def _row_request(self, sender: Peer, message: m.RowRequest, now: float) -> Effects:
        self.pastry.in_ring(sender)
        return self.pastry.upkeep.row_request(sender, message)

    def _known_life(self, identifier: NodeId) -> Peer | None:
        return self.pastry.leaf_set.get(identifier) or self.pastry.table.get(identifier)

    def _deliver(self, effect: fx.DeliverBody, now: float) -> Effects:
        match effect.body:
            case m.JoinRequest():
                return self.pastry.join_request(effect.body)
            case m.LookUp():
                return self.replication.look_up_delivered(effect.body, now)
            case FarQuery():
                return self.replication.far_query_delivered(effect.body)
            case Stray():
                return self.replication.stray_delivered(effect.body, now)
            case RootQuery():
                return self.terms.root_query_delivered(effect.body)
            case m.Datagram():
                return [fx.Delivered(effect.key, effect.body.payload, effect.hops)]
        raise RemoteProtocolError(f"{type(effect.body).__name__} cannot be delivered by key")

    # --- time and leaving ---------------------------------------------------------------------------------------------

    def _wake(self, late_s: float, idle_s: float, now: float) -> Effects:
        """Whatever comes first after a sleep, a message perhaps, finds a node that knows that it slept. idle_s: since it did anything."""
        self._due = None
        self.scribe.forgive(late_s, now)
        self.replication.was_blind(now - late_s, now)
        fact = fx.Notify("slept", {"late_s": round(late_s, 3)})
        return [fact, *self.detector.forgive(late_s, now), *self.pastry.slept(late_s, idle_s, now)]

    def _timer(self, now: float) -> Effects:
        effects: Effects = []
        if self.detector.deadlines.first <= now:
            effects += self.detector.on_timer(now)
        effects += self.pastry.on_timer(now)
        if self.scribe.deadlines.first <= now:
            effects += self.scribe.on_timer(now)
        if self.replication.deadlines.first <= now:
            effects += self.replication.on_timer(now)
        return effects

    def _leave(self) -> Effects:
        self._left = True
        known = {peer.id: peer for peer in (*self.detector.lives(), *self.pastry.leaf_set, *self.scribe.relatives())}
        return [fx.Send(peer, m.Goodbye()) for peer in known.values()]

    def check_invariants(self) -> None:
        """AssertionError where a machine's state contradicts itself: a bug of ours, whatever the peers did."""
        for machine in (self.detector, self.pastry, self.scribe, self.replication, self.terms):
            machine.check_invariants()
