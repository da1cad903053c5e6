"""One run of real processes with SIGKILL where it is asked for, and what was seen of it.

A run is the two real commands (scripts/local_cluster.py). Each kill waits for its moment by the victim's own status. Times are the
manager's own clock, `elapsed_s`, read at the first sight of a change: late by one look, LOOK_S, at most.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
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
    and once a quorum holds version `durable` of its record.

    spared: the moment is waited for in the same way, and passes. Looking costs the agent time, half a millisecond each: so what it is
    compared with pays it too.
    """

    agent: str
    phase: Literal["train", "adapt"]
    round: int = 0
    done: int = 1
    durable: int = 0
    spared: bool = False

    def due(self, agent: Status) -> bool:
        """Is this status, the agent's own, of that moment?"""
        job = agent["job"]
        met = agent["phase"] == self.phase and agent["round"] >= self.round and self.done <= job["done"] < job["total"]
        return bool(met and agent["durable_version"] >= self.durable)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs. manager, agent: the commands' --set arguments. restart False: a killed agent is not started again. timed: the agent whose
    CPU time is counted."""

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

    @property
    def adaptation_s(self) -> float:
        """From the order to adapt to the last target's upload."""
        assert self.adapting is not None
        return float(self.final["elapsed_s"]) - self.adapting

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
        killing = [asyncio.create_task(_kill(cluster, kill, seen, plan.timed)) for kill in plan.kills]

        def ended(status: Status) -> bool:
            _look(seen, status)
            if lost and all(task.done() for task in killing):
                return len(status["results"]) == plan.agents - plan.sources - len(lost)
            return bool(status["phase"] == "done" and all(recovery["outcome"] != "running" for recovery in status["recoveries"]))

        seen.final = await cluster.until(ended, RUN_S, LOOK_S)
        if not all(task.done() for task in killing):
            for task in killing:
                task.cancel()
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


async def _kill(cluster: LocalCluster, kill: Kill, seen: Seen, timed: str | None) -> None:
    while True:
        agent = await cluster.agent(index_of(kill.agent))
        if agent is not None and kill.due(agent):
            if kill.spared:
                return
            seen.cpu_s += cpu_s(agent["pid"]) if kill.agent == timed else 0.0
            await cluster.signal_agent(kill.agent, signal.SIGKILL)
            seen.lives.append(agent)
            return
        await asyncio.sleep(LOOK_S)


def cpu_s(pid: int) -> float:
    """CPU time of this process so far, user and system, seconds."""
    # After the command's name, which may hold anything but ends at the last bracket, these are the 12th and 13th.
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
