"""One cluster of real processes whose agents keep records of a chosen size, and what is done to it and timed.

    detect      from the signal to the manager's verdict
    locate      until it is known who holds the newest record
    transfer    until its bytes are at the manager, every digest checked
    kill, stop  all of it: from SIGKILL or SIGSTOP to the verified record at the manager
    resumed     from SIGKILL until the agent's next life, which has its record, begins its first iteration
    restart     until it has done it

The manager's clock tells detect, locate and transfer, the agent's when its next life first iterates: both are asked only every
RECOVERED_WATCH_S while something is being recovered, for to answer takes their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from protocol.parameters import loopback
from scripts.life_line import send
from scripts.local_cluster import ClusterError, LocalCluster, Status

AGENTS = 12
ROUND = 400
"""Iterations of a job: the paper's."""
BATCH = 8
WITHIN_S = 60.0
WATCH_S = 0.01
RECOVERED_WATCH_S = 0.1
FIRST_ITERATION = {"resumed": "began", "restart": "iterated"}
REPLACED_MAX_S = 6.0
"""Of 100 MB by the longest that a transfer may take it would be half a minute."""

Figures = dict[str, Any]


def learner_of(size_mb: str) -> str:
    """The plug-in whose state has this size."""
    return f"scripts.recovery_bench.forecaster:mb_{size_mb.replace('.', '_')}"


@contextlib.contextmanager
def importable(root: Path) -> Iterator[None]:
    """Meanwhile processes that are started can import this repository's scripts."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def is_worth_a_signal(agent: Status, recoveries: Iterable[Status]) -> bool:
    """In the middle of a job, with a durable record that is newer than the one it was resumed from and than every one that the manager has
    fetched of it: those the manager holds already, and another recovery of them would move nothing."""
    fetched = [recovery["version"] or 0 for recovery in recoveries if recovery["agent"] == agent["name"]]
    resumed = agent["resumed_from"]["version"] if agent["resumed_from"] else 0
    return bool(agent["durable_version"] > max([resumed, *fetched]) and 0 < agent["job"]["done"] < agent["job"]["total"])


def checked(recovery: Status, before: Status) -> Status:
    """The recovery; ClusterError where it has lost what this agent had called durable."""
    if recovery["outcome"] != "verified" or recovery["version"] < before["durable_version"]:
        found = f"{recovery['outcome']}, version {recovery['version']}"
        raise ClusterError(f"{before['name']} had version {before['durable_version']} durable, and the recovery of it ended so: {found}")
    return recovery


class Fleet:
    """A manager and AGENTS agents in mode exact, of which the first `training` train without end."""

    def __init__(
        self,
        folder: Path,
        size_mb: str,
        *,
        training: int,
        checkpoint_every: int = 50,
        batch: int = BATCH,
        round_of: int = ROUND,
        **options: Any,
    ) -> None:
        self.training = training
        self.cluster = LocalCluster(
            folder,
            agents=AGENTS,
            sources=training,
            manager_set=[
                "tree.main.rounds=1000000",
                f"tree.main.sources_min={training}",
                f"tree.main.targets_min={AGENTS - training}",
                "tree.main.round_deadline_s=3600",
                "tree.main.exact_wait_s=3600",
            ],
            agent_set=[
                f"learning.learner={learner_of(size_mb)}",
                f"learning.iterations_per_round={round_of}",
                f"learning.batch={batch}",
                f"checkpoint_every={checkpoint_every}",
                "restarts_max=1000",
            ],
            abrupt=True,
            **options,
        )
        limits = loopback()
        replaced_s = limits.verdict_max_s + limits.mend_after_s + limits.transfer_timeout_s(int(1e6 * float(size_mb)))
        self._replaced_s = min(REPLACED_MAX_S, replaced_s)
        """One failure at a time: the next comes when the copies that the last has cost are in other places."""
        self._victims = cycle(range(training))
        self._rng = Random(size_mb)

    async def __aenter__(self) -> Fleet:
        await self.cluster.__aenter__()
        try:
            await self.cluster.until(lambda status: status["stage"] == "train", WITHIN_S)
        except BaseException as error:
            await self.cluster.__aexit__(None, error, None)
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.cluster.__aexit__(kind, error, trace)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def durable(self) -> None:
        """Until the quorum holds a record of every agent that trains."""
        deadline = time.monotonic() + WITHIN_S
        while any(agent["durable_version"] == 0 for agent in await self.agents()):
            if time.monotonic() > deadline:
                raise ClusterError(f"not every agent had a durable record within {WITHIN_S:.0f} s: see the logs in {self.cluster.folder}")
            await asyncio.sleep(10 * WATCH_S)

    async def agents(self) -> list[Status]:
        """What all agents that train say of themselves; waits for those that are starting."""
        found = [await self.cluster.agent(index) for index in range(self.training)]
        while None in found:
            await asyncio.sleep(WATCH_S)
            found = [agent or await self.cluster.agent(index) for index, agent in enumerate(found)]
        return [agent for agent in found if agent is not None]

    async def iterated(self, seconds: float) -> tuple[int, float]:
        """Iterations of all agents in about so much time, and the time that it was; nobody is killed meanwhile."""
        before, began = await self.agents(), time.monotonic()
        await asyncio.sleep(seconds)
        after, took_s = await self.agents(), time.monotonic() - began
        return sum(agent["iteration"] for agent in after) - sum(agent["iteration"] for agent in before), took_s

    # --- trials -------------------------------------------------------------------------------------------------------

    async def trial(self, number: signal.Signals, period_s: float) -> Figures:
        """One agent, killed or hung at work, until it trains again. They take turns, so that the others make their next records meanwhile.

        period_s: between two checkpoints of an agent; a moment is drawn from it, so that no part of it is preferred.
        """
        index = next(self._victims)
        began = time.monotonic()
        await asyncio.sleep(self._rng.uniform(0, period_s))
        before = await self._at_work(index, WITHIN_S + 2 * period_s)
        waited_s = time.monotonic() - began
        when = time.time()
        os.kill(before["pid"], number)
        again = asyncio.create_task(self._again(index, before, when)) if number == signal.SIGKILL else None
        recovery = checked(await self._recovered(before, when), before)
        if number == signal.SIGSTOP:
            send(before["pid"], signal.SIGCONT)
        detect_ms = 1000 * (recovery["noticed_unix_s"] - when)
        figures = {
            "agent": before["name"],
            "waited_s": waited_s,
            "durable_version": before["durable_version"],
            "version": recovery["version"],
            "holder": recovery["holder"],
            "outcome": recovery["outcome"],
            "bytes": recovery["bytes"],
            "detect_ms": detect_ms,
            "locate_ms": recovery["locate_ms"],
            "transfer_ms": recovery["transfer_ms"],
            "total_ms": detect_ms + recovery["total_ms"],
            **(await again if again is not None else {}),
        }
        await self.cluster.until(lambda status: status["counts"]["alive"] == AGENTS, WITHIN_S)
        await asyncio.sleep(self._replaced_s)
        return figures

    async def _at_work(self, index: int, within_s: float) -> Status:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            agent, tree = await self.cluster.agent(index), await self.cluster.status()
            if agent and tree and is_worth_a_signal(agent, tree["recoveries"]):
                return agent
            await asyncio.sleep(WATCH_S)
        raise ClusterError(f"agent-{index} was not met with a new record in the middle of a job within {within_s:.0f} s")

    async def _recovered(self, before: Status, when: float) -> Figures:
        """The recovery that the signal at this Unix time has led to. A life that hung has had others, and one that was slow may have."""
        life = before["name"], before["incarnation"]

        def ended(status: Status) -> Figures | None:
            recoveries = (r for r in reversed(status["recoveries"]) if r["outcome"] != "running" and r["noticed_unix_s"] >= when)
            return next((r for r in recoveries if (r["agent"], r["incarnation"]) == life), None)

        await asyncio.sleep(RECOVERED_WATCH_S)
        return ended(await self.cluster.until(lambda status: ended(status) is not None, WITHIN_S, RECOVERED_WATCH_S)) or {}

    async def _again(self, index: int, before: Status, when: float) -> Figures:
        """Milliseconds until the next life was at, and had done, an iteration that its record did not hold."""
        while time.time() < when + WITHIN_S:
            await asyncio.sleep(RECOVERED_WATCH_S)
            agent = await self.cluster.agent(index)
            resumed = agent["resumed_from"] if agent and agent["incarnation"] > before["incarnation"] else None
            if agent and resumed is not None and agent["iteration"] > resumed["iteration"]:
                return {f"{name}_ms": 1000 * (agent[f"first_{what}_unix_s"] - when) for name, what in FIRST_ITERATION.items()}
        raise ClusterError(f"{before['name']} did not train again within {WITHIN_S:.0f} s")
