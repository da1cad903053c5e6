"""One run: build by joins, faults while messages are routed, then everything is healed and must come right within a stated time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from protocol.parameters import PRESETS, OverlayParameters
from protocol.wire import messages as m
from protocol.wire.codec import decode, encode
from scripts.simulation import collector
from scripts.simulation.checkers import Deaths, Mistakes, Routing
from scripts.simulation.cluster import Cluster
from scripts.simulation.faults import Faults, parse
from scripts.simulation.injection import Injector
from scripts.simulation.population import TREE, Population
from scripts.simulation.terrain import TERRAINS
from scripts.simulation.workload import Recovery, Workload

CODEC_NODES_MAX = 64
"""Up to so many nodes every message goes through the codec, and every event is followed by a check of invariants."""
CHECK_EVERY = 997
SLICE_S = 1.0
STORY_NODES = 4
TREE_MESSAGES = (m.TreeJoin, m.TreeWelcome, m.TreeRefusal, m.TreeRedirect, m.TreeLeave, m.Alive, m.TreePulse, m.Multicast)
MESSAGES_A_DIAL = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of, but for the machines. routed: messages in the safety phase; None: ten for each node."""

    seed: int = 1
    nodes: int = 1000
    faults: str = "drawn"
    preset: str = "lan"
    seconds: float = 60.0
    routed: int | None = None
    tree: bool = True

    @property
    def messages(self) -> int:
        return 10 * self.nodes if self.routed is None else self.routed

    def drawn_faults(self) -> Faults:
        """ValueError where the specification is wrong."""
        return parse(self.faults, Random(self.seed))

    def command(self) -> str:
        """What replays this run."""
        quiet = asdict(Options())
        changed = {name: value for name, value in asdict(self).items() if value != quiet[name] and name not in ("seed", "nodes", "faults")}
        if not changed:
            return f"make simulate SEED={self.seed} NODES={self.nodes} FAULTS={self.faults}"
        more = "".join(" --no-tree" if name == "tree" else f" --{name} {value:g}" if isinstance(value, float) else f" --{name} {value}"
                       for name, value in changed.items())  # fmt: skip
        return f"python scripts/simulate.py --seed {self.seed} --nodes {self.nodes} --faults {self.faults}{more}"


@dataclass(slots=True)
class Result:
    """What a run found. Times in virtual seconds unless they are called wall; after_s: since everything was healed, and many died."""

    seed: int
    nodes: int
    faults: str
    routed: int = 0
    wrong_roots: int = 0
    lost: int = 0
    hops_mean: float | None = None
    control_msgs_per_s_per_node: float | None = None
    false_deaths: int = 0
    lookups_right_after_s: float | None = None
    trees_complete_after_s: float | None = None
    ring_right_after_s: float | None = None
    trace_digest: str = ""
    wall_s: float = 0.0
    delivered: int = 0
    duplicates: int = 0
    lost_with_holder: int = 0
    lost_and_said: int = 0
    wrong_roots_excused: int = 0
    false_deaths_excused: int = 0
    hops_max: int | None = None
    stretch: float | None = None
    tree_msgs_per_s_per_node: float | None = None
    routing_msgs_per_s_per_node: float | None = None
    built_s: float = 0.0
    build_wall_s: float = 0.0
    live: int = 0
    events: int = 0
    sent: dict[str, float] = field(default_factory=dict)
    """Messages a second and node in the safety phase, by type."""
    struck: dict[str, int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    """The first false deaths, in words."""
    failures: list[str] = field(default_factory=list)
    story: str = ""
    command: str = ""


def convergence_max_s(parameters: OverlayParameters) -> float:
    """Within this after the last fault everything must be right: a few rounds of dialling the remembered dead, and of trials."""
    return 4 * (parameters.retry_max_s + parameters.silence_max_s + parameters.trial_max_s)


def cluster_of(seed: int, nodes: int, preset: str, *, disks: bool = False, parameters: OverlayParameters | None = None) -> Cluster:
    """Empty, for a run with so many nodes: with few, everything is checked at every step. parameters: the preset's, if none are given."""
    parameters = parameters or PRESETS[preset]()
    small = nodes <= CODEC_NODES_MAX
    codec = (encode, decode) if small else None
    return Cluster(seed, parameters, TERRAINS[preset], codec, check_every=1 if small else CHECK_EVERY, keep=False, disks=disks)


@contextmanager
def told(cluster: Cluster, failures: list[str], names: list[str]) -> Iterator[None]:
    """The course of a run: a mistake of a machine, whatever it is, ends it as a failure, and whoever made it is named."""
    with collector.paused():
        try:
            yield
        except Exception:
            steps = cluster.clock.trace.steps
            names += [steps[-1][3].name] if steps else []
            failures.append(f"at {cluster.clock.now:.4f}: {traceback.format_exc()}")


def story(cluster: Cluster, names: list[str]) -> str:
    """Of the first few of those named; empty where nobody is."""
    chosen = list(dict.fromkeys(names))[: 2 * STORY_NODES]
    return cluster.story(*chosen) if chosen else ""


class Run:
    """One run of `options`; go() gives its result, whatever happens in it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.faults = options.drawn_faults()
        self.cluster = cluster_of(options.seed, options.nodes, options.preset)
        self.parameters = self.cluster.parameters
        rng = self.cluster.rng
        self.routing = Routing(self.cluster)
        self.deaths = Deaths(self.cluster, self.routing)
        self.population = Population(self.cluster, Random(rng.getrandbits(64)), members=options.tree)
        self.injector = Injector(self.cluster, self.population, self.faults, Random(rng.getrandbits(64)))
        self.workload = Workload(self.cluster, self.routing, Random(rng.getrandbits(64)))
        self.result = Result(options.seed, options.nodes, str(self.faults), command=options.command())
        self._names: list[str] = []
        """Whose stories tell of what went wrong."""

    def go(self) -> Result:
        began = time.perf_counter()
        with told(self.cluster, self.result.failures, self._names):
            if self._build(began):
                self._safety()
                self._liveness()
            self._drain()
        self._sum_up(time.perf_counter() - began)
        return self.result

    # --- the phases ---------------------------------------------------------------------------------------------------

    def _tree_is_right(self) -> bool:
        return not self.options.tree or self.cluster.view.tree_is_right(TREE)

    def _build(self, began: float) -> bool:
        """False where ring and tree do not come right after the last join."""
        view, clock = self.cluster.view, self.cluster.clock
        self.population.build(self.options.nodes)
        right = self._in_time("the build", lambda: view.ring_is_right() and self._tree_is_right())
        self.result.built_s = clock.now
        self.result.build_wall_s = time.perf_counter() - began
        collector.built()
        return right

    def _in_time(self, what: str, condition: Callable[[], bool]) -> bool:
        limit_s = convergence_max_s(self.parameters)
        if self.cluster.clock.run_until(condition, limit_s, 0.25):
            return True
        self._not_right(f"{what} is not right within {limit_s:g} s")
        return False

    def _not_right(self, what: str) -> None:
        tree = TREE if self.options.tree else None
        self.result.failures += [what, *self.cluster.view.what_is_wrong(tree)[:12]]
        self._names += self.cluster.view.suspects(tree)[:STORY_NODES]

    def _safety(self) -> None:
        """Faults strike while messages are routed; what is sent meanwhile is counted."""
        clock, seconds = self.cluster.clock, self.options.seconds
        before, lived_s, end = self._counts(), 0.0, clock.now + seconds
        self.injector.begin()
        self.workload.begin(self.options.messages, seconds)
        while clock.now < end:
            slice_s = min(SLICE_S, end - clock.now)
            lived_s += slice_s * len(self.cluster.view)
            clock.run(slice_s)
        if lived_s:
            self._rates({name: (count - before.get(name, 0)) / lived_s for name, count in self._counts().items()})

    def _counts(self) -> dict[str, int]:
        network = self.cluster.network
        dials = {"dials": network.dialling.count, "dials_for_look_ups": network.dialling.for_look_ups}
        return {**{kind.__name__: count for kind, count in network.sent.items()}, **dials}

    def _rates(self, sent: dict[str, float]) -> None:
        """Of a second and node. What look-ups cost, their dials and the acknowledgements that their hops ask for, is no control traffic."""
        trees = sum(sent.get(kind.__name__, 0.0) for kind in TREE_MESSAGES)
        datagrams, acks = sent.get("Datagram", 0.0), sent.get("RouteAck", 0.0)
        routing = datagrams + min(datagrams, acks) + MESSAGES_A_DIAL * sent["dials_for_look_ups"]
        messages = sum(rate for name, rate in sent.items() if not name.startswith("dials")) + MESSAGES_A_DIAL * sent["dials"]
        self.result.sent = {name: round(rate, 4) for name, rate in sorted(sent.items()) if rate}
        self.result.tree_msgs_per_s_per_node = round(trees, 4)
        self.result.routing_msgs_per_s_per_node = round(routing, 4)
        self.result.control_msgs_per_s_per_node = round(messages - trees - routing, 4)

    def _liveness(self) -> None:
        """Everything is healed, many die in that instant, and all must come right."""
        self.injector.heal()
        self.injector.burst()
        limit_s = convergence_max_s(self.parameters)
        recovery = Recovery(self.cluster, self.workload, self._tree_is_right)
        if not recovery.watch(limit_s):
            firsts = {"the ring": recovery.ring_s, "a tree": recovery.trees_s, "some look-up": recovery.look_ups_s}
            wrong = [name for name, first in firsts.items() if first is None or first > limit_s]
            self._not_right(f"{' and '.join(wrong) or 'something'} is not right within {limit_s:g} s after the last fault")
        self.result.ring_right_after_s = recovery.ring_s
        self.result.lookups_right_after_s = recovery.look_ups_s
        self.result.trees_complete_after_s = recovery.trees_s

    def _drain(self) -> None:
        """A message may wait for verdicts and neighbours as long as the parameters say; what is not there then is lost."""
        waiting = self.parameters.hold_max_s + self.parameters.trial_max_s
        self.cluster.clock.run_until(lambda: not any((self.routing.lost()[0].count, *self.routing.lost()[1:])), waiting, 0.25)

    # --- the result ---------------------------------------------------------------------------------------------------

    def _sum_up(self, wall_s: float) -> None:
        result, routing, deaths = self.result, self.routing, self.deaths
        lost, excused, said = routing.lost()
        count = sum(routing.hops.values())
        result.routed, result.delivered, result.duplicates = routing.routed, routing.delivered, routing.duplicates
        result.wrong_roots, result.wrong_roots_excused = routing.wrong.count, routing.wrong_excused
        result.lost, result.lost_with_holder, result.lost_and_said = lost.count + excused + said, excused, said
        result.false_deaths, result.false_deaths_excused = deaths.false.count, deaths.false_excused
        if count:
            result.hops_mean = round(sum(hops * of for hops, of in routing.hops.items()) / count, 4)
            result.hops_max = max(routing.hops)
        if routing.direct_s:
            result.stretch = round(routing.delay_s / routing.direct_s, 3)
        result.trace_digest = self.cluster.clock.trace.digest()
        result.events, result.live = self.cluster.handled, len(self.cluster.view)
        result.struck, result.facts = dict(sorted(self.injector.struck.items())), dict(sorted(deaths.facts.items()))
        result.remarks = deaths.false.words
        self._blame("wrong roots", routing.wrong)
        self._blame("messages lost in silence", lost)
        if self.faults.harmless:
            self._blame("declared dead by mistake", deaths.false)
        if result.failures:
            result.story = story(self.cluster, self._names)
        result.wall_s = round(wall_s, 2)

    def _blame(self, what: str, mistakes: Mistakes) -> None:
        if mistakes.count:
            self.result.failures += [f"{mistakes.count} {what}", *mistakes.words]
            self._names += mistakes.names[:STORY_NODES]


def simulate(options: Options) -> dict[str, Any]:
    """One run, as plain values."""
    return asdict(Run(options).go())
