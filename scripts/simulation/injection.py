"""When which fault strikes: each kind is a Poisson process of its own, from begin() to heal()."""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random

from protocol.identifiers import zone_of
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.faults import Faults
from scripts.simulation.network import Link
from scripts.simulation.population import ROOT, STANDBY, TREE, Population
from scripts.simulation.terrain import Cut


class Injector:
    """Strikes the processes of a cluster with faults, and heals everything."""

    index, name = 0, "injector"

    def __init__(self, cluster: Cluster, population: Population, faults: Faults, rng: Random) -> None:
        self.struck: dict[str, int] = {}
        """How often each kind has struck."""
        self._cluster = cluster
        self._population = population
        self._faults = faults
        self._rng = rng
        self._healed = True
        self._asleep: dict[int, Process] = {}
        self.on_zone: Callable[[Collection[Process]], None] = lambda processes: None
        """Called before all of these die at once."""
        churn = 1 / faults.session_mean_s if faults.session_mean_s else 0.0
        self._kinds: dict[str, tuple[float, bool, Callable[[], None]]] = {
            "crash": (faults.crash_per_node_s, True, self._crash),
            "session": (churn, True, self._end_session),
            "zone": (faults.zone_per_s, False, self._zone),
            "pause": (faults.pause_per_node_s, True, self._pause),
            "reset": (faults.reset_per_node_s, True, lambda: self._break(self._cluster.network.reset)),
            "half-open": (faults.half_open_per_node_s, True, lambda: self._break(self._cluster.network.half_open)),
            "partition": (faults.partition_per_s, False, self._partition),
        }

    # --- begin and end ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on faults strike."""
        self._healed = False
        network, faults = self._cluster.network, self._faults
        network.stall_share, network.stall_s = faults.stall_share, (faults.stall_min_s, faults.stall_max_s)
        self._population.make_slow(faults.slow_share, faults.slow_s)
        for kind in self._kinds:
            self._next(kind)

    def heal(self) -> None:
        """Nothing strikes any more, and what can be mended is: who sleeps goes on, cuts end. The dead stay dead."""
        self._healed = True
        network = self._cluster.network
        network.stall_share = 0.0
        self._population.make_slow(0.0, 0.0)
        for process in list(self._asleep.values()):
            self._cluster.resume(process)
        for cut in list(network.cuts):
            network.heal(cut)

    def burst(self) -> list[str]:
        """Many die in this instant; their names."""
        faults, view = self._faults, self._cluster.view
        mortal = [process for process in view.living if process.peer.id != TREE]
        victims = self._rng.sample(mortal, int(faults.burst_share * len(mortal)))
        if victims and faults.root_too:
            victims.append(self._population.root)
        for process in victims:
            self._kill(process)
            if process.name == ROOT:
                self._cluster.clock.after(faults.down_mean_s, self._come_back, self, ROOT)
        return [process.name for process in victims]

    # --- striking -----------------------------------------------------------------------------------------------------

    def _next(self, kind: str) -> None:
        rate, per_node, _ = self._kinds[kind]
        if per_node:
            rate *= len(self._cluster.view)
        if rate:
            self._cluster.clock.after(self._rng.expovariate(rate), self._strike, self, kind)

    def _strike(self, _: object, kind: str) -> None:
        if not self._healed:
            self.struck[kind] = self.struck.get(kind, 0) + 1
            self._kinds[kind][2]()
            self._next(kind)

    def _victim(self) -> Process | None:
        """Anybody but the root."""
        found = self._cluster.view.some(self._rng, 1)[0]
        return found if found.peer.id != TREE else None

    def _kill(self, process: Process) -> None:
        self._population.died(process)
        self._asleep.pop(process.index, None)
        self._cluster.kill(process, silent=self._rng.random() < self._faults.silent_share)

    def _crash(self) -> None:
        process = self._victim()
        if process is not None:
            self._kill_for_a_while(process)

    def _zone(self) -> None:
        first = self._victim()
        if first is None:
            return
        mortal = [process for process in self._cluster.view.living if process.peer.id != TREE]
        zone = [process for process in mortal if zone_of(process.peer.id) == zone_of(first.peer.id)]
        self._cluster.clock.note(self, f"a zone of {len(zone)} dies")
        self.on_zone(zone)
        for process in zone:
            self._kill_for_a_while(process)

    def _kill_for_a_while(self, process: Process) -> None:
        self._kill(process)
        down_s = self._rng.expovariate(1 / self._faults.down_mean_s) if self._faults.down_mean_s else 0.0
        again = self._rng.random() < self._faults.restart_share or process.name.startswith(STANDBY)
        self._cluster.clock.after(down_s, self._come_back, self, process.name if again else None)

    def _come_back(self, _: object, name: str | None) -> None:
        if name == ROOT:
            self._population.come_back(ROOT, self._faults)
        elif self._healed:
            return
        elif name is None:
            self._population.arrive()
        else:
            self._population.come_back(name, self._faults)

    def _end_session(self) -> None:
        process = self._victim()
        if process is None:
            return
        if self._rng.random() < self._faults.leave_share and not process.blocked:
            self._cluster.leave(process)
        else:
            self._kill(process)
        self._population.arrive()

    def _pause(self) -> None:
        process = self._victim()
        if process is None or process.paused:
            return
        self._asleep[process.index] = process
        self._cluster.pause(process)
        nap_s = self._rng.uniform(self._faults.pause_min_s, self._faults.pause_max_s)
        self._cluster.clock.after(nap_s, self._resume, process)

    def _resume(self, process: Process, _: None) -> None:
        if self._asleep.pop(process.index, None) is not None:
            self._cluster.resume(process)

    def _break(self, how: Callable[[Link], None]) -> None:
        process = self._cluster.view.some(self._rng, 1)[0]
        links = list(process.links.values())
        if links:
            how(links[int(self._rng.random() * len(links))])

    def _partition(self) -> None:
        living = [process.index for process in self._cluster.view.living]
        here = frozenset(self._rng.sample(living, max(1, int(self._faults.partition_share * len(living)))))
        one_way = self._rng.random() < self._faults.partition_one_way_share
        there = frozenset(living) - here
        if one_way and self._rng.random() < 0.5:
            here, there = there, here
        cut = self._cluster.network.cut(here, there, one_way=one_way)
        self._cluster.clock.note(self, f"cut: {len(here)} {'->' if one_way else '<->'} {len(there)} nodes")
        lasting_s = self._rng.uniform(self._faults.partition_min_s, self._faults.partition_max_s)
        self._cluster.clock.after(lasting_s, self._heal, self, cut)

    def _heal(self, _: object, cut: Cut) -> None:
        self._cluster.network.heal(cut)
