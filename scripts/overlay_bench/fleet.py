"""The controller's hands: starts processes of nodes, gives them orders, measures them from outside, and leaves none behind.

    async with Fleet(folder, preset) as fleet:
        process = await fleet.spawn("survivors-1", nodes_max=30)
        reply = await process.ask("drain")

Everything that was spawned is killed by its pid and waited for on leaving, whatever happened, stopped processes included.
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
from itertools import count
from pathlib import Path
from typing import Any

from scripts.life_line import send
from scripts.local_cluster import plain_environment
from scripts.overlay_bench.node_process import LINE_BYTES_MAX

NODE_PROCESS = Path(__file__).with_name("node_process.py")
ASK_TIMEOUT_S = 120.0
TAIL_LINES = 15
Reply = dict[str, Any]


class BenchError(Exception):
    """The nodes did not do what was asked of them; the message says which process, and ends with its log's tail."""


def start_process(command: list[str], inherited: socket.socket, log: Path | None = None) -> subprocess.Popen[bytes]:
    """The command with this socket, in a session of its own: Ctrl-C is for the controller, which then ends all that it has started."""
    with open(log or os.devnull, "ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[inherited.fileno()],
            start_new_session=True,
            env=plain_environment(),
        )


class NotInTime(BenchError):
    """A node did not get done in time what was asked of it; its process is well."""


class Completions:
    """Which processes have said when that all their members have a multicast."""

    def __init__(self) -> None:
        self._at: dict[int, dict[str, float]] = {}
        self._changed = asyncio.Event()

    def note(self, number: int, process: str, at_s: float) -> None:
        self._at.setdefault(number, {})[process] = at_s
        self._changed.set()

    def completed(self, processes: set[str]) -> dict[int, float]:
        """The multicasts that all of these processes have in full, and when the last member had each."""
        return {number: max(at[name] for name in processes) for number, at in self._at.items() if processes <= at.keys()}

    async def until(self, number: int, processes: set[str], within_s: float) -> float | None:
        """When this multicast was complete; None where it is not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while number not in (found := self.completed(processes)):
                    self._changed.clear()
                    await self._changed.wait()
                return found[number]
        return None


class Process:
    """One process of nodes, from outside."""

    def __init__(self, name: str, log: Path, child: subprocess.Popen[bytes], completions: Completions) -> None:
        self.name = name
        self._log = log
        self._child = child
        self._completions = completions
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Reply]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._over = ""

    async def connect(self, control: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=control, limit=LINE_BYTES_MAX)
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                said = json.loads(line)
                if "complete" in said:
                    self._completions.note(said["complete"], self.name, said["at"])
                elif "failed" in said:
                    self._end(f"a node failed: {said['failed']}")
                elif (waiting := self._asked.pop(said.pop("id"), None)) is not None and not waiting.done():
                    waiting.set_result(said)
        self._end("the process has ended")

    def _end(self, reason: str) -> None:
        self._over = self._over or reason
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_result({"error": self._over})

    async def ask(self, do: str, timeout_s: float = ASK_TIMEOUT_S, **arguments: Any) -> Reply:
        """The reply to one order. BenchError where the process says no, has ended, or does not answer in time."""
        number = next(self._numbers)
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._over or self._writer is None:
            raise self._error(do, self._over or "not connected")
        self._asked[number] = waiting
        self._writer.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_s):
                reply = await waiting
        except TimeoutError:
            raise self._error(do, f"no answer within {timeout_s:g} s") from None
        if "error" in reply:
            raise self._error(do, reply["error"], NotInTime if reply.get("late") else BenchError)
        return reply

    def _error(self, do: str, reason: str, kind: type[BenchError] = BenchError) -> BenchError:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return kind(f"{self.name}, order {do}: {reason}\n{tail}".rstrip())

    def signal(self, number: signal.Signals) -> float:
        """Sends it; the time just before."""
        at_s = time.monotonic()
        send(self._child.pid, number)
        return at_s

    def pss_mb(self) -> float:
        """Proportional set size, in MB of a million bytes."""
        lines = Path(f"/proc/{self._child.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6

    def cpu_s(self) -> float:
        """Seconds on a core since its start, in user and in kernel."""
        # The fields after the command's name, which ends at the last bracket: utime and stime are the 12th and 13th of them.
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Ends it now, and waits until it is gone."""
        self._over = self._over or "killed"
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        self._child.kill()
        self._child.wait()


class Fleet:
    """All processes of one cluster of nodes."""

    def __init__(self, folder: Path, preset: str) -> None:
        self._folder = folder
        self._preset = preset
        self._numbers = count(1)
        self.processes: list[Process] = []
        self.completions = Completions()

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()

    async def spawn(self, name: str, nodes_max: int) -> Process:
        """A process without nodes, ready for orders."""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        log = self._folder / f"{name}-{number}.log"
        arguments = {"control": theirs.fileno(), "number": number, "preset": self._preset, "nodes-max": nodes_max, "parent": os.getpid()}
        command = [sys.executable, str(NODE_PROCESS), *(part for key, value in arguments.items() for part in (f"--{key}", str(value)))]
        with theirs:
            child = start_process(command, theirs, log)
        self.processes.append(process := Process(name, log, child, self.completions))
        await process.connect(ours)
        await process.ask("drain")
        return process
