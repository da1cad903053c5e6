"""One recovery: from the news that a life is over to its newest record, verified, at the manager.

The overlay finds and fetches (protocol/overlay/replication.py). This keeps the time of each step for the report, and asks again
where nothing was found yet, or less than a holder has named, or a quorum of those who may hold more was not heard: a leaf set may be in
repair just when its member died, and a holder busy.
After `LOOK_MAX` looks what came is taken; where nothing did, the record is lost, and said to be; a restart of the agent may still bring it
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fmrec_manager.liveness import Loss
from protocol.identifiers import NodeId
from protocol.overlay.effects import RetrievalEnded
from protocol.wire.values import RecordSummary

LOOK_MAX = 3
ENDED_KEPT = 256
"""Recoveries that a report has; those under way are kept whatever their number."""
AGAIN_S = 0.15

Outcome = Literal["running", "verified", "lost"]


@dataclass(slots=True)
class Recovery:
    """One recovery. Times are monotonic seconds, durations seconds.

    located_s and transferred_s are those of the look that succeeded; waiting between looks counts into total_s alone.
    """

    number: int
    loss: Loss
    noticed: float
    looks: int = 0
    located_s: float = 0.0
    transferred_s: float = 0.0
    total_s: float = 0.0
    record: RecordSummary | None = None
    holder: NodeId | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The figures that the record carries."""
    outcome: Outcome = "running"
    reason: str = ""
    again_at: float | None = None
    has_the_newest: bool = False
    """A record was found; no holder has named a newer one that did not come, nor was a quorum unheard."""

    @property
    def agent(self) -> NodeId:
        return self.loss.agent

    @property
    def iterations_behind(self) -> int | None:
        """Iterations that the lost life had done beyond the record, where its progress was known."""
        if self.record is None or self.loss.iteration < 0:
            return None
        return max(0, self.loss.iteration - self.record.iteration)

    def ended(self, result: RetrievalEnded, now: float) -> Outcome:
        """A look has ended: verified, lost, or running where another look follows at `again_at`."""
        self.looks += 1
        self.reason = result.reason
        found = result.record
        self.has_the_newest = found is not None and result.sure and not result.missed
        if found is not None and (self.has_the_newest or self.looks >= LOOK_MAX):
            self.record, self.outcome, self.again_at = found, "verified", None
            self.located_s, self.transferred_s, self.total_s = result.located_s, result.transferred_s, now - self.noticed
            self.holder = next((h.holder.id for h in result.holdings if h.record.digest == found.digest), None)
        elif self.looks >= LOOK_MAX:
            self.outcome, self.again_at, self.total_s = "lost", None, now - self.noticed
        else:
            self.again_at = now + AGAIN_S * self.looks
        return self.outcome


class Recoveries:
    """Those of one tree, in the order in which they began: all that run, and the last that ended."""

    def __init__(self) -> None:
        self._every: list[Recovery] = []
        self._begun = 0

    def __iter__(self) -> Iterator[Recovery]:
        return iter(self._every)

    def begin(self, loss: Loss, now: float) -> Recovery:
        """Under a number of its own, from 1 on. The oldest that ended make room."""
        self._begun += 1
        ended = [recovery.number for recovery in self._every if recovery.outcome != "running"]
        over = set(ended[:-ENDED_KEPT])
        self._every = [recovery for recovery in self._every if recovery.number not in over]
        self._every.append(Recovery(self._begun, loss, now))
        return self._every[-1]

    def running(self, agent: NodeId) -> bool:
        """Is a record of this agent being looked for?"""
        return any(recovery.agent == agent and recovery.outcome == "running" for recovery in self._every)

    def of_number(self, number: int) -> Recovery | None:
        """The one with this number, while it runs."""
        return next((each for each in self._every if each.number == number and each.outcome == "running"), None)

    def due(self, now: float) -> list[Recovery]:
        """Those that are to look again now; told once for each look."""
        due = [recovery for recovery in self._every if recovery.again_at is not None and now >= recovery.again_at]
        for recovery in due:
            recovery.again_at = None
        return due

    def next_deadline(self) -> float | None:
        """When the next one is due."""
        return min((recovery.again_at for recovery in self._every if recovery.again_at is not None), default=None)
