"""The faults of a plan, done to a cluster at their times, and the story of what was really done."""

from __future__ import annotations

import asyncio
import signal
import time

from scripts.chaos_run.cluster import ChaosCluster
from scripts.chaos_run.plan import Fault
from scripts.hosts import Network
from scripts.life_line import send


class Injection:
    """Strikes `cluster` as the plan says. A victim that is not running at its time is passed over, and that is told."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self._began = 0.0
        self._ends: list[asyncio.Task[None]] = []
        self._parted: asyncio.Task[None] | None = None
        self.done: list[Fault] = []
        self.story: list[str] = []

    async def run(self, plan: list[Fault]) -> None:
        """Until the last fault is over."""
        self._began = time.monotonic()
        for fault in plan:
            await asyncio.sleep(max(0.0, self._began + fault.at_s - time.monotonic()))
            if fault.kind == "partition":
                await self._part(fault)
            else:
                self._signal(fault)
        await asyncio.gather(*self._ends)

    def tell(self, what: str) -> None:
        """A line of the story."""
        self.story.append(f"{time.monotonic() - self._began:8.2f} s  {what}")

    def _signal(self, fault: Fault) -> None:
        pid = self._running(fault.victim)
        if pid is None:
            self.tell(f"{fault.victim} is not running: passed over")
            return
        number = signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP
        send(pid, number)
        self.done.append(fault)
        lasts = f" for {fault.lasts_s:.2f} s" if fault.lasts_s else ""
        self.tell(f"{number.name} to {fault.victim} (pid {pid}){lasts}")
        if number == signal.SIGSTOP:
            self._ends.append(asyncio.create_task(self._wake(fault, pid)))

    def _running(self, name: str) -> int | None:
        """The process of this name. None for one that has ended, whose number may be anybody's by now."""
        pid = self._cluster.pids().get(name)
        return pid if pid in self._cluster.processes() else None

    async def _wake(self, fault: Fault, pid: int) -> None:
        await asyncio.sleep(fault.lasts_s)
        if self._running(fault.victim) == pid:
            send(pid, signal.SIGCONT)
            self.tell(f"SIGCONT to {fault.victim} (pid {pid})")

    async def _part(self, fault: Fault) -> None:
        network = self._cluster.network
        assert isinstance(network, Network), "a plan for one machine has no partitions"
        if self._parted is not None:
            await self._parted  # on a busy machine the last one may have begun late
        self.done.append(fault)
        self.tell(f"partition: {fault.victim}, for {fault.lasts_s:.2f} s")
        for host, source in fault.cuts:
            await asyncio.to_thread(network.cut, host, source)
        self._parted = asyncio.create_task(self._heal(fault, network))
        self._ends.append(self._parted)

    async def _heal(self, fault: Fault, network: Network) -> None:
        await asyncio.sleep(fault.lasts_s)
        for host in sorted({host for host, _ in fault.cuts}):
            await asyncio.to_thread(network.heal, host)
        self.tell(f"healed: {fault.victim}")
