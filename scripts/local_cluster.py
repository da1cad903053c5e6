"""A cluster of real processes on this machine, through the two real commands: for the demo, the benchmarks and the end-to-end tests.

    async with LocalCluster(folder, agents=12, sources=9, ...) as cluster:
        await cluster.until(lambda status: status["round"] >= 3, within_s=20)
        cluster.kill("agent-3")

Ports are below 32768 and free when they are looked for. Everything that was started is stopped on leaving, by pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from protocol.aio.process import UserError
from protocol.aio.status_client import request_status
from protocol.identifiers import Address

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
CLUSTER = "fmrec"
ASK_TIMEOUT_S = 2.0
Status = dict[str, Any]


class ClusterError(Exception):
    """The cluster did not do in time what was asked of it; the message names the logs."""


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free now, below 32768 and above the defaults."""
    rng = Random(os.getpid() ^ time.monotonic_ns())
    for _ in range(200):
        first = rng.randrange(10000, 32000 - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, port))
        except OSError:
            continue
        return first
    raise ClusterError(f"no {count} free ports in a row below 32768")


class LocalCluster:
    """One manager and `agents` agents; logs and state under `folder`. manager_set, agent_set: further --set arguments."""

    def __init__(
        self,
        folder: Path,
        *,
        agents: int,
        sources: int,
        manager_set: Sequence[str] = (),
        agent_set: Sequence[str] = (),
        restart: bool = True,
        agents_on_disk: bool = False,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.agents = agents
        self._sources = sources
        self._manager_set = list(manager_set)
        self._agent_set = list(agent_set)
        self._restart = restart
        self._agents_on_disk = agents_on_disk
        first = free_ports(agents + 1)
        self.address = Address(HOST, first)
        self._agents_port = first + 1
        self.manager: subprocess.Popen[bytes] | None = None
        self.launcher: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> LocalCluster:
        self.start_manager()
        self.start_agents()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def _spawn(self, log: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)

    def start_manager(self) -> None:
        """`fmrec-manager serve`, again with the same state where it was killed."""
        sets = [part for item in self._manager_set for part in ("--set", item)]
        self.manager = self._spawn(
            "manager.log",
            [str(BIN / "fmrec-manager"), "serve", "--listen", str(self.address), "--state-dir", str(self.folder / "manager"), *sets],
        )

    def start_agents(self) -> None:
        """`fmrec-agent start --count N`."""
        sets = [part for item in (f"sources={self._sources}", f"port={self._agents_port}", *self._agent_set) for part in ("--set", item)]
        state = ["--state-dir", str(self.folder / "agents")] if self._agents_on_disk else []
        restart = ["--restart", "on-failure"] if self._restart else []
        self.launcher = self._spawn(
            "agents.log",
            [str(BIN / "fmrec-agent"), "start", "--count", str(self.agents), "--join", str(self.address), *state, *restart, *sets],
        )

    def stop(self) -> None:
        """Ask all to leave; after ten seconds, kill what is left. By pid, every one that was ever seen."""
        for process in (self.launcher, self.manager):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for pid in self._pids:
            if b"fmrec-agent" in _command(pid):
                os.kill(pid, signal.SIGKILL)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def document(self) -> Status | None:
        """The manager's whole status document; None while it does not answer."""
        try:
            return await request_status(self.address, CLUSTER, ASK_TIMEOUT_S)
        except UserError:
            return None

    async def status(self) -> Status | None:
        """The status of the tree `main`; None while the manager does not answer."""
        document = await self.document()
        if document is None:
            return None
        tree: Status = document["trees"]["main"]
        self._pids.update(member["pid"] for member in tree["members"])
        return tree

    async def agent(self, index: int) -> Status | None:
        """What agent `index` says of itself; None while it does not answer."""
        try:
            return await request_status(Address(HOST, self._agents_port + index), CLUSTER, ASK_TIMEOUT_S)
        except UserError:
            return None

    async def until(self, condition: Callable[[Status], bool], within_s: float, every_s: float = 0.02) -> Status:
        """The first status that fulfils the condition; ClusterError where none does in time or a process has ended."""
        deadline = time.monotonic() + within_s
        last: Status | None = None
        while time.monotonic() < deadline:
            status = await self.status()
            if status is not None:
                last = status
                if condition(status):
                    return status
            if self.launcher is not None and self.launcher.poll() is not None:
                raise ClusterError(f"the agents ended with code {self.launcher.returncode}: see {self.folder / 'agents.log'}")
            await asyncio.sleep(every_s)
        brief = {key: last[key] for key in ("stage", "round", "reason", "counts")} if last else "no answer"
        raise ClusterError(f"not within {within_s:.0f} s (last: {json.dumps(brief)}): see the logs in {self.folder}")

    async def pid(self, name: str) -> int:
        """The process of the agent of this name, as the manager knows it."""
        status = await self.until(lambda s: any(m["name"] == name for m in s["members"]), 10)
        return int(next(member["pid"] for member in status["members"] if member["name"] == name))

    async def signal_agent(self, name: str, number: signal.Signals) -> float:
        """Send the signal to the agent's process; the Unix time just before."""
        pid = await self.pid(name)
        when = time.time()
        os.kill(pid, number)
        return when

    def kill_manager(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.manager is not None
        self.manager.kill()
        self.manager.wait()

    def pss_mb(self) -> dict[str, float]:
        """Proportional set size in MiB of every process of the cluster, by role."""
        agents = sum(_pss_mb(pid) for pid in self._pids)
        return {
            "manager": _pss_mb(self.manager.pid) if self.manager else 0.0,
            "launcher": _pss_mb(self.launcher.pid) if self.launcher else 0.0,
            "agents": agents,
        }


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _pss_mb(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
