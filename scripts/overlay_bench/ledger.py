"""What was asked, where it was delivered, and who lived when: the global view that no node has, and the verdicts that follow from it.

1. A delivery is right where no node that was in the ring during the whole of the message's way (from the question to the delivery) is
   closer to the key than the one that delivered it. A node that came or went meanwhile may have had it, and need not.
2. A look-up is wrong where any of its deliveries is wrong (a delivery may be doubled), lost where there is none within LOST_AFTER_S.
3. After a blow at a time t, look-ups are right again when the last disturbed one is over: a lost one when it was asked, a wrong one when it
   was delivered, one whose answer took longer than a healthy peer's when it was answered.
4. A death is false where the peer that was declared dead was alive at that moment.

All times are of CLOCK_MONOTONIC, which the processes of one machine share.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import median
from typing import Any

from protocol.identifiers import RING, NodeId, rank

LOST_AFTER_S = 10.0
"""A look-up that has no answer after this has none; longer than any preset but wan holds a message."""


@dataclass(slots=True)
class Life:
    """When one life of a node was in the ring."""

    incarnation: int
    since_s: float
    until_s: float = inf


@dataclass(frozen=True, slots=True)
class Delivery:
    by: NodeId
    hops: int
    at_s: float


@dataclass(slots=True)
class LookUp:
    """One question: who is the root of `key`? `dialled`: the answer came over a connection that did not exist before."""

    key: NodeId
    asked_s: float
    answered_s: float | None = None
    dialled: bool = False
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def rtt_ms(self) -> float | None:
        return None if self.answered_s is None else 1000 * (self.answered_s - self.asked_s)

    @property
    def lost(self) -> bool:
        return not any(delivery.at_s <= self.asked_s + LOST_AFTER_S for delivery in self.deliveries)


class Ledger:
    """Look-ups by request number, lives, and deaths that nodes believed in."""

    def __init__(self) -> None:
        self.look_ups: dict[int, LookUp] = {}
        self._lives: dict[NodeId, list[Life]] = {}
        self._ids: list[NodeId] = []  # of all who ever lived, sorted
        self.deaths: list[tuple[float, NodeId, int]] = []
        self._undelivered: dict[int, list[Delivery]] = {}

    def born(self, identifier: NodeId, incarnation: int, at_s: float) -> None:
        if identifier not in self._lives:
            self._ids.insert(bisect_left(self._ids, identifier), identifier)
        self._lives.setdefault(identifier, []).append(Life(incarnation, at_s))

    def ended(self, identifiers: Iterable[NodeId], at_s: float) -> None:
        """Every life of these nodes that goes on ends now."""
        for identifier in identifiers:
            for life in self._lives[identifier]:
                life.until_s = min(life.until_s, at_s)

    def take(self, drained: Mapping[str, Any]) -> None:
        """What one process has noted since it was last asked (Tally.drain() of node_process.py)."""
        for request, key, asked_s in drained["asked"]:
            deliveries = self._undelivered.pop(request, [])
            self.look_ups[request] = LookUp(NodeId(int(key, 16)), asked_s, deliveries=deliveries)
        for request, by, answered_s, dialled in drained["answered"]:
            look_up = self.look_ups[request]
            look_up.answered_s, look_up.dialled = answered_s, dialled
            # The deliverer may have been killed before it could say so; its answer proves the delivery.
            if not any(str(delivery.by) == by for delivery in look_up.deliveries):
                look_up.deliveries.append(Delivery(NodeId(int(by, 16)), -1, answered_s))
        for request, by, hops, at_s in drained["delivered"]:
            known = self.look_ups.get(request)
            deliveries = known.deliveries if known is not None else self._undelivered.setdefault(request, [])
            deliveries[:] = [other for other in deliveries if str(other.by) != by or other.hops >= 0]
            deliveries.append(Delivery(NodeId(int(by, 16)), hops, at_s))
        self.deaths += [(at_s, NodeId(int(peer, 16)), incarnation) for at_s, peer, incarnation in drained["deaths"]]

    def wrong(self, look_up: LookUp) -> bool:
        """Rules 1 and 2."""
        return any(self._misplaced(look_up, delivery) for delivery in look_up.deliveries)

    def _misplaced(self, look_up: LookUp, delivery: Delivery) -> bool:
        best = rank(look_up.key, delivery.by)
        return any(
            life.since_s <= look_up.asked_s and life.until_s >= delivery.at_s
            for identifier in self._within(look_up.key, best[0])
            if rank(look_up.key, identifier) < best
            for life in self._lives[identifier]
        )

    def _within(self, key: int, reach: int) -> Iterator[NodeId]:
        """Who ever lived no farther from the key than `reach`."""
        low, high = (key - reach) % RING, (key + reach) % RING
        first, last = bisect_left(self._ids, low), bisect_right(self._ids, high)
        yield from self._ids[first:last] if low <= high else self._ids[first:] + self._ids[:last]

    def right_again(self, look_ups: Sequence[LookUp], blow_s: float, prompt_s: float) -> float:
        """Rule 3: seconds after the blow; 0 where nothing was disturbed."""
        over = blow_s
        for look_up in look_ups:
            if look_up.answered_s is None:
                over = max(over, look_up.asked_s)
            elif look_up.answered_s - look_up.asked_s > prompt_s:
                over = max(over, look_up.answered_s)
            if look_up.deliveries and self.wrong(look_up):
                over = max(over, *(delivery.at_s for delivery in look_up.deliveries))
        return over - blow_s

    def calm(self, look_ups: Sequence[LookUp], since_s: float, until_s: float, prompt_s: float) -> bool:
        """Was every look-up asked in this time delivered at the right node and answered promptly? False where none was asked."""
        asked = [look_up for look_up in look_ups if since_s <= look_up.asked_s < until_s]
        return bool(asked) and all(
            look_up.answered_s is not None and look_up.answered_s - look_up.asked_s <= prompt_s and not self.wrong(look_up)
            for look_up in asked
        )

    def false_deaths(self) -> int:
        """Rule 4, each once however many nodes believed it."""
        return len(
            {
                (peer, incarnation)
                for at_s, peer, incarnation in self.deaths
                for life in self._lives.get(peer, ())
                if life.incarnation == incarnation and life.since_s <= at_s < life.until_s
            }
        )

    def detected_s(self, identifiers: Iterable[NodeId], blow_s: float) -> float | None:
        """Seconds from the blow until each of these had been declared dead by somebody; None where one never was."""
        first: dict[NodeId, float] = {}
        for at_s, peer, _ in sorted(self.deaths):
            if at_s >= blow_s:
                first.setdefault(peer, at_s)
        times = [first.get(identifier) for identifier in identifiers]
        known = [at_s for at_s in times if at_s is not None]
        return max(known) - blow_s if known and len(known) == len(times) else None


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: the smallest value that at least this share of all values does not exceed. ValueError where there are none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and 99th percentile, or None where there are no values."""
    if not values:
        return {"p50": None, "p99": None}
    return {"p50": round(median(values), 4), "p99": round(percentile(values, 0.99), 4)}
