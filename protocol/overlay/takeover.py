"""Takeover: what this node holds for others, who is to care for it, and when it may go (DESIGN 8, upkeep).

An owner that lives cares for its own copies. When it is dead, the live node closest to its id, at which every look-up for it ends, stands
in: it keeps k copies alive, its own among them.

1. What we hold of an owner that is not in our leaf set, in whose place we are closest to its id, we adopt. Owner or somebody closer is
   there again: it is theirs, and we only hold our copy.
2. Who holds such a copy and is not closest says so (Stray), routed to the owner's id, at first after `probe_timeout_s`, again each
   `upkeep_interval_s`, and soon where that id moves out of its sight: so the closest node learns of records that it does not hold, or holds
   in an older version, and fetches them. So does the owner itself: of many that come back at once none has had the others' for neighbours.
3. The ring may have moved away from us, so that no look-up would ask us. Our copy may go when the owner, or who stands in for it, says that
   it has k others as new (Release); not before.
4. Two that both believe that they are closest bring the same bytes to the same neighbourhood: no harm.
5. An agent that leaves in order takes its records with it, and so does a closed tree: they are discarded (Withdrawn tells holders that are
   not in the tree). But a tree's own record stays: it says that the tree is done, or how far it is. Who knows that a tree is closed
   adopts none of its records and fetches none: who tells of one and is not in the tree hears that it may go (Release, closed). A new
   run's order opens it again.
6. Of a tree's own record every member has a copy, for its children in the tree: only those near the root are ever strays.
7. An agent that was killed, and whose name nobody uses again, has taken nothing with it. When its owner has been away for `forget_after_s`
   (absences.py) who stands in forgets a record, and tells the other holders that theirs may go (Release, forgotten), now and whenever one
   that was not heard then tells of it. These believe it where they miss the owner as well, and know of nobody who has seen it since. A
   tree's own record is never forgotten, nor is, by those in the tree, any of one that waits for all of its members (mode exact).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from protocol.identifiers import NodeId, Peer, TreeId, zone_of
from protocol.overlay.absences import Absences
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import CancelTransfer, Discard, Effect, Fetch, Notify, RouteBody, Send
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.placement import Placements, RecordKey, is_possible
from protocol.parameters import OverlayParameters
from protocol.wire.keeping import Absent, Release, Stray, Withdrawn
from protocol.wire.values import Holding, RecordSummary

UPKEEP = ("upkeep", 0)
"""The deadline at which strays are told of."""
FORGET = ("forget", 0)
"""The deadline at which the owner of something adopted has been away for too long."""
STRAYS_MAX = 64
"""In one turn; the others have theirs next time."""
UNTOLD_MAX = 1024
"""In one turn, of those that are told of first: many may be back at once, and wait."""
FETCHES_MAX = 4
"""Records of the dead that are being fetched at a time: gigabytes may be waiting where a rack has died. As many more of our own."""
CLOSED_MAX = 64
"""Closed trees that are remembered; and so many that wait for their members."""


class Takeover:
    """What one node holds. `in_ring`: is the leaf set to be believed?"""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        leaf_set: LeafSet,
        in_ring: Callable[[], bool],
        placements: Placements,
        deadlines: Deadlines[tuple[str, int]],
        number: Callable[[], int],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._leaf_set = leaf_set
        self._in_ring = in_ring
        self._placements = placements
        self._deadlines = deadlines
        self._number = number
        self.held: dict[RecordKey, RecordSummary] = {}
        """The newest version of each record here, of our own as well."""
        self._strays: dict[RecordKey, bool] = {}
        """Held, and not ours to care for: longest untold first. Is the owner's id in our sight?"""
        self._untold: dict[RecordKey, None] = {}
        """Of these, what is told of first: it is new, or moved out of our sight."""
        self._fetching: dict[int, Stray] = {}
        self._absences = Absences(leaf_set, self._would_see, 2 * parameters.held_records_max)
        """Of the owners of what is held, and of what was forgotten: as many again."""
        self._waiting: dict[TreeId, None] = {}
        """Trees that wait for their members, the latest order last."""
        self._closed: dict[TreeId, None] = {}
        """Trees whose last order has passed here, the latest last."""

    def record_held(self, record: RecordSummary, now: float) -> list[Effect]:
        """The store holds this now."""
        known = self.held.get(record.key)
        if not is_possible(record, self._parameters) or (known is not None and known.order > record.order):
            return []
        self.held[record.key] = record
        return self._tend(record, now)

    # --- whose it is --------------------------------------------------------------------------------------------------

    def _would_see(self, owner: NodeId) -> bool:
        """Where it is there."""
        return self._in_ring() and self._leaf_set.covers(owner)

    def _is_ours(self, owner: NodeId) -> bool:
        """Is the owner absent, and are we the closest to its id?"""
        return owner not in self._leaf_set and self._would_see(owner) and self._leaf_set.closest(owner) is None

    def _is_stray(self, record: RecordSummary) -> bool:
        """Of an absent owner, and not ours: the closest node, or an owner that we are too far from to see, is to know of it."""
        owner = record.owner
        if owner == self._me.id or owner in self._leaf_set or not self._in_ring():
            return False
        return owner != record.tree or self._leaf_set.covers(owner)

    def leaf_set_changed(self, now: float) -> list[Effect]:
        self._absences.ring_changed(now)
        effects: list[Effect] = []
        for record in list(self.held.values()):
            effects += self._tend(record, now)
        return effects

    def _tend(self, record: RecordSummary, now: float) -> list[Effect]:
        """Rules 1, 2 and 7 for one record."""
        key, owner = record.key, record.owner
        if owner == self._me.id:
            return []
        self._absences.look(record, now)
        if self._is_ours(owner) and not self._is_closed(record):
            self._no_stray(key)
            self._forget_in_time(record, now)
            return self._adopt(record, now)
        placement = self._placements.get(key)
        effects = self._placements.drop(key) if placement is not None and placement.adopted else []
        if not self._is_stray(record):
            self._no_stray(key)
            return effects
        in_sight = self._leaf_set.covers(owner)
        if key not in self._strays or (self._strays[key] and not in_sight):
            self._untold[key] = None
            soon = now + self._parameters.probe_timeout_s
            self._deadlines.set(UPKEEP, min(soon, self._deadlines.when(UPKEEP) or soon))
        self._strays[key] = in_sight
        return effects

    def _no_stray(self, key: RecordKey) -> None:
        self._strays.pop(key, None)
        self._untold.pop(key, None)

    def _adopt(self, record: RecordSummary, now: float) -> list[Effect]:
        before = self._placements.get(record.key)
        if before is not None and before.record.order >= record.order:
            return []
        fact = Notify("record_adopted", {"owner": record.owner, "version": record.version})
        return [fact, *self._placements.bring(record, now, adopted=True)]

    # --- strays -------------------------------------------------------------------------------------------------------

    def upkeep(self, now: float) -> list[Effect]:
        """Tell of strays: the first of them, which then are the last."""
        effects: list[Effect] = []
        first = list(self._untold)[:UNTOLD_MAX]
        for key in dict.fromkeys((*first, *list(self._strays)[: max(STRAYS_MAX - len(first), 0)])):
            self._untold.pop(key, None)
            self._strays[key] = self._strays.pop(key)
            effects.append(RouteBody(key[0], self._stray(self.held[key], now)))
        if self._strays:
            pause_s = self._parameters.probe_timeout_s if self._untold else self._parameters.upkeep_interval_s
            self._deadlines.set(UPKEEP, now + pause_s)
        return effects

    def stray_delivered(self, stray: Stray, now: float) -> list[Effect]:
        """Somebody holds a record, and we are the live node closest to its owner's id, or are the owner."""
        record, holder = stray.record, stray.holder
        if not is_possible(record, self._parameters) or not (record.owner == self._me.id or self._is_ours(record.owner)):
            return []
        if self._is_over(record):
            return [Send(holder, Release(record.owner, record.tree, record.version, record.incarnation, closed=True))]
        mine = self.held.get(record.key)
        if record.owner == self._me.id:
            lacked = mine is None or (mine.order < record.order and mine.incarnation < self._me.incarnation)
            return self._take(stray, now) if lacked else self._release(stray)
        if holder.id == self._me.id:
            return []
        self._absences.look(record, now)
        if holder.id in self._leaf_set:
            self._absences.told(record, stray.absent_s, stray.seen_s, now)
        if self._is_forgotten(record, now):
            return [*(self._forget(mine) if mine is not None else []), _forgotten(record, holder)]
        if mine is None or mine.order < record.order:
            return self._take(stray, now)
        self._forget_in_time(mine, now)
        told = self._tell_absence(stray, mine, now)
        return [*self._adopt(mine, now), *self._placements.found(record, holder, now), *self._release(stray), *told]

    def _release(self, stray: Stray) -> list[Effect]:
        """Rule 3: only who is far from here, and only where k have it as new."""
        placement, record = self._placements.get(stray.record.key), stray.record
        if placement is None or not placement.complete or placement.record.order < record.order:
            return []
        if stray.holder.id in self._leaf_set or stray.holder.id in placement.holders or self._is_abroad(stray):
            return []
        return [Send(stray.holder, Release(record.owner, record.tree, record.version, record.incarnation))]

    def _is_abroad(self, stray: Stray) -> bool:
        """A copy in another zone is there for the day on which this one is gone: who stands in has none there to put in its place."""
        owner = stray.record.owner
        return self._parameters.placement != "local" and owner != self._me.id and zone_of(stray.holder.id) != zone_of(owner)

    def _take(self, stray: Stray, now: float) -> list[Effect]:
        """Fetch what we are to care for."""
        record = stray.record
        ours = record.owner == self._me.id
        full = len(self.held) >= self._parameters.held_records_max and not ours
        if full or sum((other.record.owner == self._me.id) == ours for other in self._fetching.values()) >= FETCHES_MAX:
            return []  # it will be told of again
        if any(wanted.record.key == record.key for wanted in self._fetching.values()):
            return []
        transfer = self._number()
        self._fetching[transfer] = stray
        timeout_s = self._parameters.transfer_timeout_s(record.record_bytes) + self._parameters.delay_max_s
        self._deadlines.set(("take", transfer), now + timeout_s)
        return [Fetch(transfer, stray.holder, record)]

    def being_taken(self, key: RecordKey) -> list[Holding]:
        """What of this key is on its way here, and from whom."""
        return [Holding(stray.holder, stray.record) for stray in self._fetching.values() if stray.record.key == key]

    def fetch_ended(self, transfer: int, record: RecordSummary | None, now: float) -> list[Effect] | None:
        """None where the transfer is none of ours. Where it failed, the holder tells of its copy again."""
        if self._fetching.pop(transfer, None) is None:
            return None
        self._deadlines.drop(("take", transfer))
        return self.record_held(record, now) if record is not None else []

    def late(self, transfer: int) -> list[Effect]:
        return [CancelTransfer(transfer)] if self._fetching.pop(transfer, None) is not None else []

    def released(self, sender: Peer, release: Release, member: bool, now: float) -> list[Effect]:
        """Our copy may go: others have it, and it is as far from its owner as they think; or its tree is closed, or its owner has been away
        for too long. member: are we in the tree? Then we hear ourselves when it is closed, and when it goes on."""
        record = self.held.get((release.owner, release.tree))
        if record is None or record.key not in self._strays or record.order > (release.incarnation, release.version):
            return []
        far = not self._leaf_set.covers(record.owner)
        if release.forgotten:
            over = self._is_wanted_no_more(record) and now >= self._absences.seen(record) + self._parameters.forget_after_s
        elif release.closed:
            over = release.tree in self._closed or not member
        else:
            return self._discard(record) if far else []
        return self._discard(record) if over and (far or self._may_say(sender, record)) else []

    def _may_say(self, sender: Peer, record: RecordSummary) -> bool:
        """Is it the owner, or the node that stands in for it?"""
        return sender.id == record.owner or sender == (self._leaf_set.closest(record.owner) or self._me)

    # --- whose owner has been away for too long -----------------------------------------------------------------------

    def _stray(self, record: RecordSummary, now: float) -> Stray:
        seen = self._absences.seen(record)
        return Stray(record, self._me, self._absent_s(record, now), now - seen if seen > -inf else -1.0)

    def _absent_s(self, record: RecordSummary, now: float) -> float:
        """For how long we know that its owner is away."""
        return max(now - self._absences.since(record), 0.0)

    def _is_forgotten(self, record: RecordSummary, now: float) -> bool:
        """Rule 7; to be asked by who stands in."""
        return self._is_wanted_no_more(record) and now >= self._absences.since(record) + self._parameters.forget_after_s

    def _is_wanted_no_more(self, record: RecordSummary) -> bool:
        """Once its owner has been away for too long."""
        return record.owner != record.tree and record.tree not in self._waiting

    def tree_waits(self, tree: TreeId, waits: bool, now: float) -> None:
        """As its last order here says."""
        self._waiting.pop(tree, None)
        if waits:
            self._waiting[tree] = None
        if len(self._waiting) > CLOSED_MAX:
            tree, waits = next(iter(self._waiting)), False
            del self._waiting[tree]
        for key in self._placements.adopted() if not waits else ():
            if key[1] == tree:
                self._forget_in_time(self.held[key], now)

    def was_blind(self, since: float, now: float) -> None:
        """Asleep, or cut off."""
        self._absences.blind(since, now)

    def _forget_in_time(self, record: RecordSummary, now: float) -> None:
        """The time of what we have adopted, as far as it is known now; not the past, where the ring is in doubt just when it comes."""
        due = max(self._absences.since(record) + self._parameters.forget_after_s, now + self._parameters.probe_timeout_s)
        if self._is_wanted_no_more(record) and due < (self._deadlines.when(FORGET) or inf):
            self._deadlines.set(FORGET, due)

    def forget(self, now: float) -> list[Effect]:
        """The time of something that was adopted may have come."""
        effects: list[Effect] = []
        for key in self._placements.adopted():
            record = self.held[key]
            if self._is_forgotten(record, now) and self._is_ours(record.owner):
                effects += self._forget(record)
            else:
                self._forget_in_time(record, now)
        return effects

    def _forget(self, record: RecordSummary) -> list[Effect]:
        placement = self._placements.get(record.key)
        theirs = placement.reached() if placement is not None else []
        fact = Notify("record_forgotten", {"owner": record.owner, "version": record.version, "after_s": self._parameters.forget_after_s})
        return [fact, *(_forgotten(record, holder) for holder in theirs), *self._discard(record)]

    def _tell_absence(self, stray: Stray, mine: RecordSummary, now: float) -> list[Effect]:
        """Who has missed the owner for less long than we have may stand in for it next."""
        record, absent_s = stray.record, self._absent_s(mine, now)
        if record != mine or stray.holder.id not in self._leaf_set or absent_s <= stray.absent_s + self._parameters.upkeep_interval_s:
            return []
        return [Send(stray.holder, Absent(record.owner, record.tree, record.version, record.incarnation, absent_s))]

    def absence_told(self, sender: Peer, absent: Absent, now: float) -> list[Effect]:
        """Who stands in for the owner of something that we hold has missed it for longer."""
        record = self.held.get((absent.owner, absent.tree))
        if record is not None and record.order == (absent.incarnation, absent.version) and self._may_say(sender, record):
            self._absences.told(record, absent.absent_s, -1.0, now)
        return []

    # --- what nobody needs any more -----------------------------------------------------------------------------------

    def _is_closed(self, record: RecordSummary) -> bool:
        """Is it of a closed tree, and not the tree's own?"""
        return record.tree in self._closed and record.owner != record.tree

    def _is_over(self, record: RecordSummary) -> bool:
        """May all copies of it go? Not of ours, where we bring it to others all the same, or lack it and may be looking for it."""
        if record.owner != self._me.id or not self._is_closed(record):
            return self._is_closed(record)
        mine = self.held.get(record.key)
        return mine is not None and mine.order >= record.order and self._placements.get(record.key) is None

    def _discard(self, record: RecordSummary) -> list[Effect]:
        del self.held[record.key]
        self._no_stray(record.key)
        placement = self._placements.get(record.key)
        dropped = self._placements.drop(record.key) if placement is not None and placement.adopted else []
        return [*dropped, Discard(record)]

    def _discard_all(self, unwanted: Callable[[RecordSummary], bool]) -> list[Effect]:
        found = [record for record in self.held.values() if record.owner not in (record.tree, self._me.id) and unwanted(record)]
        return [effect for record in found for effect in self._discard(record)]

    def owner_left(self, owner: NodeId) -> list[Effect]:
        """In order: rule 5."""
        return self._discard_all(lambda record: record.owner == owner)

    def withdrawn(self, owner: NodeId, tree: TreeId) -> list[Effect]:
        """By the owner itself."""
        return self._discard_all(lambda record: record.key == (owner, tree))

    def tree_closed(self, tree: TreeId) -> list[Effect]:
        """Our own record of it stays here, without copies: it may hold what we have adapted."""
        self._closed.pop(tree, None)
        self._closed[tree] = None
        if len(self._closed) > CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        effects: list[Effect] = []
        for key in self._placements.of_tree(tree):
            placement = self._placements.get(key)
            if placement is None or key[0] == tree:
                continue
            if not placement.adopted:
                effects += [Send(holder, Withdrawn(tree)) for holder in placement.holders.values()]
            effects += self._placements.drop(key)
        return effects + self._discard_all(lambda record: record.tree == tree)

    def tree_reopened(self, tree: TreeId, now: float) -> list[Effect]:
        """There are orders again: our own record of it needs copies as before."""
        if tree not in self._closed:
            return []
        del self._closed[tree]
        mine = self.held.get((self._me.id, tree))
        brought = self._placements.bring(mine, now) if mine is not None and self._me.id != tree else []
        return [*brought, *self.leaf_set_changed(now)]

    def check_invariants(self) -> None:
        self._absences.check_invariants()
        assert len(self._closed) <= CLOSED_MAX, "closed trees without end"
        assert self._strays.keys() <= self.held.keys(), "a stray that is not held"
        assert self._untold.keys() <= self._strays.keys(), "to be told of, and no stray"
        assert not self._strays or UPKEEP in self._deadlines, "strays that nobody is told of"
        assert all(("take", transfer) in self._deadlines for transfer in self._fetching), "a fetch that never ends"
        assert all(self.held.get(key) is not None for key in self._placements.adopted()), "adopted, and not held"
        kept = [record for key in self._placements.adopted() if self._is_wanted_no_more(record := self.held[key])]
        assert FORGET in self._deadlines or all(self._absences.since(record) == inf for record in kept), "adopted for ever"


def _forgotten(record: RecordSummary, holder: Peer) -> Effect:
    return Send(holder, Release(record.owner, record.tree, record.version, record.incarnation, forgotten=True))
