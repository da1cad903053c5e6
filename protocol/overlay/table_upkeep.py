"""Upkeep of the routing table: who is in it, how far they are, and whether they live. A part of the machine Pastry.

1. Nobody enters the table that has not been heard. Candidates (rows of a join's way, of an exchange, of a repair) are pinged: the pong says
   that they live, and how far they are. The measurer tells the other (MSPastry 4.2: distance is symmetric).
2. Of two candidates for one place the nearer stays (Pastry 2.5).
3. Every entry is heard within T_rt, which tunes itself to the observed rate of deaths (failure_rate.py): one that was not is pinged; any
   traffic of its own makes that needless (MSPastry 4.1: suppression).
4. Repair is lazy (Pastry 2.4). When an entry has died, a node of the same row is asked for its row; where that has nobody for the place,
   another of the row, then one of the next row. Not at once, but at some moment of the next exchange_interval_s: messages find another
   way meanwhile, and those whose leaf sets the same deaths have torn have better things to do.
5. In the background, one row after the other, a node of the row is asked for it; the free places and a few at random of those whose
   distance is unknown are pinged (MSPastry 4.2: constrained gossip).
"""

from __future__ import annotations

from random import Random

from protocol.identifiers import RING, NodeId, Peer, clockwise
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Effect, Send, Suspect
from protocol.overlay.failure_rate import FailureRate, probe_period_s
from protocol.overlay.judgement import Judgement
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.proximity import Proximity
from protocol.overlay.routing_table import RoutingTable
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Measured, Ping, RowReply, RowRequest

PINGS_MAX = 48
"""Unanswered at one time; what is not asked now comes up again with an exchange, or in the next round."""
REPAIRS_MAX = 64
ASKED_FOR_A_REPAIR = 3
MEASURED_AT_ONCE = 4
"""Candidates whose distance alone is in question that are pinged after one exchange."""

Slot = tuple[int, int]


class TableUpkeep:
    """Keeps `table` full, near and alive. `judge` is the failure detector."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        rng: Random,
        leaf_set: LeafSet,
        table: RoutingTable,
        proximity: Proximity,
        judge: Judgement,
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._rng = rng
        self._leaf_set = leaf_set
        self._table = table
        self._proximity = proximity
        self._judge = judge
        self.pinged: dict[NodeId, tuple[Peer, float]] = {}
        """Who was pinged when, and has not answered."""
        self._repairs: dict[Slot, list[Peer] | None] = {}
        """Places of dead entries, and who else may be asked for somebody; None before anybody was."""
        self._turn = 0
        self._row = 0
        self._period_s = parameters.silence_max_s
        self._rate = FailureRate(0.0)
        self.deadlines: Deadlines[tuple[str, NodeId]] = Deadlines()

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    @property
    def period_s(self) -> float:
        """T_rt as last tuned."""
        return self._period_s

    def nodes(self) -> float:
        """How many are in the ring, estimated from how dense the leaf set lies (MSPastry 4.1)."""
        around = self._leaf_set
        if around.overlaps:
            return float(len(around) + 1)
        return len(around) * RING / max(clockwise(around.left[-1].id, around.right[-1].id), 1)

    def begin(self, now: float) -> None:
        """We are in the ring."""
        self._rate = FailureRate(now, self._parameters.row_interval_s, self._parameters.verdict_max_s)
        self._tune(now)
        self.deadlines.set(("sweep", self._me.id), now + self._parameters.silence_max_s)
        self.deadlines.set(("row", self._me.id), now + self._parameters.row_interval_s * self._rng.uniform(0.25, 1.0))

    # --- candidates ---------------------------------------------------------------------------------------------------

    def consider(self, peer: Peer, now: float) -> list[Effect]:
        """A candidate that we have not heard from: worth a ping where its place is free."""
        return self.ping(peer, now) if self._table.wants(peer.id) else []

    def ping(self, peer: Peer, now: float) -> list[Effect]:
        """Does it live, and how far is it? Silence makes a suspect."""
        if peer.id in self.pinged or self._judge.is_dead(peer) or len(self.pinged) >= PINGS_MAX:
            return []
        self.pinged[peer.id] = peer, now
        self.deadlines.set(("ping", peer.id), now + self._parameters.probe_timeout_s * self._judge.patience)
        return [Send(peer, Ping())]

    def lost(self, peer: Peer) -> None:
        """No connection with this peer: it answers no ping."""
        if peer.id in self.pinged and self._table.get(peer.id) is None:
            del self.pinged[peer.id]
            self.deadlines.drop(("ping", peer.id))

    def pong_received(self, sender: Peer, now: float) -> list[Effect]:
        pinged = self.pinged.pop(sender.id, None)
        if pinged is None:
            return []
        self.deadlines.drop(("ping", sender.id))
        first = self._proximity.rtt_s(sender.id) is None
        rtt_s = max(now - pinged[1], 0.0)
        self._proximity.sample(sender.id, rtt_s)
        self._table.insert(sender)
        return [Send(sender, Measured(min(round(1e6 * rtt_s), 1 << 40)))] if first else []

    def measured(self, sender: Peer, rtt_us: int) -> list[Effect]:
        """The sender has measured the way between us."""
        if 0 <= rtt_us < 1 << 41:
            self._proximity.told(sender.id, rtt_us / 1e6)
            self._table.insert(sender)
        return []

    # --- repair and exchange ------------------------------------------------------------------------------------------

    def row_reply(self, reply: RowReply, now: float) -> list[Effect]:
        effects: list[Effect] = []
        unknown: list[Peer] = []
        for peer in reply.entries[: self._parameters.leaf_set_size * 4]:
            if peer.id == self._me.id or self._table.get(peer.id) is not None:
                continue
            if self._table.wants(peer.id):
                effects += self.ping(peer, now)
            elif self._proximity.rtt_s(peer.id) is None:
                unknown.append(peer)
        repaired = [slot for slot, others in self._repairs.items() if slot[0] == reply.row and others is not None]
        for slot in repaired:
            effects += self._repair_on(slot)
        # Under many deaths, repair is all that an exchange is for: distance can wait.
        for peer in self._rng.sample(unknown, min(MEASURED_AT_ONCE, len(unknown)) if not repaired else 0):
            effects += self.ping(peer, now)
        return effects

    def row_request(self, sender: Peer, request: RowRequest) -> list[Effect]:
        return [Send(sender, RowReply(request.row, self._table.row(request.row)))]

    def _begin_repair(self, slot: Slot) -> list[Effect]:
        row, following = list(self._table.row(slot[0])), self._table.row(slot[0] + 1)
        self._rng.shuffle(row)
        self._repairs[slot] = [*row[: ASKED_FOR_A_REPAIR - 1], *following[:1]]
        return self._repair_on(slot)

    def _repair_on(self, slot: Slot) -> list[Effect]:
        """The next one to ask; done where the place is taken, or its candidate is being pinged."""
        coming = any(self._table.slot(identifier) == slot for identifier in self.pinged)
        others = self._repairs.pop(slot)
        if coming or self._table.at(slot) is not None or not others:
            return []
        self._repairs[slot] = others[1:]
        return [Send(others[0], RowRequest(slot[0]))]

    def died(self, peer: Peer, now: float, *, in_silence: bool) -> list[Effect]:
        """Rule 4, and what the rate of deaths says. in_silence: as in PeerDied. The leaf set still has it."""
        pinged = self.pinged.get(peer.id)
        if pinged is not None and pinged[0].incarnation <= peer.incarnation:
            del self.pinged[peer.id]
            self.deadlines.drop(("ping", peer.id))
        entry, member = self._table.get(peer.id), self._leaf_set.get(peer.id)
        if in_silence and any(known is not None and known.incarnation <= peer.incarnation for known in (entry, member)):
            self._rate.died(now)
            self._tune(now)
        if entry is None or entry.incarnation > peer.incarnation:
            return []
        self._proximity.forget(peer.id)
        self._table.remove(peer.id)
        slot = self._table.slot(peer.id)
        self._repairs.pop(slot, None)  # of the entry before this one, whose place was filled in another way
        if len(self._repairs) < REPAIRS_MAX:
            self._repairs[slot] = None
            self.deadlines.set(("repair", peer.id), now + self._parameters.exchange_interval_s * self._rng.random())
        return []

    # --- time ---------------------------------------------------------------------------------------------------------

    def _tune(self, now: float) -> None:
        known = len(self._table) + sum(self._table.get(peer.id) is None for peer in self._leaf_set)
        rate = self._rate.per_peer(known, now)
        self._period_s = probe_period_s(rate, self.nodes(), self._parameters)

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, identifier in self.deadlines.due(now):
            if kind == "ping":
                candidate = self.pinged.pop(identifier)[0]
                # A stranger that does not answer is no candidate, and nobody's concern.
                effects += [Suspect(candidate, "silent when pinged")] if self._table.get(identifier) is not None else []
            elif kind == "sweep":
                effects += self._sweep(now)
            elif kind == "row":
                effects += self._exchange(now)
            elif kind == "repair" and self._repairs.get(slot := self._table.slot(identifier), ()) is None:
                effects += self._begin_repair(slot)
        return effects

    def _sweep(self, now: float) -> list[Effect]:
        """One entry in turn, each twice in T_rt: pinged, where it was not heard for half of that; so none is unheard for longer."""
        entries = list(self._table)
        if self._turn >= len(entries):
            self._turn = 0
            self._tune(now)
        pause_s = min(self._period_s / (2 * max(len(entries), 1)), self._parameters.row_interval_s)
        self.deadlines.set(("sweep", self._me.id), now + pause_s)
        if not entries:
            return []
        entry = entries[self._turn]
        self._turn += 1
        return self.ping(entry, now) if self._judge.heard_at(entry.id) < now - self._period_s / 2 else []

    def _exchange(self, now: float) -> list[Effect]:
        """Rule 5."""
        self.deadlines.set(("row", self._me.id), now + self._parameters.row_interval_s * self._rng.uniform(0.75, 1.25))
        rows = self._table.rows
        if not rows:
            return []
        self._row = (self._row + 1) % rows
        members = self._table.row(self._row)
        return [Send(self._rng.choice(members), RowRequest(self._row))] if members else []

    def check_invariants(self) -> None:
        assert all(("ping", identifier) in self.deadlines for identifier in self.pinged), "a ping without a deadline"
        assert len(self._repairs) <= REPAIRS_MAX, "too many repairs"
