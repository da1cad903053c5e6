"""What the failure detector keeps of the doubtful: suspects on trial, dials made for others, and the dead."""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass, field
from random import Random

from protocol.identifiers import NodeId, Peer
from protocol.parameters import OverlayParameters

RECENT_MAX = 16
"""Deaths that one probe tells of."""


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


class DeadOnes:
    """The dead that are dialled again: bounded, the longest dead forgotten first."""

    def __init__(self, parameters: OverlayParameters, rng: Random) -> None:
        self._parameters = parameters
        self._rng = rng
        self._dead: dict[NodeId, _Dead] = {}

    def ids(self) -> KeysView[NodeId]:
        return self._dead.keys()

    def get(self, identifier: NodeId) -> Peer | None:
        dead = self._dead.get(identifier)
        return dead.peer if dead is not None else None

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
        wait_s = self._parameters.retry_max_s
        self._dead[peer.id] = _Dead(peer, now, wait_s if reached else min(self._parameters.silence_max_s, wait_s))
        forgotten: list[NodeId] = []
        while len(self._dead) > self._parameters.remembered_dead_max:
            forgotten.append(oldest := next(iter(self._dead)))
            del self._dead[oldest]
        return forgotten, self.next_wait_s(peer.id)

    def next_wait_s(self, identifier: NodeId) -> float:
        """The jittered wait before the next dial; the one after is twice as long, until all dead together cost a dial in retry_max_s."""
        dead = self._dead[identifier]
        wait_s = dead.wait_s * self._rng.uniform(0.75, 1.25)
        dead.wait_s = min(2 * dead.wait_s, self._parameters.retry_max_s * len(self._dead))
        return wait_s

    def forget(self, identifier: NodeId) -> None:
        self._dead.pop(identifier, None)
