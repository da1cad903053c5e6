"""A chaos run's own parts: what it waits for, and what it keeps where that does not come."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.chaos_run import run
from scripts.chaos_run.cluster import ChaosCluster
from scripts.chaos_run.run import ChaosRun, Options, ended
from scripts.hosts import OneMachine


async def test_what_a_task_has_failed_with_is_raised_at_its_end() -> None:
    """The one that starts managers again: without it a run is another one."""

    async def fails() -> None:
        raise OSError("no more processes")

    async def goes_on() -> None:
        await asyncio.Event().wait()

    failed, running = asyncio.create_task(fails()), asyncio.create_task(goes_on())
    await asyncio.wait([failed])
    with pytest.raises(OSError, match="no more processes"):
        await ended(failed)
    await ended(running)
    assert running.cancelled()


async def test_who_is_cancelled_while_it_ends_a_task_stays_cancelled() -> None:
    going = asyncio.Event()

    async def goes_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await going.wait()

    task = asyncio.create_task(goes_slowly())
    await asyncio.sleep(0)
    ending = asyncio.create_task(ended(task))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending], timeout=5)
    assert ending.cancelled()
    going.set()
    await asyncio.wait([task])


class Interrupted(OneMachine):
    """Hosts of which one never comes to start anything."""

    def on(self, host: int, call: Callable[[], Any]) -> Any:
        if host == 3:
            raise KeyboardInterrupt
        return super().on(host, call)


async def test_who_is_interrupted_while_it_starts_leaves_nobody_behind(tmp_path: Path) -> None:
    cluster = ChaosCluster(tmp_path, Interrupted(4), 4, manager_set=(), agent_set=())
    with pytest.raises(KeyboardInterrupt):
        async with cluster:
            pass
    started = [manager.process for manager in cluster.managers.values()] + list(cluster.launchers.values())
    assert len(started) == 4
    assert all(process is not None and process.returncode is not None for process in started)


def ended_with(code: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    process.wait()
    return process


async def test_how_a_manager_or_a_launcher_ended_at_last_is_noted(tmp_path: Path) -> None:
    cluster = ChaosCluster(tmp_path, OneMachine(4), 4, manager_set=(), agent_set=())
    codes = {"manager-a": 3, "manager-b": 0, "launcher-1": 1, "launcher-2": 0}
    processes = {name: ended_with(code) for name, code in codes.items()}
    for name in ("manager-a", "manager-b"):
        cluster.managers[name].process = processes[name]
    for host in (1, 2):
        cluster.launchers[host] = processes[f"launcher-{host}"]
        (tmp_path / f"agents-{host}.log").touch()
    assert await cluster.leave(1.0, 1.0) == []
    assert cluster.odd_ends == ["manager-a ended with exit code 3", "launcher-1 ended with exit code 1"]


class Nobody:
    """A cluster without a process."""

    def __init__(self) -> None:
        self.managers: dict[str, Any] = {}
        self.addresses: dict[str, Any] = {}

    def pids(self) -> dict[str, int]:
        return {}

    async def __aenter__(self) -> Nobody:
        return self

    async def __aexit__(self, *_: object) -> None: ...


async def test_an_undisturbed_run_that_does_not_end_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disturbed run, half an hour of it, is judged all the same."""
    monkeypatch.setattr(run, "START_S", 0.0)
    monkeypatch.setattr(run, "UNDISTURBED_ROUND_S", 0.0)
    told: list[str] = []
    chaos = ChaosRun(Options(1, 4, ()), OneMachine(4), tmp_path, told.append)
    monkeypatch.setattr(chaos, "_cluster", lambda *_, **__: Nobody())
    assert await chaos.undisturbed(3) == {}
    assert told[-1] == "the undisturbed run does not end within 0 s: round 0"
