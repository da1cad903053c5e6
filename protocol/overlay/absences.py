"""Absences: for how long owners of records have been away, as the nodes around their ids have seen it, one after the other.

Nobody can know that an agent will never come back; but after days of absence its record is forgotten (takeover.py, rule 7).

1. Only who would see the owner can miss it: in the ring, with neighbours on both sides of that id. Who would not knows nothing.
2. The time is that of one version of a record: an owner that has made a newer one was there since.
3. A holder tells for how long it has missed the owner (Stray), and hears it from who stands in where that one knows of a longer time
   (Absent). The longest counts: so the time goes on though no node lives as long as it. But whoever has seen the owner itself believes
   nothing from before.
4. Times are told as durations: clocks need not agree. Who starts again has forgotten them, and begins with what others tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.placement import RecordKey
from protocol.wire.values import RecordSummary


@dataclass(slots=True)
class Absence:
    """Of the owner of one version. since: when it was missed first, inf while it is there; seen: when we saw it last."""

    order: tuple[int, int]
    since: float = inf
    seen: float = -inf


class Absences:
    """What one node knows of them, `most` at a time: beyond, the one that was noted first is forgotten."""

    def __init__(self, leaf_set: LeafSet, most: int) -> None:
        self._leaf_set = leaf_set
        self._most = most
        self._known: dict[RecordKey, Absence] = {}

    def ring_changed(self, now: float) -> None:
        """Who is back, of all that are known: also of those whose records are not held here any more."""
        for (owner, _), absence in self._known.items():
            if owner in self._leaf_set:
                absence.since, absence.seen = inf, now

    def look(self, record: RecordSummary, now: float, *, would_see: bool) -> None:
        """Is the owner there? Rules 1 and 2."""
        there = record.owner in self._leaf_set
        if not there and not would_see:
            self._known.pop(record.key, None)
            return
        absence = self._known.get(record.key)
        if absence is None or absence.order < record.order:
            self._known[record.key] = absence = Absence(record.order, seen=absence.seen if absence is not None else -inf)
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        if there:
            absence.since, absence.seen = inf, now
        elif absence.since == inf:
            absence.since = now

    def told(self, record: RecordSummary, absent_s: float, now: float) -> None:
        """Rule 3: another has missed the owner of this very version for so long."""
        absence = self._known.get(record.key)
        if absence is not None and absence.order == record.order and absence.since < inf and 0 <= absent_s < inf:
            absence.since = max(min(absence.since, now - absent_s), absence.seen)

    def since(self, record: RecordSummary) -> float:
        """When its owner was missed first; inf where it is there, or has made this since what is known, or nothing is."""
        absence = self._known.get(record.key)
        return absence.since if absence is not None and absence.order >= record.order else inf

    def check_invariants(self) -> None:
        assert len(self._known) <= self._most, "absences without end"
        assert all(absence.since >= absence.seen for absence in self._known.values()), "missed while it was seen"
