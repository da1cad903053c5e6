"""One run with records and rounds: every agent checkpoints, the root runs rounds, faults strike agents, network and manager; then
everything is healed, the dead come back, and all rounds must be done, in mode exact with theta that of the undisturbed run.

In mode exact the members are fixed: whoever dies comes back, and nobody new comes, or theta would be another one by right.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from fmrec_manager.selection import Selection
from protocol.overlay import effects as fx
from protocol.parameters import PRESETS, OverlayParameters, PlacementPolicy
from protocol.wire.messages import RecoveryMode
from protocol.wire.values import RecordSummary
from scripts.simulation import collector
from scripts.simulation.agents import Agents, Work
from scripts.simulation.checkers import Mistakes
from scripts.simulation.cluster import Process
from scripts.simulation.contributions import Contributions
from scripts.simulation.durability import Durability
from scripts.simulation.faults import Faults, parse
from scripts.simulation.injection import Injector
from scripts.simulation.learning import Contents
from scripts.simulation.manager import Manager, plan_for
from scripts.simulation.managers import Managers
from scripts.simulation.population import TREE, Population
from scripts.simulation.run import SLICE_S, STORY_NODES, cluster_of, convergence_max_s, story, told

SLOWEST = 1.2
"""What the slowest agent needs for a round, over the mean one."""
ROUND_MAX_S = 30.0
"""A round takes no longer than this when nothing strikes."""


@dataclass(frozen=True, slots=True)
class RoundOptions:
    """What a run is made of, but for the machines. nodes: the manager among them, and so many standbys."""

    seed: int = 1
    nodes: int = 1000
    faults: str = "wild"
    preset: str = "lan"
    seconds: float = 60.0
    rounds: int = 12
    mode: RecoveryMode = "exact"
    selected: float = 1.0
    """How many of the agents, drawn anew for each round, train in it."""
    standbys: int = 0
    zones: int = 1
    """The agents are in so many, in turn."""
    placement: PlacementPolicy = "local"
    forget_after_s: float = 0.0
    """Records of agents that have been away for so long are forgotten; 0: as the preset says."""

    def drawn_faults(self) -> Faults:
        """Those of the specification; in mode exact, but for what changes the members. ValueError where it is wrong."""
        faults = parse(self.faults, Random(self.seed))
        return replace(faults, restart_share=1.0, session_mean_s=0.0, leave_share=0.0) if self.mode == "exact" else faults

    def parameters(self) -> OverlayParameters:
        """The preset's, with what is chosen otherwise. ValueError where they cannot work."""
        chosen = replace(PRESETS[self.preset](), placement=self.placement)
        if self.forget_after_s:
            chosen = replace(chosen, forget_after_s=self.forget_after_s)
        chosen.validate()
        return chosen

    @property
    def selection(self) -> Selection:
        """Who trains in a round."""
        return Selection("all" if self.selected == 1.0 else "fraction", self.selected, self.seed)

    def command(self) -> str:
        """What replays this run."""
        return (
            f"python scripts/simulate.py --rounds {self.rounds} --seed {self.seed} --nodes {self.nodes} --faults {self.faults} "
            f"--preset {self.preset} --seconds {self.seconds:g} --mode {self.mode} --selected {self.selected:g} "
            f"--standbys {self.standbys} --zones {self.zones} --placement {self.placement} --forget-after {self.forget_after_s:g}"
        )


@dataclass(slots=True)
class RoundResult:
    """What a run found. Times in virtual seconds unless they are called wall."""

    seed: int
    nodes: int
    faults: str
    rounds: int = 0
    mode: RecoveryMode = "exact"
    theta_equal: bool | None = False
    """To that of the undisturbed run; None in modes that do not promise it."""
    double_contributions: int = 0
    durable_lost: int = 0
    committed_lost: int = 0
    given_up: int = 0
    """Contributions that were left out, though a record in reach holds them or what may stand in for them."""
    durables: int = 0
    restores: int = 0
    restored: int = 0
    restored_behind: int = 0
    """Of the restores: the newest version could not be reached, and that was said."""
    lost: int = 0
    """Of the restores: all copies of what was durable had died before a repair was possible, or were being forgotten."""
    retrieved: int = 0
    retrieved_behind: int = 0
    """Of the agents' records that the root has looked for, found and not: older than what was durable when the look began."""
    forgotten: int = 0
    """Records of which the last copy was forgotten, for their owners had been away for long enough."""
    kept_too_long: int = 0
    """Copies of records that should have been forgotten."""
    judged_abroad: int = 0
    """Records of zones that died, which were durable for long enough to have copies in another."""
    manager_lives: int = 0
    takeovers: int = 0
    """Of these lives, those that a standby has begun."""
    moved_mb: float = 0.0
    done_after_s: float | None = None
    built_s: float = 0.0
    events: int = 0
    wall_s: float = 0.0
    trace_digest: str = ""
    struck: dict[str, int] = field(default_factory=dict)
    ways: dict[str, int] = field(default_factory=dict)
    """How the slots of all rounds were filled: upload, replica, substitute, none."""
    facts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    story: str = ""
    command: str = ""


class RoundRun:
    """One run of `options`; go() gives its result, whatever happens in it."""

    def __init__(self, options: RoundOptions, work: Work | None = None) -> None:
        self.options = options
        self.faults = options.drawn_faults()
        disks = options.standbys > 0 and self.faults.disk_kept_share > 0
        self.parameters = options.parameters()
        self.cluster = cluster = cluster_of(options.seed, options.nodes, options.preset, disks=disks, parameters=self.parameters)
        self.work = work or Work(options.seed)
        self.durability = Durability(cluster, TREE, self.work.record_bytes)
        work_s = SLOWEST * self.work.iterations * self.work.step_s
        self.plan = plan_for(options.rounds, options.nodes - 1 - options.standbys, self.parameters, work_s, options.mode, options.selection)
        contents = Contents()
        self.contributions = Contributions(cluster, self.durability, contents, self.plan, self.work.seed, self.work.iterations)
        rng = cluster.rng
        self.population = Population(cluster, Random(rng.getrandbits(64)), members=False, zones=options.zones)
        self.injector = Injector(cluster, self.population, self.faults, Random(rng.getrandbits(64)))
        self.injector.on_zone = self.durability.die_together
        self.agents = Agents(
            cluster, TREE, self.work, contents, self.durability, Random(rng.getrandbits(64)), self.faults.disk_kept_share
        )
        self.result = RoundResult(options.seed, options.nodes, str(self.faults), mode=options.mode, command=options.command())
        self._rng = Random(rng.getrandbits(64))
        self.managers = Managers(
            cluster, self.population, self.faults, self.injector.struck, self._make_manager, contents.members_on, self._rng
        )
        self._before: dict[str, Process] = {}
        self._facts: dict[str, int] = {}
        self._names: list[str] = []
        cluster.on_start, cluster.on_told, cluster.on_fact = self._started, self._told, self._fact
        cluster.transfers.on_upload = self._uploaded

    index, name = 0, "run"

    @property
    def manager(self) -> Manager:
        """Who roots the tree, or did last."""
        return self.managers.latest

    def _make_manager(self, process: Process) -> Manager:
        return Manager(self.agents, self.contributions, process, self.plan, rivals=self.options.standbys > 0)

    # --- the seam -----------------------------------------------------------------------------------------------------

    def _started(self, process: Process) -> None:
        if not self.managers.started(process):
            self.agents.started(process, self._before.get(process.name))
        self._before[process.name] = process

    def _told(self, process: Process, effect: fx.Effect) -> None:
        if not self.managers.told(process, effect):
            self.agents.told(process, effect)

    def _uploaded(self, process: Process, record: RecordSummary) -> str | None:
        return self.managers.uploaded(process, record)

    def _fact(self, process: Process, effect: fx.Notify) -> None:
        self._facts[effect.fact] = self._facts.get(effect.fact, 0) + 1

    # --- the phases ---------------------------------------------------------------------------------------------------

    def go(self) -> RoundResult:
        began = time.perf_counter()
        with told(self.cluster, self.result.failures, self._names):
            if self._build():
                self._safety()
                self._liveness()
        self._sum_up(time.perf_counter() - began)
        return self.result

    def _build(self) -> bool:
        """Everyone is in the ring and in the tree, and theta_0 is committed."""
        clock = self.cluster.clock
        self.population.build(self.options.nodes - self.options.standbys)
        for number in range(self.options.standbys):
            self.population.start_standby(number + 1)
        right = clock.run_until(lambda: self.manager.root.stage == "train", 2 * convergence_max_s(self.parameters), 0.25)
        self.result.built_s = clock.now
        collector.built()
        if not right:
            self._not_done("the first round is not open")
        return right

    def _safety(self) -> None:
        clock = self.cluster.clock
        end = clock.now + self.options.seconds
        self.injector.begin()
        if self.faults.crash_per_node_s:
            self.managers.begin()
        while clock.now < end:
            clock.run(min(SLICE_S, end - clock.now))
            self.durability.look_for_kept()

    def _liveness(self) -> None:
        """Everything is healed, many die in that instant, all the dead come back, and all rounds must be done in time."""
        clock, began = self.cluster.clock, self.cluster.clock.now
        self.injector.heal()
        self.managers.heal()
        self.injector.burst()
        clock.run(self.faults.down_mean_s)
        for name, process in list(self.cluster.processes.items()):
            if not process.alive and process.peer.id != TREE and self.population.may_come_back(name):
                self.population.come_back(name, self.faults)
        limit_s = 2 * convergence_max_s(self.parameters) + ROUND_MAX_S * self.options.rounds
        if clock.run_until(lambda: self.managers.done() is not None, limit_s, 0.25):
            done = self.managers.done()
            assert done is not None
            self.result.done_after_s = round(clock.now - began, 3)
            self.contributions.finished(done.theta, [life.process.peer.id for life in self.agents.lives.values()])
            self.result.theta_equal = not self.contributions.mistakes["P5"].count if self.options.mode == "exact" else None
        else:
            self._not_done(f"not all rounds are done {limit_s:g} s after the last fault")

    def _not_done(self, what: str) -> None:
        root = self.manager.root
        self.result.failures.append(f"{what}: {root.stage} of round {root.next_round}, {root.reason}")
        waiting = root.work.open_slots() if root.work is not None else []
        for identifier in waiting[:STORY_NODES]:
            process = self.cluster.view.get(identifier)
            life = self.agents.lives.get(process.name) if process is not None else None
            self.result.failures.append(f"  {process or identifier}: {life.words() if life is not None else 'does not live'}")
            self._names += [process.name] if process is not None else []
        self._names += [self.manager.process.name, *self.managers.standbys]

    # --- the result ---------------------------------------------------------------------------------------------------

    def _sum_up(self, wall_s: float) -> None:
        result, judge, folded = self.result, self.durability, self.contributions
        result.rounds = judge.committed_round
        result.manager_lives, result.takeovers = self.managers.lives, self.managers.takeovers
        result.durables, result.restores, result.restored = judge.durables, judge.restores, judge.found
        result.restored_behind, result.lost = judge.behind_said, judge.lost
        result.retrieved, result.retrieved_behind = judge.retrieved, judge.retrieved_behind
        result.judged_abroad, result.forgotten, result.kept_too_long = judge.judged_abroad, judge.forgotten, judge.mistakes["kept"].count
        result.double_contributions, result.ways = folded.mistakes["P1"].count, dict(sorted(folded.ways.items()))
        result.durable_lost = judge.mistakes["P2"].count
        result.committed_lost = judge.mistakes["P6"].count + folded.mistakes["P6"].count
        result.given_up = folded.mistakes["P2"].count
        result.moved_mb = round(self.cluster.transfers.moved_bytes / 1e6, 1)
        result.events, result.trace_digest = self.cluster.handled, self.cluster.clock.trace.digest()
        result.struck, result.facts = dict(sorted(self.injector.struck.items())), dict(sorted(self._facts.items()))
        for promise, mistakes in (*folded.mistakes.items(), *judge.mistakes.items()):
            self._blame(promise, mistakes)
        if result.failures:
            result.story = story(self.cluster, self._names)
        result.wall_s = round(wall_s, 2)

    def _blame(self, promise: str, mistakes: Mistakes) -> None:
        if mistakes.count:
            self.result.failures += [f"{promise} is broken, {mistakes.count} times", *mistakes.words]
            self._names += mistakes.names[:STORY_NODES]


def simulate_rounds(options: RoundOptions) -> dict[str, Any]:
    """One run, as plain values."""
    return asdict(RoundRun(options).go())
