"""Doubt: is what a life goes on from the newest that there is? Asked before its first job.

A life may have begun on the smaller side of a cut, or in a ring beside the ring, where its newest record is not and nobody can know that
there is one.

1. It looks once more where the order comes late (who is cut off gets none), or is for a later round than follows what it knows: where
   what it knows is half of a round, and the next one is asked for, somebody had the whole of it. Not before `settle_s`: where many come
   back at once, those who hold its record are nobody's neighbours any more, and tell of it then.
2. Its newest record may lie beyond a cut that lasts: where there must be one it goes on looking, for as long as CUT_VERDICTS verdicts take
   and once more, and says what is lost where it must go on without. There must be one where an earlier life of the same launcher called a
   newer version durable (high_water.py); and there may be in mode exact, where all train, for it may have had a part in the rounds between.
   Only then: an agent that was away while rounds were closed without it has nothing to find.

Decisions alone: the worker looks, and so do the agents of the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.parameters import OverlayParameters
from protocol.wire.messages import RoundOpen

CUT_VERDICTS = 10.0
"""A cut outlasts no more verdicts than this."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a life would go on from. round: of its record, -1 for none; whole: is that round's work done in it? version: of its record, 0
    for none; durable: a newer one that an earlier life has called durable, 0 where nobody knows of any."""

    round: int
    whole: bool
    version: int
    durable: int


class Doubt:
    """Of one life. began: when its first order could come, on the clock that `now` is told from."""

    def __init__(self, parameters: OverlayParameters) -> None:
        self.began = 0.0
        self.sure = False
        self._verdict_max_s = parameters.verdict_max_s
        self._settle_s = parameters.settle_s
        self._looks = 0
        self._looked_s = 0.0

    def must_look(self, order: RoundOpen, known: Known, now: float) -> bool:
        """Once more? Where not, it is sure from now on."""
        if self.sure:
            return False
        late = now > self.began + self._verdict_max_s
        once_more = not self._looks and (late or order.round > known.round + known.whole)
        self.sure = not once_more and not self.lacks(order, known)
        return not self.sure

    def early_s(self, now: float) -> float:
        """How long to wait before the next look."""
        return max(self.began + self._settle_s - now, 0.0)

    @property
    def is_last(self) -> bool:
        """Is the next look the last, whatever it finds?"""
        return self._looked_s >= CUT_VERDICTS * self._verdict_max_s

    def looked(self, took_s: float) -> None:
        """It has looked, and waited for the next time, for so long."""
        self._looks += 1
        self._looked_s += took_s

    def give_up(self) -> None:
        """Go on from what is known."""
        self.sure = True

    @staticmethod
    def lacks(order: RoundOpen, known: Known) -> str:
        """In words: what an earlier life knew, or may have learnt in rounds that we know nothing of; nothing where that cannot be."""
        if known.durable:
            return f"version {known.durable} was durable, and version {known.version or 'none'} was found"
        follows = known.round + known.whole
        if known.version and order.mode == "exact" and not order.chosen and order.phase == "train" and order.round > follows:
            found = f"no record after round {known.round}" if known.whole else f"half of round {known.round}"
            return f"round {order.round} is asked for, and {found} was found"
        return ""
