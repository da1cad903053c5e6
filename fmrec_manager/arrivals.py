"""How long a round is given, learnt from when contributions came in the rounds before.

The deadline is a quantile of the last KEPT arrivals times a factor: a round waits for what is usual, and some more, not for the slowest
agent that there ever was. Only uploads into a round that is open count. Where all have become slow, too few are in at the deadline for a
quorum: the tree halts, takes what comes, and has learnt from that by the next round. Before ENOUGH of them are known there is no deadline
but the fixed one, which is also the longest.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf

KEPT = 256
ENOUGH = 8


class Arrivals:
    """Seconds from a round's opening to each contribution, the last KEPT of them."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def came(self, after_s: float) -> None:
        """A contribution has come so long after its round was opened."""
        self._seconds.append(after_s)

    def allowed_s(self, quantile: float, factor: float, least_s: float) -> float:
        """What the next round is given, at least least_s; inf where too little is known."""
        if len(self._seconds) < ENOUGH:
            return inf
        ordered = sorted(self._seconds)
        return max(least_s, factor * ordered[ceil(quantile * len(ordered)) - 1])
