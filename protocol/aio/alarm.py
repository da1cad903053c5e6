"""Deadlines on a loop that may itself be late.

A process that was stopped, or has more to do than it has time for, finds timers that are due and, unread in its sockets, the very messages
that they are about. A loop runs its timers first. So an alarm that rings late gives way once: what has come in is read, and only then is
anybody judged by their silence. Otherwise whoever is slow believes that all others are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE_S = 0.02
"""Later than this, a loop has stood still; below, it is busy."""
TURN_S = 0.001
"""Until the loop has looked at its sockets once."""


class Alarm:
    """Calls act() at `when` (loop time); where the loop comes to it late, after as much time again, TURN_S to `grace_max_s`."""

    __slots__ = ("_act", "_grace_max_s", "_handle", "_loop", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float, act: Callable[[], object], grace_max_s: float = TURN_S) -> None:
        self.when = when
        self._loop = loop
        self._act = act
        self._grace_max_s = grace_max_s
        self._handle = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        late_s = self._loop.time() - self.when
        if late_s > LATE_S:
            self._handle = self._loop.call_later(max(TURN_S, min(late_s, self._grace_max_s)), self._act)
        else:
            self._act()

    def cancel(self) -> None:
        """It does not ring any more."""
        self._handle.cancel()
