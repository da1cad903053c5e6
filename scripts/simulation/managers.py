"""Who roots the tree in a simulated run: the first manager and its later lives, the standbys, and what strikes them.

Without standbys a manager that is killed comes back where it was. With them it is killed or hangs, and comes back by half a chance, as
where somebody starts it by hand beside the standby that has taken its place: whoever roots the tree, no two may commit against each other.
Who is superseded stands by.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire.values import RecordSummary
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.faults import Faults
from scripts.simulation.manager import Manager
from scripts.simulation.population import ROOT, STANDBY, TREE, Population
from scripts.simulation.standby import MembersOn, StandbyLife

LIFE_S = 15.0
"""A manager is struck so often, on average, while faults strike that kill at all."""
HANGS = 0.4
"""Of these strikes, where there are standbys, how many only stop it for a while."""
NAP_S = 0.5, 10.0

MakeManager = Callable[[Process], Manager]


class Managers:
    """All of one run. struck: counts what has struck; members_on: whom the tree's own record names."""

    index, name = 0, "managers"

    def __init__(
        self,
        cluster: Cluster,
        population: Population,
        faults: Faults,
        struck: dict[str, int],
        make: MakeManager,
        members_on: MembersOn,
        rng: Random,
    ) -> None:
        self.lives = 0
        self.standbys: dict[str, StandbyLife] = {}
        """The latest life under each name."""
        self._cluster = cluster
        self._population = population
        self._faults = faults
        self._struck = struck
        self._make = make
        self._members_on = members_on
        self._rng = rng
        self._managers: list[Manager] = []
        """Every life, in the order of their beginnings."""
        self._asleep: list[Process] = []
        self._striking = False
        on_end = cluster.on_end

        def ended(process: Process) -> None:
            on_end(process)
            self._ended(process)

        cluster.on_end = ended

    @property
    def latest(self) -> Manager:
        """The one that began last; of those that live, where any does."""
        return next((each for each in reversed(self._managers) if each.process.alive), self._managers[-1])

    @property
    def takeovers(self) -> int:
        return sum(each.process.name != ROOT for each in self._managers)

    def done(self) -> Manager | None:
        """Who says that all rounds are done."""
        return next((each for each in self._managers if each.process.alive and each.root.stage == "done"), None)

    # --- the seam -----------------------------------------------------------------------------------------------------

    def started(self, process: Process) -> bool:
        """A life begins. Is it one of ours?"""
        clock = self._cluster.clock
        if process.peer.id == TREE:
            self.lives += 1
            self._managers.append(self._make(process))
            clock.after(0.0, self._cluster.tell, process, ev.CreateTree(TREE))
        elif process.name.startswith(STANDBY):
            self.standbys[process.name] = StandbyLife(self._cluster, process, TREE, self._members_on, self._take_over)
        else:
            return False
        return True

    def told(self, process: Process, effect: fx.Effect) -> bool:
        """Is it for one of ours?"""
        if (life := self._life(process)) is not None:
            life.told(effect)
        return process.peer.id == TREE or process.name.startswith(STANDBY)

    def _life(self, process: Process) -> Manager | StandbyLife | None:
        if process.name.startswith(STANDBY):
            life = self.standbys[process.name]
            return life if life.process is process else None
        return next((each for each in reversed(self._managers) if each.process is process), None)

    def uploaded(self, process: Process, record: RecordSummary) -> str | None:
        """An agent brings a record to whoever lives at this process."""
        life = self._life(process)
        return life.uploaded(record) if isinstance(life, Manager) else "no manager lives here"

    def _take_over(self, standby: Process, term: int, record: RecordSummary | None) -> None:
        process = self._population.take_over(standby, term)
        if record is not None:
            self._cluster.transfers.put(process, record)
            self._cluster.clock.after(0.0, self._cluster.tell, process, ev.RecordHeld(record))

    def _ended(self, process: Process) -> None:
        """A standby and the root that it has started are one process; and one that is over is started again as a standby."""
        clock = self._cluster.clock
        if process.name.startswith(STANDBY):
            root = self._cluster.processes.get(f"{ROOT}@{process.name}")
            if root is not None and root.alive:
                clock.after(0.0, lambda root, _: self._cluster.kill(root), root)
        life = self._life(process)
        term = life.superseded_by if isinstance(life, Manager) else 0
        standby = self.standbys.get(process.name.removeprefix(f"{ROOT}@"))
        if term and standby is None:
            clock.after(0.0, self._stand_by, self, term)
        elif standby is not None and standby.process is not process and standby.process.alive:
            if term:
                standby.superseded(term)
            else:
                standby.root_ended()

    def _stand_by(self, _: object, term: int) -> None:
        """A manager that was started as such is superseded: it goes on as a standby."""
        standby = self.standbys.get(f"{STANDBY}0")
        if standby is None:
            self._population.start_standby(0)
            standby = self.standbys[f"{STANDBY}0"]
        if standby.process.alive:
            standby.superseded(term)

    # --- what strikes -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on they are struck."""
        self._striking = True
        self._next()

    def heal(self) -> None:
        """Nothing strikes any more, who hangs goes on; and somebody roots the tree, or a standby sees to it."""
        self._striking = False
        for process in self._asleep:
            self._cluster.resume(process)
        if not self.standbys:
            self._come_back(self, None)

    def _next(self) -> None:
        if self._striking:
            self._cluster.clock.after(self._rng.expovariate(1 / LIFE_S), self._strike, self)

    def _strike(self, _: object, __: object) -> None:
        process = self.latest.process
        if self._striking and process.alive and not process.paused:
            if self.standbys and self._rng.random() < HANGS:
                self._hang(process)
            else:
                self._kill(process)
        self._next()

    def _kill(self, process: Process) -> None:
        self._count("manager")
        self._population.died(process)
        self._cluster.kill(process, silent=self._rng.random() < self._faults.silent_share)
        if not self.standbys or self._rng.random() < 0.5:
            self._cluster.clock.after(self._rng.uniform(0.1, 2 * self._faults.down_mean_s), self._come_back, self)

    def _hang(self, process: Process) -> None:
        self._count("manager hangs")
        self._asleep.append(process)
        self._cluster.pause(process)
        self._cluster.clock.after(self._rng.uniform(*NAP_S), lambda process, _: self._cluster.resume(process), process)

    def _count(self, what: str) -> None:
        self._struck[what] = self._struck.get(what, 0) + 1

    def _come_back(self, _: object, __: object) -> None:
        """By hand, at the first manager's place; nobody does so while that one lives."""
        if not self._cluster.processes[ROOT].alive and self._population.may_come_back(ROOT):
            self._population.come_back(ROOT, self._faults)
