"""One recovery: from the news that a life is over to its newest record, verified, at the manager.

The overlay finds and fetches (protocol/overlay/replication.py). This keeps the time of each step for the report, and asks again
where nothing was found yet: a leaf set may be in repair just when its member died. After `LOOK_MAX` looks with nothing found the record is
lost, and said to be; a restart of the agent may still bring it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fmrec_manager.liveness import Loss
from protocol.identifiers import NodeId
from protocol.overlay.effects import RetrievalEnded
from protocol.wire.values import RecordSummary

LOOK_MAX = 3
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
        if result.record is not None:
            self.record, self.outcome, self.again_at = result.record, "verified", None
            self.located_s, self.transferred_s, self.total_s = result.located_s, result.transferred_s, now - self.noticed
            wanted = result.record
            self.holder = next((h.holder.id for h in result.holdings if h.record.digest == wanted.digest), None)
        elif self.looks >= LOOK_MAX:
            self.outcome, self.again_at, self.total_s = "lost", None, now - self.noticed
        else:
            self.again_at = now + AGAIN_S * self.looks
        return self.outcome
