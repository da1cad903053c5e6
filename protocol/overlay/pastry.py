"""Pastry (Rowstron & Druschel 2001) with MSPastry's consistency (Castro, Costa, Rowstron, DSN 2004): who is in the ring.

The first way into it: joining.py. Where a key lives, and the way there: forwarding.py. Who is in the routing table: table_upkeep.py.
Here: the leaf set.

1. Join (Pastry 2.4). Through a seed, a JOIN is routed to the joiner's id; each hop adds its row; the closest node answers with its leaf
   set. A JOIN never goes to an older life of the joiner.
2. Consistency (MSPastry 3.1). A node is inactive, and delivers nothing, until an active node has told it its place, and every candidate
   of its leaf set has been probed and has answered. An inactive node says so, and is no hop for another's JOIN. Nobody inserts a node
   that it has not heard from; nobody believes a death that it has not verified: a death or a neighbour told by others is probed, never
   taken over.
3. Mutual neighbours. A key on our right is ours to deliver only while our right neighbour has named us as its left one, and likewise on the
   left: so two nodes never deliver the same key, whatever each of them has missed. Whoever gets a new neighbour tells it; until it has
   answered in kind, it is asked again with each heartbeat. A neighbour may name one between us that we hold dead: the way from us to
   it may be all that is cut. What is closer to that one goes through the neighbour, what is closer to us is ours in either case.
   Who had a full leaf set and has lost half of it in silence may be cut off, with others that it does not know: it delivers nothing until
   it has found some, or has waited as long as these may take to notice it.
4. Heartbeats go to the left neighbour only, when nothing else was sent to it (MSPastry 4.1); each watches its right neighbour.
5. Repair (Pastry 2.4, MSPastry 3.1). A verified death next to us is told to the whole leaf set, which verifies it; one farther off is
   repaired by asking the farthest live node on its side. Who does not answer is suspected in turn: a rack that goes dark is found out in
   parallel, not one neighbour after the other. Who lacks members is also told who, of all that the asked one knows, is
   nearest: the way back into the ring is as short as a route, even where a whole side died at once.
6. Exchange (Bamboo, section 4.1). Now and then one member, each in turn, compares leaf sets with us: what the rules above have missed
   comes right.
7. A node with nobody left goes back to its seeds and to the peers that it remembers. Without seeds it is a ring of one, and keeps trying.
8. Two rings become one. Who was believed dead and is heard again, and now and then a seed, is asked for our place in its ring: the
   same JOIN brings the neighbours that we should have there.

    joining --JOIN answered, candidates probed--> active --nobody left, seeds given--> joining
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from random import Random

from protocol.identifiers import RING, Address, NodeId, Peer, clockwise, rank
from protocol.overlay.candidates import Candidates
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Activated, Dial, Effect, LeafSetChanged, Notify, Send, Suspect
from protocol.overlay.forwarding import Forwarding
from protocol.overlay.joining import Joining
from protocol.overlay.judgement import Judgement
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.proximity import Proximity
from protocol.overlay.routing_table import RoutingTable
from protocol.overlay.table_upkeep import TableUpkeep
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Heartbeat, JoinReply, JoinRequest, LeafProbe, LeafProbeReply, Routable, Route

PROBES_MAX = 4
CUT_OFF = ("cut off", NodeId(0))
"""The deadline up to which we may be cut off: as long as it is ahead, rule 3 lets us deliver nothing."""

View = tuple[Peer, Peer]
"""Whom a neighbour has last named as its own right and left neighbour."""


class Pastry:
    """One node's view of the ring. `judge` is the failure detector."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        rng: Random,
        judge: Judgement,
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._judge = judge
        self.leaf_set = LeafSet(me.id, parameters.side)
        self.proximity = Proximity(parameters)
        self.table = RoutingTable(me.id, self.proximity.rtt_s)
        self._inactive: set[NodeId] = set()
        """Who has said that it is joining itself: it places nobody."""
        self.forwarding = Forwarding(
            me, parameters, self.leaf_set, self.table, self.proximity, self._inactive, judge, lambda: self.active, self._claim
        )
        self.upkeep = TableUpkeep(me, parameters, rng, self.leaf_set, self.table, self.proximity, judge)
        self.joining = Joining(me, parameters, rng, self._activate, self._may_found)
        self.active = False
        self.revision = 0
        """Grows when the neighbour that we watch changes."""
        self.left_id: NodeId | None = None
        """To whom heartbeats go."""
        self.sent_left = False
        """Was anything sent to it since the last heartbeat? Set by who sees every message go (node.py)."""
        self._adjacent: tuple[Peer | None, Peer | None] = (None, None)
        """Right and left neighbour, as last told."""
        self._views: dict[Peer, View] = {}
        """By life: what a neighbour named before it restarted, its next life need not know."""
        self._candidates = Candidates(self.leaf_set)
        self._met: dict[NodeId, int] = {}
        """Who was met, in which incarnation, and is of no use to leaf set or table as they are."""
        self._was_full = False
        self._turn = 0
        self.deadlines: Deadlines[tuple[str, NodeId]] = Deadlines()
        self.clocks = (self.deadlines, self.joining.deadlines, self.forwarding.deadlines, self.upkeep.deadlines)

    def next_deadline(self) -> float | None:
        first = min(clock.first for clock in self.clocks)
        return first if first < inf else None

    def next_beat(self, now: float) -> float:
        """When the next heartbeat is due: what else has this period goes with it, and the node wakes once."""
        when = self.deadlines.when(("heartbeat", self._me.id))
        return now + self._parameters.heartbeat_interval_s if when is None else when

    def watched(self) -> tuple[Peer, ...]:
        """Whose silence on the ring matters: the right neighbour, rule 4."""
        return self.leaf_set.right[:1]

    def knows(self, peer: Peer) -> bool:
        """Does this peer matter to the ring as we see it?"""
        found = (self.leaf_set.get(peer.id), self.table.get(peer.id), self._candidates.get(peer.id))
        return any(known is not None and known.incarnation <= peer.incarnation for known in found)

    # --- rule 3 -------------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Active, and named by both neighbours: this node delivers whatever is closest to it."""
        return self.active and CUT_OFF not in self.deadlines and self._named_by_right() and self._named_by_left()

    def _named_by_right(self) -> bool:
        if not self.leaf_set.right:
            return True
        view = self._views.get(self.leaf_set.right[0])
        return view is not None and view[1].id == self._me.id

    def _named_by_left(self) -> bool:
        if not self.leaf_set.left:
            return True
        view = self._views.get(self.leaf_set.left[0])
        return view is not None and view[0].id == self._me.id

    def _claim(self, key: NodeId) -> tuple[bool, Peer | None]:
        """Is the key, to which we know nobody closer, certainly ours to deliver? If not: through whom it may go all the same."""
        mine, way = rank(key, self._me.id), clockwise(self._me.id, key)
        if way == 0:
            return True, None
        if CUT_OFF in self.deadlines or any(rank(key, identifier) < mine for identifier in self._candidates):
            return False, None
        if not len(self.leaf_set):
            return True, None
        to_the_right = way <= RING // 2
        neighbour = self.leaf_set.right[0] if to_the_right else self.leaf_set.left[0]
        if (view := self._views.get(neighbour)) is None:
            return False, None
        named = view[1] if to_the_right else view[0]
        if named.id == self._me.id:
            return True, None
        if not self._judge.is_dead(named):
            return False, None
        ours = mine < rank(key, named.id)
        return ours, None if ours else neighbour

    def _note_view(self, sender: Peer, leaf_set: tuple[Peer, ...]) -> list[Effect]:
        """Whom the sender names as its neighbours. One that stands between us, and that we believe dead, is dialled again."""
        if self.leaf_set.get(sender.id) != sender:
            return []
        if not leaf_set:
            self._views.pop(sender, None)  # it knows nobody (any more), us included
            return []
        right, left = leaf_set[0], leaf_set[-1]
        self._views[sender] = right, left
        effects: list[Effect] = []
        for neighbour, other in ((self._adjacent[0], left), (self._adjacent[1], right)):
            if neighbour is not None and neighbour.id == sender.id and other.id != self._me.id and self._judge.is_dead(other):
                effects.append(Dial(other))
        return effects

    def _moved(self, now: float) -> list[Effect]:
        """The leaf set has changed: a new neighbour is told."""
        right, left = self.leaf_set.right[:1], self.leaf_set.left[:1]
        adjacent = (right[0] if right else None, left[0] if left else None)
        self._candidates.leaf_set_changed()
        self._met.clear()
        self._inactive -= {identifier for identifier in self._inactive if not self._holds(identifier)}
        self._was_full = self._was_full or not self.leaf_set.overlaps
        if len(self.leaf_set) > self._parameters.side:
            self.deadlines.drop(CUT_OFF)
        effects: list[Effect] = [LeafSetChanged()]
        self._views = {peer: view for peer, view in self._views.items() if self.leaf_set.get(peer.id) == peer}
        if adjacent == self._adjacent:
            return effects
        new = {peer.id: peer for peer in adjacent if peer is not None and peer not in self._adjacent}
        self._adjacent = adjacent
        self.revision += 1
        self.left_id = left[0].id if left else None
        if self.active:
            effects += [Send(peer, self.probe(now)) for peer in new.values()]
        return effects

    # --- joining ------------------------------------------------------------------------------------------------------

    def start(self, seeds: Iterable[Address], hints: Iterable[Address], now: float, shared: bool = False) -> list[Effect]:
        """Enter the ring through the seeds, then through the hints; a ring of one where no seed was named and no hint answers."""
        self.deadlines.set(("heartbeat", self._me.id), now + self._parameters.heartbeat_interval_s * self._rng.uniform(0.5, 1.0))
        self.deadlines.set(("exchange", self._me.id), now + self._parameters.exchange_interval_s * self._rng.uniform(0.5, 1.0))
        return self.joining.start(seeds, hints, now, shared)

    def seed_answered(self, peer: Peer, now: float) -> list[Effect]:
        """A seed lives: it routes our JOIN, also where we are in a ring already (rule 8)."""
        return [] if peer.id == self._me.id else self.joining.answered(peer, now)

    def seed_failed(self, address: Address, reason: str, now: float) -> list[Effect]:
        return [] if self.active else self.joining.failed(address, reason, now)

    def found_again(self, peer: Peer, now: float) -> list[Effect]:
        """The same life that was believed dead is heard: there may be a whole ring with it (rule 8). Of many, one is asked."""
        if not self.active or self.joining.asked_within(self._parameters.delay_max_s, now):
            return []
        return self.joining.ask(peer, now)

    def _may_found(self) -> bool:
        """Inactive nodes only were heard, and ours is the smallest id of all."""
        waiting = self._inactive
        return bool(waiting) and min(waiting) > self._me.id and all(peer.id in waiting for peer in self.leaf_set)

    def join_request(self, request: JoinRequest) -> list[Effect]:
        """We are the live node closest to the joiner."""
        joiner = request.joiner
        return [Send(joiner, JoinReply(self.forwarding.with_row(request.candidates, joiner.id), tuple(self.leaf_set)))]

    def join_reply(self, sender: Peer, reply: JoinReply, now: float) -> list[Effect]:
        if self.active and not self.joining.asked_within(self._parameters.look_up_timeout_s, now):
            return []
        self.joining.placed = True
        effects: list[Effect] = []
        # The nearest first: what lies farther then is no candidate of the leaf set any more.
        near = sorted((sender, *reply.leaf_set), key=lambda peer: rank(self._me.id, peer.id))
        for peer in (*near, *reply.candidates):
            effects += self._consider_leaf(peer, now) or self.upkeep.consider(peer, now)
        # Who is named to us as a neighbour, and whom we believe dead: it may have been the way between us.
        named = [peer for peer in near if self._judge.is_dead(peer) and self.leaf_set.admits(peer.id)]
        effects += [Dial(peer, self._judge.patience) for peer in named[: self._parameters.leaf_set_size]]
        return effects + self._settle(now)

    # --- probing ------------------------------------------------------------------------------------------------------

    def _lacking(self) -> bool:
        return self._was_full and self.leaf_set.overlaps

    @property
    def _probe_timeout_s(self) -> float:
        return self._parameters.probe_timeout_s * self._judge.patience

    def probe(self, now: float) -> LeafProbe:
        """What we know of our neighbourhood."""
        return LeafProbe(tuple(self.leaf_set), self._judge.recently_dead(now), self._lacking(), self.active)

    def _consider_leaf(self, peer: Peer, now: float) -> list[Effect]:
        """Probe a candidate of the leaf set, unless it is in, under probe, dead, or too far."""
        if not self._candidates.wanted(peer) or self._judge.is_dead(peer):
            return []
        self._candidates.add(peer)
        self.deadlines.set(("probe", peer.id), now + self._probe_timeout_s)
        return [Send(peer, self.probe(now))]

    def meet(self, peer: Peer, now: float) -> list[Effect]:
        """A live peer was heard: it may be a neighbour that we lack (found again after a partition, say)."""
        if self._met.get(peer.id) == peer.incarnation:
            return []
        member = self.leaf_set.get(peer.id)
        if member is not None:
            if member.incarnation == peer.incarnation:
                return []
            self.table.insert(peer)
            return self._moved(now) if self.leaf_set.insert(peer) else []
        entry = self.table.get(peer.id)
        if entry is None or entry.incarnation < peer.incarnation:
            self.table.insert(peer)
        if not self.leaf_set.admits(peer.id):
            if len(self._met) >= self._parameters.remembered_lives_max:
                self._met.clear()
            self._met[peer.id] = peer.incarnation
            return []
        return self._consider_leaf(peer, now) if self.active else []

    def probe_received(self, sender: Peer, probe: LeafProbe | LeafProbeReply, now: float) -> list[Effect]:
        """MSPastry's LS-PROBE and its reply: insert the sender, verify what it says, answer."""
        effects: list[Effect] = []
        changed = self.leaf_set.insert(sender)
        self.table.insert(sender)
        (self._inactive.discard if probe.active or not self._holds(sender.id) else self._inactive.add)(sender.id)
        if changed:
            effects += self._moved(now)
        for identifier in probe.failed:
            member = self.leaf_set.get(identifier) or self.table.get(identifier)
            if member is not None and identifier != sender.id:
                effects.append(Suspect(member, f"{sender.id.short} believes it dead", hearsay=True))
        for peer in probe.leaf_set:
            effects += self._consider_leaf(peer, now)
        effects += self._note_view(sender, probe.leaf_set)
        if isinstance(probe, LeafProbe):
            near = self._nearest_to(sender.id) if probe.lacking else ()
            effects.append(Send(sender, LeafProbeReply(tuple(self.leaf_set), self._judge.recently_dead(now), near, self.active)))
        else:
            for peer in probe.near[: 2 * self._parameters.leaf_set_size]:
                effects += self._consider_leaf(peer, now)
            if self._candidates.remove(sender.id):
                self.deadlines.drop(("probe", sender.id))
        if probe.active and not self.active:
            effects += self.joining.probed(sender, now)
        return effects + self._settle(now)

    def _holds(self, identifier: NodeId) -> bool:
        """Is it in leaf set or table?"""
        return identifier in self.leaf_set or self.table.get(identifier) is not None

    def in_ring(self, peer: Peer) -> None:
        """It has done what only a node in the ring does."""
        self._inactive.discard(peer.id)

    def _nearest_to(self, identifier: NodeId) -> tuple[Peer, ...]:
        """Of all that we know, those nearest to this node on either side (rule 5)."""
        known = {peer.id: peer for peer in (self._me, *self.leaf_set, *self.table) if peer.id != identifier}
        around = sorted(known.values(), key=lambda peer: clockwise(identifier, peer.id))
        near = {peer.id: peer for peer in (*around[: self._parameters.side], *around[-self._parameters.side :])}
        return tuple(near.values())

    def _probe_again(self, identifier: NodeId, now: float) -> list[Effect]:
        """A candidate is silent: have it judged, and ask again; one that lives but never answers is no candidate."""
        candidate = self._candidates.get(identifier)
        assert candidate is not None, "a deadline of no candidate"
        if self._candidates.missed(identifier) >= PROBES_MAX:
            self._candidates.remove(identifier)
            dropped = Notify("candidate_dropped", {"peer": candidate, "reason": "alive, but answers no probe"})
            return [dropped, *self._ask_for_others(now), *self._settle(now)]
        self.deadlines.set(("probe", identifier), now + self._probe_timeout_s)
        return [Send(candidate, self.probe(now)), Suspect(candidate, "silent when probed")]

    def _settle(self, now: float) -> list[Effect]:
        """Active once we know our place, and every candidate has answered. Once active: what was held for one in doubt goes on."""
        if self.active:
            return self.forwarding.release(now)
        if len(self._candidates) or not len(self.leaf_set) or not self.joining.placed:
            return []
        return self._activate(now)

    def _activate(self, now: float) -> list[Effect]:
        self.active = True
        self.joining.done()
        self._adjacent = (None, None)  # whoever they are, they have not been told since we are in the ring
        self.upkeep.begin(now)
        return [Activated(), *self._moved(now), *self.forwarding.release(now)]

    # --- deaths -------------------------------------------------------------------------------------------------------

    def died(self, peer: Peer, now: float, *, in_silence: bool = False) -> list[Effect]:
        """A verified death, or a leave: out of leaf set and table, and the gap is closed. in_silence: as in PeerDied."""
        effects: list[Effect] = []
        self._met.clear()
        probed = self._candidates.get(peer.id)
        if probed is not None and probed.incarnation <= peer.incarnation:
            self._candidates.remove(peer.id)
            self.deadlines.drop(("probe", peer.id))
            effects += self._ask_for_others(now)
        effects += self.upkeep.died(peer, now, in_silence=in_silence)
        member = self.leaf_set.get(peer.id)
        if member is not None and member.incarnation <= peer.incarnation:
            effects += self._close_gap(member, now)
            if in_silence and self._was_full and len(self.leaf_set) <= self._parameters.side:
                self.deadlines.set(CUT_OFF, now + 2 * self._parameters.verdict_max_s)
        effects += self.forwarding.died(peer, now)
        self._inactive.discard(peer.id)
        if self.active and not len(self.leaf_set) and (self.joining.has_seeds or len(self.table)):
            self.active = False
            self._inactive.clear()  # what was heard in the ring says nothing of who is cut off with us
            effects.append(Notify("ring_lost", {"reason": "no neighbour is left; back to the seeds and to the peers that we know"}))
            effects += self.joining.begin(now, [entry.address for entry in self.table])
        elif not self.active:
            effects += self._settle(now)
        return effects

    def _ask_for_others(self, now: float) -> list[Effect]:
        """A candidate came to nothing, and may have kept out others: the farthest on either side may know them."""
        farthest = {side[-1].id: side[-1] for side in (self.leaf_set.right, self.leaf_set.left) if side}
        return self._ask_members(farthest.values(), now)

    def _ask_members(self, members: Iterable[Peer], now: float) -> list[Effect]:
        """Probe these: who has not been heard within a probe's time is suspected. Where one died in silence, others may have with it."""
        effects: list[Effect] = []
        for member in members:
            self.deadlines.set(("reply", member.id), now + self._probe_timeout_s)
            effects.append(Send(member, self.probe(now)))
        return effects

    def _reply_due(self, identifier: NodeId, now: float) -> list[Effect]:
        member = self.leaf_set.get(identifier)
        if member is None or self._judge.heard_at(identifier) + self._probe_timeout_s > now:
            return []
        return [Suspect(member, "silent when told of a death")]

    def _close_gap(self, member: Peer, now: float) -> list[Effect]:
        """Rule 5."""
        next_to_us = member in self._adjacent
        side = self.leaf_set.left if member in self.leaf_set.left else self.leaf_set.right
        farthest = next((peer for peer in reversed(side) if peer.id != member.id), None)
        self.leaf_set.remove(member.id)
        self._views.pop(member, None)
        before = self._adjacent
        effects = self._moved(now)
        for neighbour in self._adjacent:
            if neighbour is not None and neighbour not in before:
                self._views.pop(neighbour, None)  # it may have named us before it knew the one between us: it must do so now
        if next_to_us:
            effects += self._ask_members(self.leaf_set, now)
        elif farthest is not None:
            effects += self._ask_members((farthest,), now)
        if len(self.leaf_set) <= self._parameters.side:
            for candidate in sorted(self.table, key=lambda other: rank(self._me.id, other.id))[: self._parameters.side]:
                effects += self._consider_leaf(candidate, now)
        return effects

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self.deadlines.due(now):
            match kind:
                case "heartbeat":
                    self.deadlines.set((kind, identifier), now + self._parameters.heartbeat_interval_s)
                    effects += self._beat(now)
                case "exchange":
                    self.deadlines.set((kind, identifier), now + self._parameters.exchange_interval_s * self._rng.uniform(0.75, 1.25))
                    effects += self._exchange(now)
                case "probe":
                    effects += self._probe_again(identifier, now)
                case "reply":
                    effects += self._reply_due(identifier, now)
                case "cut off":
                    effects += self.forwarding.release(now)
        if self.joining.deadlines.first <= now:
            effects += self.joining.on_timer(now, self.active, len(self._candidates) > 0, self.upkeep.nodes())
        if self.forwarding.deadlines.first <= now:
            effects += self.forwarding.on_timer(now)
        if self.upkeep.deadlines.first <= now:
            effects += self.upkeep.on_timer(now)
        return effects

    def _beat(self, now: float) -> list[Effect]:
        """Rules 3 and 4."""
        effects: list[Effect] = []
        right, left = self.leaf_set.right[:1], self.leaf_set.left[:1]
        if self.active:
            if right and not self._named_by_right():
                effects.append(Send(right[0], self.probe(now)))
            if left and not self._named_by_left():
                effects.append(Send(left[0], self.probe(now)))
        if left and not self.sent_left:
            effects.append(Send(left[0], Heartbeat()))
        self.sent_left = False
        return effects

    def _exchange(self, now: float) -> list[Effect]:
        """Rule 6."""
        members = tuple(self.leaf_set)
        if not self.active or not members:
            return []
        self._turn += 1
        return [Send(members[self._turn % len(members)], self.probe(now))]

    def slept(self, late_s: float, idle_s: float, now: float) -> list[Effect]:
        """This node slept, and has done nothing for idle_s. Where others may have given it up meanwhile, it delivers nothing until its
        neighbours have named it again; after a longer sleep it asks everybody what it missed. A busy machine is not to be made busier.
        """
        if idle_s <= self._parameters.burial_min_s:
            return []
        self._views.clear()
        probe = self.probe(now)
        if late_s > self._parameters.silence_max_s:
            return [Send(member, probe) for member in self.leaf_set]
        return [Send(neighbour, probe) for neighbour in dict.fromkeys(self._adjacent) if neighbour is not None]

    def originate(self, key: NodeId, body: Routable, now: float) -> list[Effect]:
        return self.forwarding.route(Route(key, body), now)

    def next_hop(self, key: NodeId) -> Peer | None:
        """The next hop towards key, None where we are closest: of those that are closer, one that is not suspected, where there is one."""
        hop, usable = self.forwarding.next_hop(key)
        return hop if usable else self.forwarding.next_hop(key, avoid=self._suspects())[0] or hop

    def _suspects(self) -> set[NodeId]:
        return {peer.id for peer in (*self.leaf_set, *self.table) if self._judge.is_suspect(peer.id)}

    def check_invariants(self) -> None:
        assert self._me.id not in self.leaf_set, "a node is its own neighbour"
        assert self.table.get(self._me.id) is None, "a node is in its own table"
        assert all(("probe", identifier) in self.deadlines for identifier in self._candidates), "a probe without a deadline"
        assert self._views.keys() <= set(self.leaf_set), "a view of a stranger"
        assert self.active or self.joining.under_way or not self.joining.has_seeds, "joining, and nothing will happen"
        self._candidates.check_invariants()
        self.forwarding.check_invariants()
        self.upkeep.check_invariants()
