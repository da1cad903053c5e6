"""Virtual time: one heap of plain tuples (when, sequence, what to call, subject, detail); what is called gets subject and detail.

Steps of the same instant are taken in the order in which they were put in. Nothing here reads a real clock.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from scripts.simulation.trace import CHUNK, Step, Trace

Act = Callable[[Any, Any], object]


class Clock:
    """The time of a simulation, and what is still to happen. A subject needs an `index`, which the trace notes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heap: list[Step] = []
        self.ticket = count().__next__
        """The next sequence number: steps of one instant keep their order."""
        self.trace = Trace()

    def at(self, when: float, act: Act, subject: Any, detail: Any = None) -> None:
        """Call act(subject, detail) at `when`."""
        heappush(self.heap, (when, self.ticket(), act, subject, detail))

    def after(self, delay_s: float, act: Act, subject: Any, detail: Any = None) -> None:
        heappush(self.heap, (self.now + delay_s, self.ticket(), act, subject, detail))

    def note(self, subject: Any, detail: Any) -> None:
        """A fact for the trace, at this instant."""
        self.trace.steps.append((self.now, 0, None, subject, detail))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self._advance(self.now + seconds)

    def run_until(self, condition: Callable[[], bool], within_s: float, every_s: float = 0.01) -> bool:
        """Run until the condition holds, looking every so often; False where it does not within so many seconds."""
        end = self.now + within_s
        while not condition():
            if self.now >= end:
                return False
            self._advance(min(end, self.now + every_s))
        return True

    def _advance(self, end: float) -> None:
        heap, trace = self.heap, self.trace
        steps, record = trace.steps, trace.steps.append
        while heap and heap[0][0] <= end:
            step = heappop(heap)
            self.now = step[0]
            record(step)
            step[2](step[3], step[4])
            if len(steps) > CHUNK:
                trace.flush()
        self.now = end
