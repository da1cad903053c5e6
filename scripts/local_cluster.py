"""A cluster of real processes on this machine, through the two real commands: for the demo, the benchmarks and the end-to-end tests.

    async with LocalCluster(folder, agents=12, sources=9, ...) as cluster:
        await cluster.until(lambda status: status["round"] >= 3, within_s=20)
        await cluster.signal_agent("agent-3", signal.SIGKILL)

Ports are below 32768 and free when they are looked for. Each command runs in a session of its own, which is how its processes are found
again: everything that was started is stopped on leaving, by pid, also after a failure, whose traceback then ends with both logs' tails; and
a life line (life_line.py) ends it where we are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from typing import Any, Self

from protocol.aio.process import UserError
from protocol.aio.status_client import request_status
from protocol.identifiers import Address
from scripts.life_line import LifeLine, kill_sessions, send, session_members

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
CLUSTER = "fmrec"
ASK_TIMEOUT_S = 2.0
LEAVE_TIMEOUT_S = 10.0
TAIL_LINES = 25
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
    """One manager and `agents` agents; logs and state under `folder`. manager_set, agent_set: further --set arguments.

    abrupt: on leaving, kill instead of asking to leave; for whoever has seen what there was to see. standby: a second manager watches the
    first; `asked` is whom status() asks, and is yours to change.
    """

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
        abrupt: bool = False,
        standby: bool = False,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.agents = agents
        self._sources = sources
        self._manager_set = list(manager_set)
        self._agent_set = list(agent_set)
        self._restart = restart
        self._agents_on_disk = agents_on_disk
        self._abrupt = abrupt
        self._standby = standby
        first = free_ports(agents + 2)
        self.asked = self.address = Address(HOST, first)
        self._agents_port = first + 1
        self.other_address = Address(HOST, first + 1 + agents)
        """Of the standby; or for a manager that starts again elsewhere."""
        self.manager: subprocess.Popen[bytes] | None = None
        self.standby: subprocess.Popen[bytes] | None = None
        self.launcher: subprocess.Popen[bytes] | None = None
        self._spawned: list[subprocess.Popen[bytes]] = []
        self._life_line: LifeLine | None = None
        self._manager_may_end = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(self.tails())
        await asyncio.to_thread(self.stop)

    def spawn(self, log: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run a command of ours in a session of its own, writing to `log`; stop() ends all that it leaves behind."""
        self._life_line = self._life_line or LifeLine()
        command = [str(BIN / arguments[0]), *arguments[1:]]
        with (self.folder / log).open("ab") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True, env=plain_environment()
            )
        self._life_line.hold(process.pid)
        self._spawned.append(process)
        return process

    def start(self) -> None:
        """All of it."""
        self.start_manager()
        if self._standby:
            self.start_standby()
        self.start_agents()

    def start_manager(self, *further: str) -> None:
        """`fmrec-manager serve`, again with the same state where it was killed. further: options, such as another --listen."""
        self._manager_may_end = False
        self.manager = self._spawn_manager("manager", "--listen", str(self.address), *further)

    def start_standby(self) -> None:
        """`fmrec-manager serve --standby`, at the other address."""
        joins = ("--join", str(self.address), "--join", f"{HOST}:{self._agents_port}")
        self.standby = self._spawn_manager("standby", "--standby", "--listen", str(self.other_address), *joins)

    def _spawn_manager(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        sets = [part for item in self._manager_set for part in ("--set", item)]
        state = ["--state-dir", str(self.folder / name)]
        return self.spawn(f"{name}.log", ["fmrec-manager", "serve", *options, *state, *sets])

    def start_agents(self) -> None:
        """`fmrec-agent start --count N`."""
        sets = [part for item in (f"sources={self._sources}", f"port={self._agents_port}", *self._agent_set) for part in ("--set", item)]
        state = ["--state-dir", str(self.folder / "agents")] if self._agents_on_disk else []
        restart = ["--restart", "on-failure"] if self._restart else []
        joins = [self.address, *([self.other_address] if self._standby else [])]
        many = ["--count", str(self.agents), *(part for seed in joins for part in ("--join", str(seed)))]
        self.launcher = self.spawn("agents.log", ["fmrec-agent", "start", *many, *state, *restart, *sets])

    def processes(self) -> list[int]:
        """The pids of all that runs for this cluster now, orphans included: those in the sessions of what was spawned."""
        return session_members({process.pid for process in self._spawned})

    def stop(self) -> None:
        """Ask all to leave, the agents first; after ten seconds, kill what is left. By pid, every one of ours."""
        if not self._abrupt:
            for pid in self.processes():
                send(pid, signal.SIGCONT)
            for process in sorted(self._spawned, key=lambda process: process is self.manager):
                if process.poll() is None:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(LEAVE_TIMEOUT_S)
        kill_sessions({process.pid for process in self._spawned})
        for process in self._spawned:
            process.wait()
        if self._life_line is not None:
            self._life_line.let_go()
            self._life_line = None

    def log(self, name: str) -> str:
        """All that was written to the log `name` so far."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def tails(self) -> str:
        """The last lines of every log of this cluster, for whoever must find out what went wrong."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path} ---\n" + "\n".join(self.log(path.name).splitlines()[-TAIL_LINES:]) for path in logs)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def document(self) -> Status | None:
        """The whole status document of the manager at `asked`; None while it does not answer."""
        try:
            return await request_status(self.asked, CLUSTER, ASK_TIMEOUT_S)
        except UserError:
            return None

    async def status(self) -> Status | None:
        """The status of the tree `main`; None while the manager does not answer, or does not root it."""
        document = await self.document()
        tree: Status | None = document["trees"].get("main") if document is not None else None
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
            if self.manager is not None and self.manager.poll() is not None and not self._manager_may_end:
                raise ClusterError(f"the manager ended with code {self.manager.returncode}: see {self.folder / 'manager.log'}")
            await asyncio.sleep(every_s)
        brief = {key: last[key] for key in ("stage", "round", "reason", "counts")} if last else "no answer"
        raise ClusterError(f"not within {within_s:.0f} s (last: {json.dumps(brief)}): see the logs in {self.folder}")

    async def standby_watches(self, within_s: float) -> None:
        """Until the standby has heard of the manager; ClusterError where it does not in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with contextlib.suppress(UserError):
                document = await request_status(self.other_address, CLUSTER, ASK_TIMEOUT_S)
                if document["standby"]["main"]["root"] is not None:
                    return
            await asyncio.sleep(0.02)
        raise ClusterError(f"the standby has not heard of a manager within {within_s:.0f} s: see {self.folder / 'standby.log'}")

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
        self._manager_may_end = True
        self.manager.kill()
        self.manager.wait()

    def hang_manager(self) -> None:
        """SIGSTOP. From now on its end is no failure: another may have taken its place."""
        assert self.manager is not None
        self._manager_may_end = True
        self.manager.send_signal(signal.SIGSTOP)

    def pss_mb(self) -> dict[str, float]:
        """Proportional set size in MiB of every process of the cluster, by role."""
        mains = {process.pid for process in self._spawned}
        return {
            "manager": pss_mb(self.manager.pid) if self.manager else 0.0,
            "launcher": pss_mb(self.launcher.pid) if self.launcher else 0.0,
            "agents": sum(pss_mb(pid) for pid in self.processes() if pid not in mains),
        }


def plain_environment() -> dict[str, str]:
    """Ours without FMREC_ variables: what a cluster is set to is what its maker said."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FMREC_")}


def pss_mb(pid: int, part: str = "Pss") -> float:
    """The proportional set size of this process in MiB, or a part of it ("Pss_Anon": without files); 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{part}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
