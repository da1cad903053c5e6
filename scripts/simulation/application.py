"""What runs on a node of the simulator: it tells its node things, and does things later. A stopped process does them when it goes on, a
dead one never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.overlay import events as ev
from scripts.simulation.cluster import Cluster, Process

Act = Callable[[], None]


class Application:
    """One life of it, on one process, with one timer."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self.index, self.name = process.index, process.name
        self.process = process
        self._cluster = cluster
        self._armed: float | None = None

    @property
    def _now(self) -> float:
        return self._cluster.clock.now

    def _tell(self, event: ev.Event) -> None:
        """After what is being handled."""
        self._cluster.clock.after(0.0, self._cluster.tell, self.process, event)

    def _later(self, delay_s: float, act: Act) -> None:
        self._cluster.clock.after(delay_s, self._act, self, act)

    def _act(self, _: Any, act: Act) -> None:
        if self.process.blocked:
            self.process.put_off(self._act, self, act)
        elif self.process.alive:
            act()

    def _arm(self, when: float | None, act: Act) -> None:
        """The timer is to fire then, and no more when it was to; None: not at all."""
        if when is not None and when != self._armed:
            self._cluster.clock.at(max(when, self._now), self._ring, self, (when, act))
        self._armed = when

    def _ring(self, _: Any, due: tuple[float, Act]) -> None:
        when, act = due
        if self._armed == when and self.process.alive:
            self._armed = None
            self._act(None, act)
