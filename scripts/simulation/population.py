"""Who is in the cluster: the build by real joins, those who come, and those who come back.

The first node is the root of the one tree, whose id it has; everyone else is a member. A tenth more join in each step of the build: a third
of them through the root, the others through one to three of those that are there; half of them in the same instant.
"""

from __future__ import annotations

from random import Random

from protocol.identifiers import Address, NodeId, agent_id, tree_id
from protocol.overlay import events as ev
from protocol.wire.values import MemberInfo
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.faults import Faults

TREE = tree_id("simulation", "parking")
ROOT = "root"
STANDBY = "standby-"
GROWTH = 0.1
STEP_MIN_S = 0.1
STEP_DELAYS = 60
"""A step of the build lasts as long as so many messages, one after the other: time for a JOIN and its probes."""
SEEDS_MAX = 3


def term(cluster: Cluster) -> int:
    """Of a root that starts now: terms come from clocks."""
    return round(1000 * cluster.clock.now)


class Population:
    """Starts the nodes of one cluster. members: whether they join the tree. zones: the nodes are in so many, in turn."""

    index, name = 0, "population"

    def __init__(self, cluster: Cluster, rng: Random, *, members: bool = True, zones: int = 1) -> None:
        self.cluster = cluster
        self.came_back = 0
        self._members = members
        self._zones = zones
        self._rng = rng
        self._names = 0
        self._slow = (0.0, 0.0)
        self._hints: dict[str, tuple[Address, ...]] = {}
        """The disk of each node that has died: the peers that it knew."""

    @property
    def root(self) -> Process:
        return self.cluster.processes[ROOT]

    def build(self, nodes: int) -> None:
        """From nothing to so many; the last joins may still be under way when this returns."""
        self._start_root()
        step_s = max(STEP_MIN_S, STEP_DELAYS * self.cluster.network.terrain.mean_s)
        clock, began = self.cluster.clock, 1
        while began < nodes:
            batch = min(nodes - began, max(1, int(began * GROWTH)))
            for number in range(batch):
                late_s = 0.0 if number % 2 else self._rng.uniform(0.0, step_s)
                clock.after(late_s, self._arrive_in_build, self, number % 3 == 0)
            began += batch
            clock.run(step_s)

    def _arrive_in_build(self, _: object, through_root: bool) -> None:
        self.arrive((self.root.peer.address,) if through_root else None)

    def arrive(self, seeds: tuple[Address, ...] | None = None) -> Process:
        """A new node with a new id."""
        self._names += 1
        name, seeds = f"n{self._names}", self._seeds() if seeds is None else seeds
        zone = f"zone-{self._names % self._zones}"
        identifier = NodeId(self._rng.getrandbits(128)) if self._zones == 1 else agent_id("simulation", name, zone)
        return self._join(self.cluster.start(name, identifier, seeds))

    def _start_root(self) -> None:
        if ROOT not in self.cluster.processes:
            self.cluster.start(ROOT, TREE)
        else:
            self.cluster.start(ROOT, TREE, (), self._hints[ROOT], term(self.cluster))
        if self._members:
            self.cluster.tell(self.root, ev.CreateTree(TREE))

    def died(self, process: Process) -> None:
        """Keep what its disk has; to be called before it is killed."""
        self._hints[process.name] = tuple(peer.address for peer in process.node.pastry.leaf_set)

    def may_come_back(self, name: str) -> bool:
        """Has it died? Who has left in order stays away."""
        return name in self._hints

    def start_standby(self, number: int) -> None:
        """A standby, which comes back under its name like every node."""
        self.cluster.start(f"{STANDBY}{number}", NodeId(self._rng.getrandbits(128)), self._seeds())

    def take_over(self, standby: Process, later_term: int) -> Process:
        """The root's node, beside this standby."""
        return self.cluster.start(f"{ROOT}@{standby.name}", TREE, (standby.peer.address,), (), later_term)

    def come_back(self, name: str, faults: Faults) -> None:
        """The next life of a node that died, perhaps elsewhere, perhaps without its disk; of the root: where it was, with its disk."""
        self.came_back += 1
        if name == ROOT:
            self._start_root()
            return
        hints = self._hints[name] if self._rng.random() < faults.disk_kept_share else ()
        moved = self._rng.random() < faults.new_address_share
        self._join(self.cluster.start(name, self.cluster.processes[name].peer.id, self._seeds(), hints, moved=moved))

    def make_slow(self, share: float, slow_s: float) -> None:
        """So many of those here, and of those who come, take so long for each event."""
        self._slow = share, slow_s
        for process in self.cluster.view.living:
            process.slow_s = slow_s if self._rng.random() < share else 0.0

    def _join(self, process: Process) -> Process:
        if self._members:
            self.cluster.tell(process, ev.JoinTree(TREE, MemberInfo(process.peer, process.name, "source", 1)))
        share, slow_s = self._slow
        if share and self._rng.random() < share:
            process.slow_s = slow_s
        return process

    def _seeds(self) -> tuple[Address, ...]:
        """One to three of the living; the same one twice is one."""
        some = self.cluster.view.some(self._rng, 1 + int(self._rng.random() * SEEDS_MAX))
        return tuple(dict.fromkeys(process.peer.address for process in some))
