"""One run of real processes with SIGKILL where it is asked for, and what was seen of it.

A run is the two real commands (scripts/local_cluster.py). Each kill waits for its moment by the victim's own status. Times are the
manager's own clock, `elapsed_s`, read at the first sight of a change: late by one look, LOOK_S, at most.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from scripts.demo import index_of
from scripts.local_cluster import ClusterError, LocalCluster, Status

LOOK_S = 0.02
RUN_S = 580.0
"""The longest that a run may take."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to this agent in a job of this phase, of this round or a later one: after `done` of its iterations, before its last one,
    and once a quorum holds version `durable` of its record."""

    agent: str
    phase: Literal["train", "adapt"]
    round: int = 0
    done: int = 1
    durable: int = 0

    def due(self, agent: Status) -> bool:
        """Is this status, the agent's own, of that moment?"""
        job = agent["job"]
        met = agent["phase"] == self.phase and agent["round"] >= self.round and self.done <= job["done"] < job["total"]
        return bool(met and agent["durable_version"] >= self.durable)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs. manager, agent: the commands' --set arguments. restart False: a killed agent is not started again. timed: the agent whose
    CPU time and iterations are counted: it is looked at all the time, killed or not, for each look costs it half a millisecond."""

    agents: int
    sources: int
    manager: tuple[str, ...]
    agent: tuple[str, ...]
    kills: tuple[Kill, ...] = ()
    restart: bool = True
    timed: str | None = None


@dataclass(slots=True)
class Seen:
    """What was seen. final: the manager's last status. lives: the last status of each killed life; resumed: where the next one began, in
    iterations, None without a record. commits: when each round was first seen committed, adapting: the targets' phase, seconds."""

    final: Status = field(default_factory=dict)
    lives: list[Status] = field(default_factory=list)
    resumed: list[int | None] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    adapting: float | None = None
    cpu_s: float = 0.0
    """Of the agent that is timed, through all its lives."""
    sights: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Of the agent that is timed, by life (its pid): when a number of iterations of its adaptation was seen done first, and the number."""

    @property
    def adaptation_s(self) -> float:
        """From the order to adapt to the last target's upload."""
        assert self.adapting is not None
        return float(self.final["elapsed_s"]) - self.adapting

    @property
    def beside_iterations_s(self) -> float:
        """How much longer the adaptation took than its iterations at the pace of this very run: the wait for a new life, what that did
        again, the beginning and the end. A machine that is slow for a while slows both, so this is told to a look or two. What slows
        iterations for another reason is not in it. ClusterError where looks were too few to tell a pace."""
        # At a life's first sight its first iteration may not have begun.
        spans = [(sights[-1][0] - sights[1][0], sights[-1][1] - sights[1][1]) for sights in self.sights.values() if len(sights) > 2]
        if not spans:
            raise ClusterError("no life of the agent that is timed was seen at three iterations: it has too few of them to tell a pace")
        pace_s = sum(seconds for seconds, _ in spans) / sum(iterations for _, iterations in spans)
        return self.adaptation_s - pace_s * max(done for sights in self.sights.values() for _, done in sights)

    @property
    def rmse_pp(self) -> dict[str, float]:
        """Each target's RMSE, by name; a target that was lost is not there."""
        return {name: result["rmse_pp"] for name, result in self.final["results"].items()}

    def iterations_again(self) -> list[int]:
        """For each killed life the iterations that its successor did again."""
        return [
            life["job"]["done"] if resumed is None else max(0, life["iteration"] - resumed)
            for life, resumed in zip(self.lives, self.resumed, strict=True)
        ]

    def seconds_lost(self) -> float:
        """By the rounds in which agents were killed, beside the median of the others."""
        took = [end - begin for begin, end in zip([0.0, *self.commits], self.commits, strict=False)]
        hit = {life["round"] for life in self.lives}
        usual = median(seconds for number, seconds in enumerate(took) if number not in hit)
        return sum(took[number] - usual for number in hit)


async def run(folder: Path, plan: Plan) -> Seen:
    """The whole run; its logs are in `folder`. ClusterError where it does not end, or a kill never met its moment."""
    shutil.rmtree(folder, ignore_errors=True)
    seen = Seen()
    sets = {"manager_set": list(plan.manager), "agent_set": list(plan.agent)}
    lost = set() if plan.restart else {kill.agent for kill in plan.kills}
    async with LocalCluster(folder, agents=plan.agents, sources=plan.sources, restart=plan.restart, abrupt=True, **sets) as cluster:
        by_agent = {kill.agent: [each for each in plan.kills if each.agent == kill.agent] for kill in plan.kills}
        watched = {**({plan.timed: []} if plan.timed is not None else {}), **by_agent}
        watching = [asyncio.create_task(_watch(cluster, agent, kills, seen, plan.timed)) for agent, kills in watched.items()]

        def ended(status: Status) -> bool:
            _look(seen, status)
            if lost and len(seen.lives) == len(plan.kills):
                return len(status["results"]) == plan.agents - plan.sources - len(lost)
            return bool(status["phase"] == "done" and all(recovery["outcome"] != "running" for recovery in status["recoveries"]))

        try:
            seen.final = await cluster.until(ended, RUN_S, LOOK_S)
        finally:
            for task in watching:
                task.cancel()
            ends = await asyncio.gather(*watching, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        if len(seen.lives) < len(plan.kills):
            raise ClusterError(f"the run in {folder} ended before every agent that was to be killed had met its moment")
        for life in seen.lives:
            again = await cluster.agent(index_of(life["name"])) if plan.restart else None
            seen.resumed.append(again["resumed_from"]["iteration"] if again and again["resumed_from"] else None)
        if plan.timed is not None:
            seen.cpu_s += cpu_s(await cluster.pid(plan.timed))
    return seen


def _look(seen: Seen, status: Status) -> None:
    """Keep when things changed."""
    while len(seen.commits) < len(status["losses"]):
        seen.commits.append(status["elapsed_s"])
    if seen.adapting is None and status["phase"] in ("adapt", "done"):
        seen.adapting = status["elapsed_s"]


async def _watch(cluster: LocalCluster, agent: str, kills: list[Kill], seen: Seen, timed: str | None) -> None:
    """Look at the agent until nothing is left to see, and kill it in its moments."""
    waiting = list(kills)
    while waiting or agent == timed:
        status = await cluster.agent(index_of(agent))
        if status is not None and agent == timed and status["phase"] == "adapt":
            sights, done = seen.sights.setdefault(status["pid"], []), status["job"]["done"]
            if not sights or sights[-1][1] < done:
                sights.append((time.monotonic(), done))
        if status is not None and waiting and waiting[0].due(status):
            waiting.pop(0)
            seen.cpu_s += cpu_s(status["pid"]) if agent == timed else 0.0
            await cluster.signal_agent(agent, signal.SIGKILL)
            seen.lives.append(status)
        await asyncio.sleep(LOOK_S)


def cpu_s(pid: int) -> float:
    """CPU time of this process so far, user and system, seconds."""
    # After the command's name, which may hold anything but ends at the last bracket, these are the 12th and 13th.
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
