"""What the stories share: one small run of real processes, the moments that they wait for, and the figures that they read.

Every story is the same run (seed, members, rounds), so that in mode exact every story must end with the same theta.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.local_cluster import ClusterError, LocalCluster, Status

AGENTS, SOURCES, ROUNDS = 6, 5, 10
TARGET = "agent-5"
RECOVERED_WITHIN_S = 2.0
"""Generous: how fast it is, the benchmark says (scripts/bench_recovery.py)."""
POLL_S = 0.005
STORY_S = 60.0
"""What waits longer hangs: a story takes about 10 s on a quiet machine of two cores."""
MANAGER_SET = (f"tree.main.rounds={ROUNDS}", f"tree.main.sources_min={SOURCES}", f"tree.main.targets_min={AGENTS - SOURCES}")
AGENT_SET = (
    "learning.iterations_per_round=20",
    "learning.batch=8",
    "learning.adapt_iterations=60",
    "learning.adapt_batch=32",
    "checkpoint_every=10",
)


def story(folder: Path, *, manager_set: Sequence[str] = (), agent_set: Sequence[str] = (), **options: Any) -> LocalCluster:
    """The run that all stories are about, disturbed by nobody yet."""
    sets = {"manager_set": [*MANAGER_SET, *manager_set], "agent_set": [*AGENT_SET, *agent_set]}
    return LocalCluster(folder, agents=AGENTS, sources=SOURCES, abrupt=True, **sets, **options)


def index_of(name: str) -> int:
    """The number in an agent's name."""
    return int(name.rsplit("-", 1)[1])


async def in_a_job(cluster: LocalCluster, name: str, from_round: int, durable_version: int = 0) -> Status:
    """The agent's status in the middle of a job: iterations done, and some to come, of this round or a later one.

    durable_version: and the quorum holds this version of its record, or a newer one.
    """
    deadline = time.monotonic() + STORY_S
    while time.monotonic() < deadline:
        agent = await cluster.agent(index_of(name))
        at_work = agent is not None and 0 < agent["job"]["done"] < agent["job"]["total"]
        if agent is not None and at_work and agent["round"] >= from_round and agent["durable_version"] >= durable_version:
            return agent
        await asyncio.sleep(POLL_S)
    raise ClusterError(f"{name} was not met in a job from round {from_round} on")


async def the_end(cluster: LocalCluster) -> Status:
    """The status once all rounds are done and no recovery is under way."""
    return await cluster.until(
        lambda status: status["phase"] == "done" and all(recovery["outcome"] != "running" for recovery in status["recoveries"]), STORY_S
    )


def recovery_of(status: Status, life: Status) -> dict[str, Any]:
    """The recovery of the life that this agent's status was taken in."""
    (found,) = [r for r in status["recoveries"] if (r["agent"], r["incarnation"]) == (life["name"], life["incarnation"])]
    return dict(found)


def member(status: Status, name: str) -> dict[str, Any]:
    """What the manager says of this member."""
    return dict(next(member for member in status["members"] if member["name"] == name))
