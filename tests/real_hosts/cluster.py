"""A cluster on real hosts: the manager on host 1 and two agents on every host, through the two real commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from protocol.aio.process import UserError
from protocol.aio.status_client import request_status
from protocol.identifiers import Address
from scripts.hosts import Network, inside
from scripts.local_cluster import ASK_TIMEOUT_S, BIN, CLUSTER, LocalCluster, Status, plain_environment

AGENTS_PER_HOST = 2
MANAGER_PORT, AGENT_PORT = 7700, 7710
MANAGER_HOST = 1


class HostsCluster(LocalCluster):
    """All agents are sources but the last, which is the one target. They are host-<n>-<0 or 1>."""

    def __init__(self, folder: Path, network: Network, *, manager_set: Sequence[str] = (), agent_set: Sequence[str] = ()) -> None:
        agents = AGENTS_PER_HOST * len(network.hosts)
        sets = {"manager_set": manager_set, "agent_set": agent_set}
        super().__init__(folder, agents=agents, sources=agents - 1, restart=False, abrupt=True, **sets)  # type: ignore[arg-type]
        self.network = network
        self.address = Address(network.address(MANAGER_HOST), MANAGER_PORT)
        self._host = MANAGER_HOST  # where spawn() starts its process

    def spawn(self, log: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """As LocalCluster's, on the host whose turn it is."""
        start = super().spawn
        return self.network.on(self._host, lambda: start(log, arguments))

    def start_agents(self) -> None:
        """`fmrec-agent start --count 2` on every host."""
        for host in self.network.hosts:
            self._host = host
            sources = AGENTS_PER_HOST - (host == self.network.hosts[-1])
            own = (f"host={self.network.address(host)}", f"port={AGENT_PORT}", f"name=host-{host}", f"sources={sources}")
            sets = [part for item in (*own, *self._agent_set) for part in ("--set", item)]
            self.spawn(
                f"agents-{host}.log", ["fmrec-agent", "start", "--count", str(AGENTS_PER_HOST), "--join", str(self.address), *sets]
            )
        self._host = MANAGER_HOST

    async def document(self) -> Status | None:
        """Asked from the switch, which no fault of a host's cuts off from the others."""
        ask = request_status(self.address, CLUSTER, ASK_TIMEOUT_S)
        try:
            return await asyncio.to_thread(inside, self.network.switch, partial(asyncio.run, ask))
        except UserError:
            return None

    def status_command(self) -> Status:
        """What `fmrec-manager status --format json` prints on the manager's host."""
        command = [str(BIN / "fmrec-manager"), "status", "--at", str(self.address), "--format", "json"]
        done = inside(
            self.network.namespace(MANAGER_HOST),
            lambda: subprocess.run(command, capture_output=True, check=True, timeout=20, env=plain_environment()),
        )
        tree: Status = json.loads(done.stdout)["trees"]["main"]
        return tree

    async def neighbours(self) -> dict[str, int]:
        """How many each agent has in its leaf set, as it says itself; those that answer."""
        found: dict[str, int] = {}
        for host in self.network.hosts:
            for index in range(AGENTS_PER_HOST):
                ask = request_status(Address(self.network.address(host), AGENT_PORT + index), CLUSTER, ASK_TIMEOUT_S)
                with contextlib.suppress(UserError):
                    agent = await asyncio.to_thread(inside, self.network.switch, partial(asyncio.run, ask))
                    found[agent["name"]] = agent["neighbours"]
        return found

    async def rounds(self, count: int, within_s: float) -> Status:
        """Once so many more rounds are closed."""
        now = await self.until(lambda status: True, within_s)
        return await self.until(lambda status: status["round"] >= now["round"] + count, within_s)


def names(status: Status) -> set[str]:
    """Of the members that live."""
    return {member["name"] for member in status["members"] if member["state"] == "alive"}
