"""What is asked of the ring: messages routed to random keys all the time, and the look-ups that measure how soon it is right again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol.identifiers import BITS, NodeId
from scripts.simulation.checkers import Batch, Routing
from scripts.simulation.cluster import Cluster

PROBE_INTERVAL_S = 0.25
LOOK_UPS = 64
"""In each batch."""
STEADY_S = 2.0
"""Everything must have been right for so long at the end."""
TRIES = 8
"""To find, by chance, a node that may send."""


class Workload:
    """Routes messages at a steady rate from settled nodes, by chance."""

    index, name = 0, "workload"

    def __init__(self, cluster: Cluster, routing: Routing, rng: Random) -> None:
        self._cluster = cluster
        self._routing = routing
        self._rng = rng
        self._rate = 0.0
        self._left = 0

    def begin(self, count: int, seconds: float) -> None:
        """So many messages, evenly spread over so long but for chance."""
        self._left = count
        if count:
            self._rate = count / seconds
            self._cluster.clock.after(self._rng.expovariate(self._rate), self._next, self)

    def _next(self, _: object, __: None) -> None:
        self.send(None)
        self._left -= 1
        if self._left:
            self._cluster.clock.after(self._rng.expovariate(self._rate), self._next, self)

    def send(self, batch: Batch | None) -> None:
        """One message from a settled node to a random key."""
        for _ in range(TRIES):
            sender = self._cluster.view.some(self._rng, 1)[0]
            if sender.settled and not sender.blocked:
                break
        self._routing.route(sender, NodeId(self._rng.getrandbits(BITS)), batch)

    def batch(self) -> Batch:
        """Look-ups of this instant, to be right within probe_timeout_s."""
        made = Batch(self._cluster.clock.now, self._cluster.parameters.probe_timeout_s, LOOK_UPS)
        for _ in range(LOOK_UPS):
            self.send(made)
        return made


class Recovery:
    """After the last fault: every PROBE_INTERVAL_S a batch of look-ups, and a look at ring and trees.

    ring_s, look_ups_s, trees_s: the first instant after which each was right at every look; None where it never was.
    """

    def __init__(self, cluster: Cluster, workload: Workload, tree_is_right: Callable[[], bool]) -> None:
        self.ring_s: float | None = None
        self.trees_s: float | None = None
        self.look_ups_s: float | None = None
        self._cluster = cluster
        self._workload = workload
        self._tree_is_right = tree_is_right
        self._batches: list[Batch] = []

    def watch(self, within_s: float) -> bool:
        """Until everything has been right for STEADY_S; False where that takes longer than within_s."""
        clock = self._cluster.clock
        began = clock.now
        while clock.now - began <= within_s + STEADY_S:
            at = clock.now - began
            self._batches.append(self._workload.batch())
            self.ring_s = _first(self.ring_s, at, self._cluster.view.ring_is_right())
            self.trees_s = _first(self.trees_s, at, self._tree_is_right())
            clock.run(PROBE_INTERVAL_S)
            self._judge(began)
            firsts = (self.ring_s, self.trees_s, self.look_ups_s)
            if all(first is not None and clock.now - began - first >= STEADY_S for first in firsts):
                return True
        return False

    def _judge(self, began: float) -> None:
        """The batches whose time is over, from the last one back to the last that was wrong."""
        self.look_ups_s = None
        now = self._cluster.clock.now
        for batch in reversed(self._batches):
            if batch.right == batch.size:
                self.look_ups_s = batch.began - began
            elif now - batch.began > batch.within_s:
                return


def _first(since: float | None, at: float, right: bool) -> float | None:
    if not right:
        return None
    return at if since is None else since
