"""One run under chaos, from the first process to the last.

    start -> WARM_S of calm -> faults -> healed: everybody is back (P4) -> ROUNDS_AFTER more rounds (P8), TIDY_S -> all leave in order

Training has no end of its own, so that every fault strikes it. The undisturbed run of the same seed is then trained for as many rounds as
the disturbed one was, and theta of each round that was seen in both is compared (verdict.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from fmrec_manager.report import digest_of_owners
from protocol.identifiers import agent_id
from protocol.parameters import loopback
from scripts.chaos_run.cluster import LOOK_S, MANAGERS, ChaosCluster
from scripts.chaos_run.injection import Injection
from scripts.chaos_run.plan import Fault
from scripts.chaos_run.promises import Steady, Thetas, commits, thetas_of, unhealed
from scripts.chaos_run.verdict import Seen
from scripts.chaos_run.watching import STALE_S, Watch
from scripts.hosts import Network, OneMachine
from scripts.local_cluster import CLUSTER, ClusterError

PARTS = ("chaos", "undisturbed")
"""The folders that a run leaves, one of each of its two clusters."""
ROUNDS_WITHOUT_END = 1_000_000
LEARNER_SET = ("learning.learner=admm", "learning.rho=20.0", "learning.iterations_per_round=20", "learning.batch=8")
"""ADMM's duals live in their agent alone, from round to round: theta is another where one is lost. With MAML it would not be: what that
sends depends on theta and the round's draws."""
SERVER = {"server_optimizer": "sgd", "server_rate": 1.0}
AGENT_SET = (*LEARNER_SET, "checkpoint_every=5", "restarts_max=1000")
START_S = 240.0
WARM_S = 3.0
HEALED_S = 120.0
"""Far above what the overlay needs, as START_S is: the longest dial back-off, and the start of a manager that loads torch beside eighteen
processes, on a machine that does other things as well. How long it took is in the report."""
STEADY_S = loopback().silence_max_s + STALE_S
"""Whoever dies is missed within that, and what was heard of it before is forgotten."""
ROUNDS_AFTER, ROUNDS_AFTER_S = 3, 120.0
TIDY_S = 2 * loopback().orphan_max_s
"""After that the pools have parted with the connections that nobody has used since all was well."""
AGENTS_LEAVE_S, MANAGERS_LEAVE_S = 8.0, 60.0
"""Agents: all at once, each until its peers have heard its goodbye; less than what a launcher allows before it kills. Nobody kills a
manager."""
UNDISTURBED_ROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """Of one run: the plan's faults strike a training run of this seed."""

    seed: int
    agents: int
    plan: tuple[Fault, ...]


class ChaosRun:
    """One run in `folder`, on these hosts. say: told each thing that is worth a line."""

    def __init__(self, options: Options, network: Network | OneMachine, folder: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._network = network
        self._folder = folder
        self._say = say
        self.story: list[str] = []
        """What was done, line by line."""

    async def disturbed(self) -> Seen:
        """The run under the plan's faults. ClusterError where it does not come to begin."""
        cluster = self._cluster(PARTS[0], ROUNDS_WITHOUT_END)
        async with cluster:
            watch, injection = Watch(cluster), Injection(cluster)
            self.story = injection.story
            watch.start()
            supervising = asyncio.create_task(self._supervise(cluster, injection))
            try:
                await until(lambda: self._unhealed(watch), START_S, "the cluster does not begin")
                await asyncio.sleep(WARM_S)
                warm = list(watch.samples)
                self._say(f"{len(self._options.plan)} faults")
                await injection.run(list(self._options.plan))
                injection.tell("the last fault is over")
                over_s = watch.now_s
                healed_s, stuck = await self._after(watch)
                watch.sample()
            finally:
                try:
                    await ended(supervising)
                finally:
                    await watch.close()
            manager_logs = {name: cluster.log(f"{name}.log") for name in cluster.managers}
            known = set(cluster.pids().values())
            strays = set(cluster.processes()) - known
            late = await cluster.leave(AGENTS_LEAVE_S, MANAGERS_LEAVE_S)
            strays |= set(cluster.processes()) - known
            logs = {path.name: cluster.log(path.name) for path in sorted(cluster.folder.glob("*.log"))}
        return Seen(
            agents=self._options.agents,
            owners=digest_of_owners(agent_id(CLUSTER, name) for name in cluster.addresses),
            faults=tuple(fault.kind for fault in injection.done),
            healed_s=healed_s,
            stuck=stuck,
            manager_logs=manager_logs,
            logs=logs,
            lives={name: tuple(lives.values()) for name, lives in watch.lives.items()},
            thetas=watch.thetas,
            warm=tuple(warm),
            samples=tuple(watch.samples),
            calm_s=over_s + (inf if healed_s is None else healed_s),
            strays=tuple(sorted(strays)),
            late=tuple(late),
            odd_ends=tuple(cluster.odd_ends),
        )

    async def undisturbed(self, rounds: int) -> Thetas:
        """The digests of theta by round, of so many rounds without a fault; of fewer where they do not come to an end in time."""
        self._say(f"the undisturbed run: {rounds} rounds")
        async with self._cluster(PARTS[1], rounds, with_standby=False) as cluster:
            watch = Watch(cluster)
            watch.start()

            def unfinished() -> str | None:
                root = watch.root()
                return None if root is not None and root["stage"] == "done" else f"round {newest(watch)}"

            try:
                await until(unfinished, START_S + UNDISTURBED_ROUND_S * rounds, "the undisturbed run does not end")
            except ClusterError as error:
                self._say(str(error))
            finally:
                await watch.close()
            return thetas_of(commits({name: cluster.log(f"{name}.log") for name in cluster.managers}), watch.thetas)

    def _cluster(self, name: str, rounds: int, with_standby: bool = True) -> ChaosCluster:
        agents = self._options.agents
        sets = {"rounds": rounds, "seed": self._options.seed, "sources_min": agents, "recovery": "exact", "adapt": "false", **SERVER}
        return ChaosCluster(
            self._folder / name,
            self._network,
            agents,
            manager_set=[f"tree.main.{key}={value}" for key, value in sets.items()],
            agent_set=AGENT_SET,
            with_standby=with_standby,
        )

    async def _supervise(self, cluster: ChaosCluster, injection: Injection) -> None:
        while True:
            for name in cluster.restart_ended():
                injection.tell(f"{name} is started again")
            await asyncio.sleep(LOOK_S)

    def _unhealed(self, watch: Watch) -> str | None:
        neighbours = min(loopback().leaf_set_size, self._options.agents + len(MANAGERS) - 1)
        return unhealed(watch.root(), watch.agents, neighbours)

    async def _whole(self, watch: Watch, what: str) -> float:
        """Until everybody has been back for STEADY_S, in time.monotonic()'s seconds since when; ClusterError where that does not come."""
        steady = Steady(STEADY_S)
        await until(lambda: steady.look(self._unhealed(watch), time.monotonic()), HEALED_S + STEADY_S, what)
        assert steady.since_s is not None
        return steady.since_s

    async def _after(self, watch: Watch) -> tuple[float | None, str | None]:
        """How long healing took, None where it did not come to that; and why the run does not go on, if so."""
        began, healed_s = time.monotonic(), None
        watch.forget()
        try:
            healed_s = round(await self._whole(watch, "P4: not whole") - began, 2)
            wanted, tidy = newest(watch) + ROUNDS_AFTER, time.monotonic() + TIDY_S

            def lacking() -> str | None:
                return None if newest(watch) >= wanted and time.monotonic() >= tidy else f"round {newest(watch)}"

            await until(lacking, ROUNDS_AFTER_S, "P8: no rounds any more")
            await self._whole(watch, "P4: not whole any more")
        except ClusterError as error:
            return healed_s, str(error)
        return healed_s, None


async def ended(task: asyncio.Task[None]) -> None:
    """Ends it. Raises what it has failed with. Whoever is cancelled meanwhile stays so."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def newest(watch: Watch) -> int:
    """The last round that was opened."""
    return max(watch.thetas, default=0)


async def until(why_not: Callable[[], str | None], within_s: float, what: str) -> None:
    """Until there is no reason any more why not; ClusterError with the last one where there is, after so many seconds."""
    deadline = time.monotonic() + within_s
    while (reason := why_not()) is not None:
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} within {within_s:.0f} s: {reason}")
        await asyncio.sleep(LOOK_S)
