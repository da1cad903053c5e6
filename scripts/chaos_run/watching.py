"""What is seen of a run from outside while it goes on: status documents of managers and agents, and what the kernel says of processes.

Everything is asked again and again, each by a task of its own, so that one that is stopped or cut off delays no other. What is seen is kept
as the plain values that promises.py judges.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from protocol.aio.process import UserError
from protocol.aio.status_client import request_status
from protocol.identifiers import Address
from scripts.chaos_run.cluster import ChaosCluster
from scripts.chaos_run.promises import THETA_DIGITS, Life, Sample
from scripts.local_cluster import CLUSTER, Status, pss_mb

MANAGER_PERIOD_S, AGENT_PERIOD_S, PROCESS_PERIOD_S = 0.1, 0.4, 2.0
ANSWER_S = 1.0
STALE_S = AGENT_PERIOD_S + ANSWER_S
"""So long may what an agent last said be held for what it says now."""
ESTABLISHED = "01"
"""In the column `st` of /proc/PID/net/tcp."""
OPEN_STAGES = ("train", "done")
"""Stages in which theta's digest and the round that it is for belong together: it is committed."""


class Watch:
    """Watches a cluster from start() to close()."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self._tasks: list[asyncio.Task[None]] = []
        self.began = time.monotonic()
        self.status: dict[str, Status | None] = dict.fromkeys(cluster.managers)
        """Of the tree, as each manager says now; None where it does not answer, or does not root it."""
        self.agents: dict[str, Status | None] = dict.fromkeys(cluster.addresses)
        self.thetas: dict[int, set[str]] = {}
        self.lives: dict[str, dict[int, Life]] = {name: {} for name in cluster.addresses}
        """By agent and incarnation."""
        self.samples: list[Sample] = []

    def start(self) -> None:
        for name, manager in self._cluster.managers.items():
            self._tasks.append(asyncio.create_task(self._watch_manager(name, manager.address)))
        for name, address in self._cluster.addresses.items():
            self._tasks.append(asyncio.create_task(self._watch_agent(name, address)))
        self._tasks.append(asyncio.create_task(self._watch_processes()))

    async def close(self) -> None:
        """Stop watching. Raises what a watching task has failed with."""
        failed = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in failed:
            task.result()

    def forget(self) -> None:
        """What all last said, so that what is judged from here on was said later, but for answers that are under way."""
        self.status = dict.fromkeys(self.status)
        self.agents = dict.fromkeys(self.agents)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began

    def root(self) -> Status | None:
        """What the manager that roots the tree says; None while none does."""
        rooted = [status for status in self.status.values() if status is not None]
        return max(rooted, key=lambda status: int(status["version"]), default=None)

    # --- tasks --------------------------------------------------------------------------------------------------------

    async def _watch_manager(self, name: str, address: Address) -> None:
        while True:
            document = await _ask(address)
            tree = document["trees"].get("main") if document is not None else None
            self.status[name] = tree
            if tree is not None and tree["stage"] in OPEN_STAGES:
                self.thetas.setdefault(tree["round"], set()).add(tree["theta_digest"][:THETA_DIGITS])
            await asyncio.sleep(MANAGER_PERIOD_S)

    async def _watch_agent(self, name: str, address: Address) -> None:
        while True:
            seen = await _ask(address)
            self.agents[name] = seen
            if seen is not None:
                life = self.lives[name].setdefault(seen["incarnation"], Life(seen["incarnation"]))
                life.see(seen, self.now_s)
            await asyncio.sleep(AGENT_PERIOD_S)

    async def _watch_processes(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(PROCESS_PERIOD_S)

    def sample(self) -> None:
        """What the kernel says of every process, once."""
        for name, pid in self._cluster.pids().items():
            with contextlib.suppress(OSError):  # it has just died
                connections, others, what = _descriptors(pid)
                if size_mb := pss_mb(pid, "Pss_Anon"):  # 0: it has just died, as above
                    self.samples.append(Sample(name, pid, self.now_s, connections, others, size_mb, what))


async def _ask(address: Address) -> dict[str, Any] | None:
    try:
        return await request_status(address, CLUSTER, ANSWER_S)
    except UserError:
        return None


def _descriptors(pid: int) -> tuple[int, int, str]:
    """Of this process: the sockets whose connection is established, all its other descriptors, and these by kind."""
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    states = {f"socket:[{row[9]}]": row[3] for row in rows}
    kinds: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it has just been closed
            held = os.readlink(descriptor)
            kinds[f"TCP in state {states[held]}" if held in states else held.partition(":")[0]] += 1
    connected = kinds.pop(f"TCP in state {ESTABLISHED}", 0)
    return connected, kinds.total(), ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
