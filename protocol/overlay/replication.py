"""Replication: k copies of every agent's meta knowledge on its leaf set, and the way back to them (FMRec, section III-D).

Only summaries pass through here; the bytes are in the store, and move in bulk transfers that effects start. This composes the parts:
placement.py (who has our copies; far_places.py: in which zone), takeover.py (what we hold for others), look_ups.py (who holds what),
retrieval.py (the way back).

1. Placement. A record goes to k leaf-set members, nearest first, right and left in turn. It is durable when `write_quorum` hold it.
   Nodes at one address are one process (a manager's trees), and die as one: of these the first alone counts, and of our own none.
2. A holder that refuses or fails is passed over for the next candidate; one that failed is tried again after a while. With fewer
   neighbours than the quorum, all of them must hold it; with none, nothing is durable. One that is slow, beside the others or by half of
   its time, is passed over too, and counts where it is done all the same.
3. A newer version supersedes one still under way; but not one that has superseded another so: that is brought to its quorum first, or a
   fast writer would never have anything durable. Of the versions that wait, only the newest is kept.
4. Upkeep. When a holder dies or the leaf set moves, the owner brings the newest version to k members again: at once where less than the
   quorum is left, else soon. A holder that is no longer in the leaf set does not count: a look-up would not ask it. When the owner is dead,
   the closest node stands in, and forgets it after days of absence (takeover.py, absences.py).
5. Look-up. Routed to the owner's id, it ends at the live node closest to it (the owner itself after a restart), which asks its leaf set
   who holds what, and answers as soon as nobody is left to wait for, newest first, and says how many were silent; before that where what
   is durable must have been found already. It counts what it holds itself.
6. Retrieval. Look up, fetch the newest, verify; where a holder fails, the next one. No holder left: lost, and said, never a silent zero.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from protocol.identifiers import NodeId, Peer, TreeId
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import CancelTransfer, Effect
from protocol.overlay.far_places import FAR, FarPlaces, in_order
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.look_ups import LookUps
from protocol.overlay.placement import MEND, RETRY, Placements, RecordKey, one_an_address
from protocol.overlay.retrieval import Retrievals
from protocol.overlay.takeover import FORGET, UPKEEP, Takeover
from protocol.parameters import OverlayParameters
from protocol.wire.keeping import Absent, FarQuery, FarReply, Release, Stray
from protocol.wire.messages import HoldingsQuery, HoldingsReply, LookUp, LookUpReply
from protocol.wire.values import RecordSummary


class Replication:
    """One node's own records, what it holds for others, and its look-ups. `in_ring`: is the leaf set to be believed?"""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        leaf_set: LeafSet,
        is_suspect: Callable[[NodeId], bool] = lambda identifier: False,
        in_ring: Callable[[], bool] = lambda: True,
    ) -> None:
        self._me = me
        self._leaf_set = leaf_set
        self._is_suspect = is_suspect
        self.deadlines: Deadlines[tuple[str, int]] = Deadlines()
        number = count(1).__next__
        self._parameters = parameters
        self._far = FarPlaces(me, parameters, leaf_set, self.deadlines)
        self._placements = Placements(parameters, self._places, self.deadlines, number)
        self._takeover = Takeover(me, parameters, leaf_set, in_ring, self._placements, self.deadlines, number)
        self._look_ups = LookUps(me, parameters, leaf_set, is_suspect, self._takeover.held, self._takeover.being_taken, self.deadlines)
        self._retrievals = Retrievals(me, parameters, self._takeover.held, self.deadlines, number)

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    def _places(self, adopted: bool) -> list[Peer]:
        """Rule 1, and suspects last. What we have adopted stays near: our far places are not its owner's."""
        near = self._leaf_set.alternating()
        ordered = in_order(self._me.id, near, self._far.known, "local" if adopted else self._parameters.placement)
        return sorted(one_an_address(ordered, self._me.address), key=lambda peer: self._is_suspect(peer.id))

    def held(self) -> tuple[RecordSummary, ...]:
        """What this node holds, for others or of its own."""
        return tuple(self._takeover.held.values())

    def holders(self, key: RecordKey) -> tuple[NodeId, ...]:
        """Who holds the newest version of our own record, or of one that we have adopted."""
        placement = self._placements.get(key)
        return tuple(placement.holders) if placement is not None else ()

    def adopted(self) -> tuple[RecordKey, ...]:
        """Whose records we stand in for."""
        return tuple(self._placements.adopted())

    # --- records ------------------------------------------------------------------------------------------------------

    def replicate(self, record: RecordSummary, now: float) -> list[Effect]:
        """Bring this version of our own record to k holders."""
        known = self._takeover.held.get(record.key)
        if known is not None and known.order > record.order:
            return []
        self._takeover.held[record.key] = record
        asked = self._far.ask(now) if self._far.are_wanted and FAR not in self.deadlines else []
        return asked + self._placements.bring(record, now)

    def record_held(self, record: RecordSummary, now: float) -> list[Effect]:
        """The store holds this now."""
        return self._takeover.record_held(record, now)

    def push_ended(self, transfer: int, outcome: str, reason: str, now: float) -> list[Effect]:
        return self._placements.ended(transfer, outcome, reason, now)

    def fetch_ended(self, transfer: int, record: RecordSummary | None, reason: str, now: float) -> list[Effect]:
        taken = self._takeover.fetch_ended(transfer, record, now)
        if taken is not None:
            return taken
        held = self._takeover.record_held(record, now) if record is not None else []
        return held + (self._retrievals.fetch_ended(transfer, record, reason, now) or [])

    # --- the ring -----------------------------------------------------------------------------------------------------

    def leaf_set_changed(self, now: float) -> list[Effect]:
        """Rule 4."""
        self._look_ups.leaf_set_changed(now)
        return [*self._takeover.leaf_set_changed(now), *self._placements.leaf_set_changed(now)]

    def died(self, peer: Peer, now: float, *, in_order: bool = False) -> list[Effect]:
        """This life of the peer is over. in_order: it has left, and wants nothing kept."""
        return [
            *(self._takeover.owner_left(peer.id) if in_order else []),
            *self._placements.died(peer, now),
            *self._look_ups.died(peer.id),
            *self._retrievals.died(peer, [self._me, *self._leaf_set], now),
        ]

    def stray_delivered(self, stray: Stray, now: float) -> list[Effect]:
        return self._takeover.stray_delivered(stray, now)

    def released(self, sender: Peer, release: Release, member: bool, now: float) -> list[Effect]:
        return self._takeover.released(sender, release, member, now)

    def absence_told(self, sender: Peer, absent: Absent, now: float) -> list[Effect]:
        return self._takeover.absence_told(sender, absent, now)

    def withdrawn(self, owner: NodeId, tree: TreeId) -> list[Effect]:
        return self._takeover.withdrawn(owner, tree)

    def tree_closed(self, tree: TreeId) -> list[Effect]:
        """Every round of the tree is done."""
        return self._takeover.tree_closed(tree)

    def tree_waits(self, tree: TreeId, waits: bool, now: float) -> None:
        """Does it wait for each of its members, however long?"""
        self._takeover.tree_waits(tree, waits, now)

    def was_blind(self, since: float, now: float) -> None:
        """We were asleep, or cut off, from then on."""
        self._takeover.was_blind(since, now)

    def tree_reopened(self, tree: TreeId, now: float) -> list[Effect]:
        """There is an order that is not its last: of a new run, where it was closed."""
        return self._takeover.tree_reopened(tree, now)

    def far_query_delivered(self, query: FarQuery) -> list[Effect]:
        return self._far.query_delivered(query)

    def far_replied(self, reply: FarReply, now: float) -> list[Effect]:
        return self._placements.leaf_set_changed(now) if self._far.replied(reply) else []

    # --- look-ups and retrievals --------------------------------------------------------------------------------------

    def look_up_delivered(self, look_up: LookUp, now: float) -> list[Effect]:
        forwarded = self._far.forwarded(look_up)
        return self._look_ups.delivered(look_up, now) if forwarded is None else forwarded

    def query_received(self, sender: Peer, query: HoldingsQuery) -> list[Effect]:
        return self._look_ups.query_received(sender, query)

    def reply_received(self, sender: Peer, reply: HoldingsReply) -> list[Effect]:
        return self._look_ups.reply_received(sender, reply)

    def retrieve(self, request: int, owner: NodeId, tree: TreeId, now: float) -> list[Effect]:
        """Find the newest record of (owner, tree) and bring it here. Asked again under the same number, it begins anew and ends once."""
        return self._retrievals.retrieve(request, owner, tree, now)

    def look_up_answered(self, reply: LookUpReply, now: float) -> list[Effect]:
        return self._retrievals.answered(reply, now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for key in self.deadlines.due(now):
            if key not in self.deadlines:  # else one that was due with it has set it anew
                effects += self._due(key, now)
        return effects

    def _due(self, key: tuple[str, int], now: float) -> list[Effect]:
        kind, number = key
        if key == RETRY:
            return self._placements.try_again(now)
        if key == MEND:
            return self._placements.mend(now)
        if key == FAR:
            return self._far.ask(now)
        if key == UPKEEP:
            return self._takeover.upkeep(now)
        if key == FORGET:
            return self._takeover.forget(now)
        match kind:
            case "push":
                return [CancelTransfer(number), *self._placements.ended(number, "failed", "no end in time", now)]
            case "slow":
                return self._placements.is_slow(number, now)
            case "take":
                return self._takeover.late(number)
            case "gather":
                return self._look_ups.answer(number)
            case "doubtful":
                return self._look_ups.doubtful(number)
            case "look_up":
                return self._retrievals.look_up_late(number, now)
        return self._retrievals.fetch_late(number, now)

    def check_invariants(self) -> None:
        for part in (self._placements, self._takeover, self._look_ups, self._retrievals):
            part.check_invariants()
