"""The cluster that chaos strikes: two managers and the agents on several hosts, all through the two real commands.

    host 1   manager-a, agents host-1-0, host-1-1, ...      manager-a begins the tree, manager-b stands by
    host 2   manager-b, agents host-2-0, ...                whichever ended is started again as a standby of the other, with its disk
    host 3   agents host-3-0, ...                           agents of odd hosts have no disk: what a dead one knew is on others alone
    ...

Agents are restarted by their launcher, one on each host, whose log names the process of each agent; the managers by us, as a supervisor
would do (ARCHITECTURE.md). A manager's exit code other than SIGKILL's is a fault of FMRec's: who is superseded stands by.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.identifiers import Address
from scripts.hosts import Network, OneMachine
from scripts.life_line import send
from scripts.local_cluster import LocalCluster

MANAGERS = {"manager-a": 1, "manager-b": 2}
"""And the host of each."""
LOOK_S = 0.1
READY = re.compile(r"^(\S+) +(?:source|target) +[0-9a-f]{32} +(\d+) +\d+$", re.MULTILINE)
RESTARTED = re.compile(r"(\S+) \(pid \d+\) .*; started again as pid (\d+)$", re.MULTILINE)


@dataclass(slots=True)
class Manager:
    """One of the two. lives: how often it was started."""

    name: str
    host: int
    address: Address
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0


class ChaosCluster(LocalCluster):
    """`agents` sources, spread evenly over the network's hosts. with_standby False: manager-a alone, for a run that nothing disturbs."""

    def __init__(
        self,
        folder: Path,
        network: Network | OneMachine,
        agents: int,
        *,
        manager_set: Sequence[str],
        agent_set: Sequence[str],
        with_standby: bool = True,
    ) -> None:
        super().__init__(folder, agents=agents, sources=agents, manager_set=manager_set, agent_set=agent_set, abrupt=True)
        self.network = network
        self._host = 1  # where spawn() starts its process
        ports = (self.address.port, self.other_address.port)
        kept = list(MANAGERS.items())[: 2 if with_standby else 1]
        self.managers = {
            name: Manager(name, host, Address(network.address(host), port)) for (name, host), port in zip(kept, ports, strict=False)
        }
        self.launchers: dict[int, subprocess.Popen[bytes]] = {}
        self.addresses = {
            name: Address(network.address(host), self._agents_port + place)
            for place, (name, host) in enumerate(places(agents, network.hosts).items())
        }
        """Of the agents, by name."""
        self.odd_ends: list[str] = []
        """Of processes that ended in a way in which they should not."""
        self._read: dict[str, int] = {}
        self._pids: dict[str, int] = {}

    def spawn(self, log: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """As LocalCluster's, on the host whose turn it is."""
        start = super().spawn
        return self.network.on(self._host, lambda: start(log, arguments))

    async def __aexit__(self, *_: Any) -> None:
        """Whatever did not leave() is killed."""
        self.stop()

    def _seeds(self, but: Address | None = None) -> list[str]:
        firsts = {address.host: address for address in reversed(self.addresses.values())}
        known = [*(manager.address for manager in self.managers.values()), *firsts.values()]
        return [part for address in known if address != but for part in ("--join", str(address))]

    def start(self) -> None:
        """Both managers, then the agents."""
        for name in self.managers:
            self.start_one(name)
        self.start_agents()

    def start_one(self, name: str) -> None:
        """The manager of this name: manager-a's first life begins the tree, every other one watches."""
        manager = self.managers[name]
        self._host = manager.host
        begins = manager.lives == 0 and name == next(iter(self.managers))
        watching = [] if begins else ["--standby", *self._seeds(manager.address)]
        manager.process = self._spawn_manager(name, "--listen", str(manager.address), *watching)
        manager.lives += 1

    def start_agents(self) -> None:
        """`fmrec-agent start --count N` on every host."""
        all_of_them = places(self.agents, self.network.hosts)
        for host in sorted(set(all_of_them.values())):
            self._host = host
            names = [name for name, where in all_of_them.items() if where == host]
            # The launcher numbers them, where there are several.
            name = names[0] if len(names) == 1 else f"host-{host}"
            own = (f"host={self.network.address(host)}", f"port={self.addresses[names[0]].port}", f"name={name}", *self._agent_set)
            sets = [part for item in own for part in ("--set", item)]
            state = ["--state-dir", str(self.folder / f"agents-{host}")] if on_disk(host) else []
            many = ["--count", str(len(names)), "--restart", "on-failure", *self._seeds(), *state]
            self.launchers[host] = self.spawn(f"agents-{host}.log", ["fmrec-agent", "start", *many, *sets])

    # --- processes ----------------------------------------------------------------------------------------------------

    def restart_ended(self) -> list[str]:
        """Start each manager again that has ended; their names. How it ended is noted where it should not have."""
        again = []
        for manager in self.managers.values():
            code = manager.process.poll() if manager.process is not None else None
            if code is None:
                continue
            if code != -signal.SIGKILL:
                self.odd_ends.append(f"{manager.name} ended with exit code {code}")
            self.start_one(manager.name)
            again.append(manager.name)
        return again

    def pids(self) -> dict[str, int]:
        """The process of every manager, launcher and agent by name, as far as it is known."""
        for host in self.launchers:
            self._pids |= self._added_to(f"agents-{host}.log")
        managers = {m.name: m.process.pid for m in self.managers.values() if m.process is not None and m.process.poll() is None}
        launchers = {f"launcher-{host}": process.pid for host, process in self.launchers.items() if process.poll() is None}
        return self._pids | managers | launchers

    async def leave(self, agents_s: float, managers_s: float) -> list[str]:
        """Ask all to leave, the agents first, through their launchers; which processes have not ended within so many seconds.

        How managers and launchers ended is noted where it was not with 0: nobody kills them any more.
        """
        names = self.pids()
        late = []
        for group, within_s in (("launcher", agents_s), ("manager", managers_s)):
            asked = {name: pid for name, pid in names.items() if name.startswith(group)}
            awaited = {name: pid for name, pid in names.items() if name.startswith("manager") == (group == "manager")}
            for pid in asked.values():
                send(pid, signal.SIGTERM)
            left = await self._ended(set(awaited.values()), within_s)
            late += sorted(f"{name} (pid {pid})" for name, pid in awaited.items() if pid in left)
        ours = {manager.name: manager.process for manager in self.managers.values()}
        for name, process in (ours | {f"launcher-{host}": process for host, process in self.launchers.items()}).items():
            if process is not None and process.poll():
                self.odd_ends.append(f"{name} ended with exit code {process.returncode}")
        return late

    async def _ended(self, pids: set[int], within_s: float) -> set[int]:
        """Which of these processes have not ended within so many seconds."""
        deadline = time.monotonic() + within_s
        while left := pids & set(self.processes()):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_S)
        return left

    def _added_to(self, log: str) -> dict[str, int]:
        """The processes that a launcher's log has named since the last look."""
        path = self.folder / log
        with path.open("rb") as file:
            file.seek(self._read.get(log, 0))
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read[log] = self._read.get(log, 0) + len(whole)
        return named_in(whole.decode(errors="replace"))


def named_in(log: str) -> dict[str, int]:
    """The newest process of each agent that these lines of a launcher's log name."""
    found = [(match.start(), match[1], int(match[2])) for pattern in (READY, RESTARTED) for match in pattern.finditer(log)]
    return {name: pid for _, name, pid in sorted(found)}


def places(agents: int, hosts: Sequence[int]) -> dict[str, int]:
    """So many agents by name, and the host of each: as many on one as on another, or one more."""
    counts = [agents // len(hosts) + (place < agents % len(hosts)) for place in range(len(hosts))]
    return {f"host-{host}-{index}": host for host, count in zip(hosts, counts, strict=True) for index in range(count)}


def on_disk(host: int) -> bool:
    """Have this host's agents a disk?"""
    return host % 2 == 0
