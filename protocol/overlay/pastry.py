"""Pastry (Rowstron & Druschel 2001) with MSPastry's consistency (Castro, Costa, Rowstron, DSN 2004): who is in the ring, where a key lives.

1. Routing (Pastry 2.3). Where the leaf set covers the key: the numerically closest of it and us. Else the table's entry. Else any node
   that we know with no shorter a prefix and closer to the key; else any closer one.
2. Join (Pastry 2.4). Through a seed, a JOIN is routed to the joiner's id; each hop adds its row; the closest node answers with its leaf
   set. A JOIN never goes to an older life of the joiner.
3. Consistency (MSPastry 3.1). A node is inactive, and delivers nothing, until every candidate of its leaf set has been probed and has
   answered. Nobody inserts a node that it has not heard from; nobody believes a death that it has not verified: a death or a
   neighbour told by others is probed, never taken over.
4. A message whose next hop is a suspect waits for the verdict, and is then delivered there or by the next closest.
5. What was sent to a hop shortly before its death was noticed may be lost: it is routed again. Deliveries may so be doubled, never lost
   silently.
6. Repair (Pastry 2.5). Each verified death is told to the leaf set; the answers carry candidates for the gap.
7. Exchange (Bamboo). Every few heartbeats one leaf-set member, each in turn, is told our leaf set and answers with its own: what any
   rule above has missed (a life that began while we slept) comes right within one turn. One entry of the table, each in turn, is
   pinged with it (MSPastry 3.2): nobody else would tell us that it hangs.
8. A node with nobody left goes back to its seeds. Without seeds it is a ring of one, and keeps trying whom it remembers.

    joining --JOIN answered, candidates probed--> active --nobody left, seeds given--> joining
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random

from protocol.identifiers import Address, NodeId, Peer, rank, shared_prefix
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Activated, DeliverBody, DialSeed, Effect, LeafSetChanged, Notify, Send, Suspect
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.routing_table import RoutingTable
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Heartbeat, JoinReply, JoinRequest, LeafProbe, LeafProbeReply, Ping, Routable, Route

PROBES_MAX = 4
CANDIDATES_PER_LEAF = 16
"""At most so many candidates for each place in the leaf set are under probe: what a peer lists costs a bounded number of probes."""


class Pastry:
    """One node's view of the ring. `is_suspect` and `is_dead` are the failure detector's word."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        rng: Random,
        is_suspect: Callable[[NodeId], bool],
        is_dead: Callable[[Peer], bool],
        recently_dead: Callable[[], tuple[NodeId, ...]],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._is_suspect = is_suspect
        self._is_dead = is_dead
        self._recently_dead = recently_dead
        self.leaf_set = LeafSet(me.id, parameters.side)
        self.table = RoutingTable(me.id)
        self.active = False
        self._probing: dict[NodeId, Peer] = {}
        """Candidates of the leaf set that have been probed and have not answered."""
        self._attempts: dict[NodeId, int] = {}
        self._pinged: dict[NodeId, Peer] = {}
        """Candidates of the table, likewise."""
        self._held: deque[Route] = deque()
        self._sent: deque[tuple[float, NodeId, Route]] = deque(maxlen=parameters.held_messages_max)
        """What was lately handed to which hop, in case it was dead already."""
        self._seeds: tuple[Address, ...] = ()
        self._hints: tuple[Address, ...] = ()
        self._untried: deque[Address] = deque()
        self._join_wait_s = parameters.retry_min_s
        self._beats = 0
        self._deadlines: Deadlines[tuple[str, NodeId]] = Deadlines()

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def neighbours(self) -> list[Peer]:
        """The nearest node on each side: those with whom heartbeats are exchanged."""
        near = [side[0] for side in (self.leaf_set.left, self.leaf_set.right) if side]
        return near if len(near) < 2 or near[0] != near[1] else near[:1]

    def knows(self, peer: Peer) -> bool:
        """Does this peer matter to the ring as we see it?"""
        return any(
            found is not None and found.incarnation <= peer.incarnation
            for found in (self.leaf_set.get(peer.id), self.table.get(peer.id), self._probing.get(peer.id), self._pinged.get(peer.id))
        )

    # --- joining ------------------------------------------------------------------------------------------------------

    def start(self, seeds: Iterable[Address], hints: Iterable[Address], now: float) -> list[Effect]:
        """Enter the ring through the seeds, then through the hints; a ring of one where no seed was named and no hint answers."""
        self._seeds = tuple(address for address in seeds if address != self._me.address)
        self._hints = tuple(address for address in hints if address != self._me.address)
        self._deadlines.set(("heartbeat", self._me.id), now + self._parameters.heartbeat_interval_s)
        self._untried = deque((*self._seeds, *self._hints))
        return self._try_next_seed(now)

    def _try_next_seed(self, now: float) -> list[Effect]:
        if self._untried:
            self._deadlines.set(("join", self._me.id), now + self._parameters.join_timeout_s)
            return [DialSeed(self._untried.popleft())]
        if not self._seeds:
            self._deadlines.drop(("join", self._me.id))
            return self._activate(now)
        wait_s = self._join_wait_s * self._rng.uniform(0.75, 1.25)
        self._join_wait_s = min(2 * self._join_wait_s, self._parameters.retry_max_s)
        self._untried = deque((*self._seeds, *self._hints))
        self._deadlines.set(("join", self._me.id), now + wait_s)
        return [Notify("no_seed_reachable", {"tried": (*self._seeds, *self._hints), "again_in_s": round(wait_s, 2)})]

    def seed_answered(self, peer: Peer, now: float) -> list[Effect]:
        if self.active or self._probing or peer.id == self._me.id:
            return []
        self._deadlines.set(("join", self._me.id), now + self._parameters.join_timeout_s)
        return [Send(peer, Route(self._me.id, JoinRequest(self._me)))]

    def seed_failed(self, address: Address, reason: str, now: float) -> list[Effect]:
        if self.active:
            return []
        return [Notify("seed_failed", {"address": address, "reason": reason}), *self._try_next_seed(now)]

    def join_request(self, request: JoinRequest, key: NodeId) -> list[Effect]:
        """We are the live node closest to the joiner."""
        joiner = request.joiner
        return [Send(joiner, JoinReply(self._with_row(request.candidates, joiner.id), tuple(self.leaf_set)))]

    def join_reply(self, sender: Peer, reply: JoinReply, now: float) -> list[Effect]:
        if self.active:
            return []
        effects: list[Effect] = []
        for peer in (sender, *reply.leaf_set):
            effects += self._consider_leaf(peer, now)
        for peer in reply.candidates:
            effects += self._consider_leaf(peer, now) or self._consider_entry(peer, now)
        return effects + self._settle(now)

    def _with_row(self, candidates: tuple[Peer, ...], joiner: NodeId) -> tuple[Peer, ...]:
        """The candidates of the way so far, ourselves, and our row for the joiner; each once."""
        mine = (self._me, *self.table.row(shared_prefix(self._me.id, joiner)))
        seen = {peer.id: peer for peer in (*mine, *candidates) if peer.id != joiner}
        return tuple(seen.values())[: 4 * self._parameters.leaf_set_size]

    # --- probing ------------------------------------------------------------------------------------------------------

    def _probe(self) -> LeafProbe:
        return LeafProbe(tuple(self.leaf_set), self._recently_dead())

    def _consider_leaf(self, peer: Peer, now: float) -> list[Effect]:
        """Probe a candidate of the leaf set, unless it is in, under probe, dead, or too far."""
        member = self.leaf_set.get(peer.id)
        wanted = member.incarnation < peer.incarnation if member is not None else self.leaf_set.admits(peer.id)
        if not wanted or peer.id in self._probing or self._is_dead(peer):
            return []
        if len(self._probing) >= CANDIDATES_PER_LEAF * self._parameters.leaf_set_size:
            return []
        self._probing[peer.id] = peer
        self._deadlines.set(("probe", peer.id), now + self._parameters.probe_timeout_s)
        return [Send(peer, self._probe())]

    def _consider_entry(self, peer: Peer, now: float) -> list[Effect]:
        return self._ping(peer, now) if self.table.wants(peer.id) else []

    def _ping(self, peer: Peer, now: float) -> list[Effect]:
        """Is it alive? Silence makes a suspect."""
        if peer.id in self._pinged or self._is_dead(peer) or len(self._pinged) >= self._parameters.held_messages_max:
            return []
        self._pinged[peer.id] = peer
        self._deadlines.set(("ping", peer.id), now + self._parameters.probe_timeout_s)
        return [Send(peer, Ping())]

    def meet(self, peer: Peer, now: float) -> list[Effect]:
        """A live peer was heard: it may be a neighbour that we lack (found again after a partition, say)."""
        self.table.insert(peer)
        if peer.id in self.leaf_set:
            return [LeafSetChanged()] if self.leaf_set.insert(peer) else []
        return self._consider_leaf(peer, now) if self.active else []

    def probe_received(self, sender: Peer, probe: LeafProbe | LeafProbeReply, now: float) -> list[Effect]:
        """MSPastry's LS-PROBE and its reply: insert the sender, verify what it says, answer."""
        effects: list[Effect] = []
        changed = self.leaf_set.insert(sender)
        self.table.insert(sender)
        for identifier in probe.failed:
            member = self.leaf_set.get(identifier) or self.table.get(identifier)
            if member is not None and identifier != sender.id:
                effects.append(Suspect(member, f"{sender.id.short} believes it dead"))
        for peer in probe.leaf_set:
            effects += self._consider_leaf(peer, now)
        if isinstance(probe, LeafProbe):
            effects.append(Send(sender, LeafProbeReply(tuple(self.leaf_set), self._recently_dead())))
        elif self._probing.pop(sender.id, None) is not None:
            self._attempts.pop(sender.id, None)
            self._deadlines.drop(("probe", sender.id))
        if changed:
            effects.append(LeafSetChanged())
        # A sender that knows nobody may itself be joining: it proves that it lives, not that the two of us are the ring.
        return effects + self._settle(now) if self.active or probe.leaf_set else effects

    def _probe_again(self, identifier: NodeId, now: float) -> list[Effect]:
        """A candidate is silent: have it judged, and ask again; one that lives but never answers is no candidate."""
        candidate = self._probing[identifier]
        self._attempts[identifier] = self._attempts.get(identifier, 0) + 1
        if self._attempts[identifier] >= PROBES_MAX:
            del self._probing[identifier], self._attempts[identifier]
            return [Notify("candidate_dropped", {"peer": candidate, "reason": "alive, but answers no probe"}), *self._settle(now)]
        self._deadlines.set(("probe", identifier), now + self._parameters.probe_timeout_s)
        return [Send(candidate, self._probe()), Suspect(candidate, "silent when probed")]

    def pong_received(self, sender: Peer) -> list[Effect]:
        self._pinged.pop(sender.id, None)
        self._deadlines.drop(("ping", sender.id))
        return []

    def _settle(self, now: float) -> list[Effect]:
        """Active once every candidate has answered. Once active: what was held while a candidate was in doubt goes on."""
        if self.active:
            return self.release(now)
        if self._probing or not len(self.leaf_set):
            return []
        return self._activate(now)

    def _activate(self, now: float) -> list[Effect]:
        self.active = True
        self._join_wait_s = self._parameters.retry_min_s
        self._deadlines.drop(("join", self._me.id))
        return [Activated(), LeafSetChanged(), *self.release(now)]

    # --- deaths -------------------------------------------------------------------------------------------------------

    def died(self, peer: Peer, now: float) -> list[Effect]:
        """A verified death: out of leaf set and table, told to the neighbours, whose answers fill the gap."""
        effects: list[Effect] = []
        for waiting, kind in ((self._probing, "probe"), (self._pinged, "ping")):
            if (found := waiting.get(peer.id)) is not None and found.incarnation <= peer.incarnation:
                del waiting[peer.id]
                self._attempts.pop(peer.id, None)
                self._deadlines.drop((kind, peer.id))
        entry = self.table.get(peer.id)
        if entry is not None and entry.incarnation <= peer.incarnation:
            self.table.remove(peer.id)
        self._take_back(peer.id, now)
        member = self.leaf_set.get(peer.id)
        if member is not None and member.incarnation <= peer.incarnation:
            self.leaf_set.remove(peer.id)
            effects.append(LeafSetChanged())
            effects += self.probe_everyone()
            for candidate in sorted(self.table, key=lambda other: rank(self._me.id, other.id))[: self._parameters.side]:
                effects += self._consider_leaf(candidate, now)
        if self.active and not len(self.leaf_set) and self._seeds:
            self.active = False
            effects.append(Notify("ring_lost", {"reason": "no neighbour is left; back to the seeds"}))
            self._untried = deque((*self._seeds, *self._hints))
            effects += self._try_next_seed(now)
        elif not self.active:
            effects += self._settle(now)
        return effects

    def _take_back(self, dead: NodeId, now: float) -> None:
        """Hold again what the dead hop was given in the time that its death may have gone unnoticed."""
        since = now - self._parameters.silence_max_s - 2 * self._parameters.probe_timeout_s
        lost = [message for when, hop, message in self._sent if hop == dead and when >= since]
        self._sent = deque((entry for entry in self._sent if entry[1] != dead and entry[0] >= since), self._sent.maxlen)
        self._held.extend(lost[: self._parameters.held_messages_max - len(self._held)])

    # --- routing ------------------------------------------------------------------------------------------------------

    def next_hop(self, key: NodeId, avoid: NodeId | None = None) -> Peer | None:
        """The next hop towards key, rule 1; None where no known node but us is closest."""
        if self.leaf_set.covers(key):
            return self.leaf_set.closest(key, avoid)
        entry = self.table.towards(key)
        if entry is not None and entry.id != avoid and not self._is_suspect(entry.id):
            return entry
        mine, prefix = rank(key, self._me.id), shared_prefix(self._me.id, key)
        closer = [peer for peer in (*self.leaf_set, *self.table) if peer.id != avoid and rank(key, peer.id) < mine]
        far = [peer for peer in closer if shared_prefix(peer.id, key) >= prefix and not self._is_suspect(peer.id)]
        return min(far or closer, key=lambda peer: rank(key, peer.id), default=None)

    def route(self, message: Route, now: float) -> list[Effect]:
        """One step of a routed message: deliver, forward, or hold until we are active and the hop's verdict has fallen."""
        body = message.body
        avoid = body.joiner.id if isinstance(body, JoinRequest) else None
        if message.hops > self._parameters.hops_max:
            return [Notify("route_dropped", {"key": message.key, "reason": f"more than {self._parameters.hops_max} hops"})]
        hop = self.next_hop(message.key, avoid)
        if not self.active or (hop is not None and self._is_suspect(hop.id)) or (hop is None and self._unsure(message.key)):
            if len(self._held) >= self._parameters.held_messages_max:
                return [Notify("route_dropped", {"key": message.key, "reason": "too many messages are held"})]
            self._held.append(message)
            return []
        if hop is None:
            return [DeliverBody(message.key, body, message.hops)]
        if isinstance(body, JoinRequest):
            body = JoinRequest(body.joiner, self._with_row(body.candidates, body.joiner.id))
        message = replace(message, body=body, hops=message.hops + 1)
        self._sent.append((now, hop.id, message))
        return [Send(hop, message)]

    def _unsure(self, key: NodeId) -> bool:
        """Is a candidate under probe closer to the key than we are? Then it is not yet ours to deliver."""
        mine = rank(key, self._me.id)
        return any(rank(key, identifier) < mine for identifier in self._probing)

    def originate(self, key: NodeId, body: Routable, now: float) -> list[Effect]:
        return self.route(Route(key, body), now)

    def release(self, now: float) -> list[Effect]:
        """Try again what was held: something about the ring has become known."""
        effects: list[Effect] = []
        held, self._held = self._held, deque()
        for message in held:
            effects += self.route(message, now)
        return effects

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self._deadlines.due(now):
            if kind == "heartbeat":
                self._deadlines.set((kind, identifier), now + self._parameters.heartbeat_interval_s)
                effects += self._beat(now)
            elif kind == "join" and self._probing:
                self._deadlines.set((kind, identifier), now + self._parameters.join_timeout_s)
            elif kind == "join":
                effects += self._try_next_seed(now)
            elif kind == "probe":
                effects += self._probe_again(identifier, now)
            elif kind == "ping":
                peer = self._pinged.pop(identifier)
                effects.append(Suspect(peer, "silent when pinged"))
        return effects

    def _beat(self, now: float) -> list[Effect]:
        """A heartbeat to the neighbours; and every few, an exchange with the next member and a ping to the next entry in turn."""
        self._beats += 1
        effects: list[Effect] = [Send(peer, Heartbeat()) for peer in self.neighbours()]
        turn, rest = divmod(self._beats, self._parameters.heartbeat_misses)
        if self.active and rest == 0 and len(self.leaf_set):
            members, entries = list(self.leaf_set), list(self.table)
            effects.append(Send(members[turn % len(members)], self._probe()))
            if entries:
                effects += self._ping(entries[turn % len(entries)], now)
        return effects

    def probe_everyone(self) -> list[Effect]:
        """Tell the whole leaf set, and hear from it: this node slept, or a neighbour died."""
        return [Send(member, self._probe()) for member in self.leaf_set]

    def check_invariants(self) -> None:
        assert self._me.id not in self.leaf_set, "a node is its own neighbour"
        assert self.table.get(self._me.id) is None, "a node is in its own table"
        assert all(("probe", identifier) in self._deadlines for identifier in self._probing), "a probe without a deadline"
        assert all(("ping", identifier) in self._deadlines for identifier in self._pinged), "a ping without a deadline"
        assert len(self._held) <= self._parameters.held_messages_max, "too many messages are held"
        assert self.active or ("join", self._me.id) in self._deadlines or self._probing or not self._seeds, (
            "joining, and nothing will happen"
        )
