"""Absences: for how long owners of records have been away, as the nodes around their ids have seen it, one after the other.

Nobody can know that an agent will never come back; but after days of absence its record is forgotten (takeover.py, rule 7).

1. Only who would see the owner can miss it: in the ring, with neighbours on both sides of that id. Who would not knows nothing.
2. The time is that of one version of a record: an owner that has made a newer one was there since.
3. A holder tells for how long it has missed the owner (Stray), and hears it from who stands in where that one knows of a longer time
   (Absent). The longest counts: so the time goes on though no node lives as long as it.
4. But nobody is away who was seen: a holder tells of that as well, and the latest sight that anybody tells of begins the time anew. Who was
   cut off or asleep for days has missed everyone, and learns so that they were there.
5. What we have slept, or were cut off from those who lived all the while, is nobody's absence.
6. Times are told as durations: clocks need not agree. Who starts again has forgotten them, and begins with what others tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from protocol.identifiers import NodeId
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.placement import RecordKey
from protocol.wire.values import RecordSummary


@dataclass(slots=True)
class Absence:
    """Of the owner of one version. there: in our leaf set; since: when it was missed first, inf while it is there or out of sight; seen:
    when it was seen last, where it is not there."""

    order: tuple[int, int]
    there: bool = False
    since: float = inf
    seen: float = -inf


class Absences:
    """What one node knows of them, `most` at a time: beyond, the one that was noted first is forgotten. would_see: would we see the node of
    this id, where it is there?"""

    def __init__(self, leaf_set: LeafSet, would_see: Callable[[NodeId], bool], most: int) -> None:
        self._leaf_set = leaf_set
        self._would_see = would_see
        self._most = most
        self._known: dict[RecordKey, Absence] = {}
        self._blind_until = -inf

    def ring_changed(self, now: float) -> None:
        """Of all that are known: also of those whose records are not held here any more."""
        for (owner, _), absence in self._known.items():
            self._look(owner, absence, now)

    def blind(self, since: float, now: float) -> None:
        """Rule 5: we have seen nobody since then. Told by each who is found again, what is told already does not count twice."""
        begin = max(since, self._blind_until)
        self._blind_until = now
        for absence in self._known.values():
            if absence.since < now:
                absence.since += max(now - max(absence.since, begin), 0.0)

    def look(self, record: RecordSummary, now: float) -> None:
        """Is the owner there? Rule 2."""
        absence = self._known.get(record.key)
        if absence is None or absence.order < record.order:
            before = absence or Absence(record.order)
            self._known[record.key] = absence = Absence(record.order, before.there, seen=before.seen)
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        self._look(record.owner, absence, now)

    def _look(self, owner: NodeId, absence: Absence, now: float) -> None:
        """Rule 1."""
        before, absence.there = absence.there, owner in self._leaf_set
        if before or absence.there:
            absence.seen = now
        if absence.there or not self._would_see(owner):
            absence.since = inf
        elif absence.since == inf:
            absence.since = now

    def told(self, record: RecordSummary, absent_s: float, seen_s: float, now: float) -> None:
        """Rules 3 and 4: another has missed the owner of this very version for so long, and it was seen so long ago; below 0: never."""
        absence = self._known.get(record.key)
        if absence is None or absence.order != record.order or absence.since == inf:
            return
        if 0 <= seen_s < inf:
            absence.seen = max(absence.seen, now - seen_s)
        told = now - absent_s if 0 <= absent_s < inf else inf
        absence.since = max(min(absence.since, told), absence.seen)

    def since(self, record: RecordSummary) -> float:
        """When its owner was missed first; inf where it is there, or has made this since what is known, or nothing is."""
        absence = self._known.get(record.key)
        return absence.since if absence is not None and absence.order >= record.order else inf

    def seen(self, record: RecordSummary) -> float:
        """When its owner was seen last, as far as is known; -inf for never."""
        absence = self._known.get(record.key)
        return absence.seen if absence is not None else -inf

    def check_invariants(self) -> None:
        assert len(self._known) <= self._most, "absences without end"
        assert all(absence.since >= absence.seen for absence in self._known.values()), "missed while it was seen"
