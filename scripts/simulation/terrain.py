"""Where processes are, what the way between two of them takes, and who is cut off from whom."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, inf
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.simulation.cluster import Process


@dataclass(frozen=True, slots=True)
class Terrain:
    """Delays one way: base, and more with the distance on a torus of side 1 (0 to 0.71, 0.38 on average), and jitter."""

    base_s: float
    per_distance_s: float
    jitter_s: float

    def delay(self, a: Process, b: Process) -> float:
        """One way, without jitter."""
        x, y = abs(a.x - b.x), abs(a.y - b.y)
        return self.base_s + self.per_distance_s * hypot(min(x, 1 - x), min(y, 1 - y))

    def one_hop_s(self, a: Process, b: Process) -> float:
        """What a message straight from a to b takes on average."""
        return self.delay(a, b) + self.jitter_s / 2

    @property
    def mean_s(self) -> float:
        return self.base_s + 0.38 * self.per_distance_s + self.jitter_s / 2


TERRAINS = {
    "loopback": Terrain(0.0001, 0.0, 0.0002),
    "lan": Terrain(0.0002, 0.0023, 0.0002),
    "wan": Terrain(0.010, 0.190, 0.010),
}


class Cut:
    """Nothing passes from `here` to `there` (indices of processes), nor back unless one_way.

    Whoever starts while it lasts is on one of its sides: a network that is cut has no place from which both can be reached.
    """

    __slots__ = ("began", "ended", "here", "one_way", "there")

    def __init__(self, here: frozenset[int], there: frozenset[int], one_way: bool, began: float) -> None:
        self.here, self.there, self.one_way = set(here), set(there), one_way
        self.began = began
        self.ended = inf

    def admit(self, index: int, before: int | None, rng: Random) -> None:
        """A life that starts: where the last one on the same host was, else on either side, in proportion to their sizes."""
        if before is not None and (before in self.here or before in self.there):
            here = before in self.here
        else:
            here = rng.random() * (len(self.here) + len(self.there)) < len(self.here)
        (self.here if here else self.there).add(index)

    def stops(self, source: int, target: int) -> bool:
        return (source in self.here and target in self.there) or (not self.one_way and source in self.there and target in self.here)


def address_of(number: int) -> tuple[str, int]:
    """A host and a port for the n-th place of a cluster."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 7000
