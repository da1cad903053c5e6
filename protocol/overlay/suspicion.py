"""What the failure detector keeps of the doubtful: suspects on trial, dials made for others, and the dead.

Which of the dead are remembered. A cut makes many die in one moment, and when it heals, one of these is the way back, however many
others have died meanwhile. So who refused and who fell silent have each half of the room; the former, who will come by
themselves, leave in turn. Of the latter, those that fell silent within one verdict's time are one burst: the largest gives way down to
BURST_KEPT of it, then the smallest but the one under way, and in each the longest dead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import KeysView
from dataclasses import dataclass, field
from math import inf
from random import Random

from protocol.identifiers import NodeId, Peer
from protocol.parameters import OverlayParameters

RECENT_MAX = 16
"""Deaths that one probe tells of."""
REFUSED_SELDOMER = 4
"""They are dialled so much seldomer than who fell silent."""
BURST_KEPT = 8
"""So many of a burst stay while smaller ones can go."""


@dataclass(slots=True)
class Suspicion:
    """One suspect under trial."""

    peer: Peer
    reason: str
    began: float
    dial_failed: str = ""
    """Why our own dial came to nothing; empty while it may still be answered."""
    was_asked: bool = False
    asked: set[NodeId] = field(default_factory=set)
    """Helpers whose word is awaited."""
    agreeing: list[str] = field(default_factory=list)
    refused_helper: bool = False
    deaf: frozenset[NodeId] = frozenset()
    """Helpers of a first trial, which gave no word; empty in that."""
    extensions: int = 0


class Errands:
    """Suspects that we dial for others, and who asked; `most` of them at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._askers: dict[NodeId, tuple[Peer, dict[NodeId, Peer]]] = {}

    def take(self, asker: Peer, suspect: Peer) -> bool:
        """True where the suspect is now to be dialled; False where it is being dialled already, or too many are."""
        errand = self._askers.get(suspect.id)
        if errand is not None and errand[0] == suspect:
            if len(errand[1]) < self._most:
                errand[1][asker.id] = asker
            return False
        if len(self._askers) >= self._most:
            return False
        self._askers[suspect.id] = suspect, {asker.id: asker}
        return True

    def done(self, suspect: Peer) -> list[Peer]:
        """Who is to be told of this suspect."""
        errand = self._askers.get(suspect.id)
        if errand is None or errand[0] != suspect:
            return []
        del self._askers[suspect.id]
        return list(errand[1].values())

    def drop(self, identifier: NodeId) -> None:
        self._askers.pop(identifier, None)


@dataclass(slots=True)
class _Dead:
    peer: Peer
    died_at: float
    wait_s: float
    burst: int
    """Its number; 0 for who refused."""


class DeadOnes:
    """The dead that are dialled again: bounded; see the module's words on who is forgotten."""

    def __init__(self, parameters: OverlayParameters, rng: Random) -> None:
        self._parameters = parameters
        self._rng = rng
        self._dead: dict[NodeId, _Dead] = {}
        """The longest dead first."""
        self._burst, self._burst_until = 0, -inf

    def ids(self) -> KeysView[NodeId]:
        return self._dead.keys()

    def get(self, identifier: NodeId) -> Peer | None:
        dead = self._dead.get(identifier)
        return dead.peer if dead is not None else None

    def died_at(self, identifier: NodeId) -> float:
        """KeyError for who is not remembered."""
        return self._dead[identifier].died_at

    def since(self, when: float) -> tuple[NodeId, ...]:
        """Those that died after `when`, latest first."""
        found: list[NodeId] = []
        for identifier in reversed(self._dead):
            if self._dead[identifier].died_at < when or len(found) == RECENT_MAX:
                break
            found.append(identifier)
        return tuple(found)

    def add(self, peer: Peer, now: float, reached: bool) -> tuple[list[NodeId], float]:
        """Who is forgotten for it, and how long to wait before it is dialled. reached: its host lives."""
        self._dead.pop(peer.id, None)
        if not reached and now > self._burst_until:
            self._burst, self._burst_until = self._burst + 1, now + self._parameters.verdict_max_s
        wait_s = self._parameters.retry_max_s
        first_s = wait_s if reached else min(self._parameters.silence_max_s, wait_s)
        self._dead[peer.id] = _Dead(peer, now, first_s, 0 if reached else self._burst)
        forgotten: list[NodeId] = []
        while (oldest := self._too_many()) is not None:
            forgotten.append(oldest)
            del self._dead[oldest]
        return forgotten, self.next_wait_s(peer.id)

    def _too_many(self) -> NodeId | None:
        """Who is to be forgotten; None where there is room."""
        sizes = Counter(dead.burst for dead in self._dead.values())
        refused, most = sizes.pop(0, 0), self._parameters.remembered_dead_max // 2
        if refused > most:
            burst = 0
        elif sizes.total() > most:
            largest = max(sizes, key=lambda number: sizes[number])
            smallest = min(sizes, key=lambda number: (number == self._burst, sizes[number]))
            burst = largest if sizes[largest] > BURST_KEPT else smallest
        else:
            return None
        return next(identifier for identifier, dead in self._dead.items() if dead.burst == burst)

    def next_wait_s(self, identifier: NodeId) -> float:
        """The jittered wait before the next dial; the one after is twice as long, until all silent ones together cost a dial in
        retry_max_s, and those that refused one in REFUSED_SELDOMER times that."""
        dead = self._dead[identifier]
        wait_s = dead.wait_s * self._rng.uniform(0.75, 1.25)
        alike = sum((other.burst == 0) == (dead.burst == 0) for other in self._dead.values())
        longest_s = self._parameters.retry_max_s * alike * (1 if dead.burst else REFUSED_SELDOMER)
        dead.wait_s = min(2 * dead.wait_s, longest_s)
        return wait_s

    def forget(self, identifier: NodeId) -> None:
        self._dead.pop(identifier, None)
