"""What was durable is known to the next life of a killed process by what its launcher keeps: as memory, and as a real command."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmrec_agent.high_water import high_water_of
from protocol.aio.status_client import request_status
from protocol.identifiers import Address, agent_id
from protocol.overlay.events import CreateTree
from scripts.local_cluster import free_ports
from tests.agent.ring import TREE, Manager, Ring, until

ROOT = str(Path(__file__).resolve().parents[2])
COMMAND = [sys.executable, "-c", "import sys; from fmrec_agent.cli import main; sys.exit(main())", "start"]


def test_a_fork_that_is_killed_has_left_its_marks_and_no_others() -> None:
    known = high_water_of(3)
    heard, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            known[1].sealed, known[1].durable = 1 << 41, 1 << 40
            os.write(tells, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    said = os.read(heard, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(heard)
    assert said == b"."
    assert [(one.durable, one.sealed) for one in known] == [(0, 0), (1 << 40, 1 << 41), (0, 0)]


@pytest.fixture
async def launched(ring: Ring) -> AsyncIterator[tuple[Manager, int]]:
    """A manager in this process and, as a real command that restarts them, two agents that joined. The manager, the first one's port."""
    manager, port = await ring.manager(), free_ports(2)
    chosen = {"cluster": "c", "name": "a", "task": "counting", "learning.learner": "tests.agent.counting:counting"}
    options = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    arguments = ["--count", "2", "--restart", "on-failure", "--listen", f"127.0.0.1:{port}", "--join", str(manager.me.address), *options]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        await until(lambda: manager.joined() == {"a-0", "a-1"}, 60)
        yield manager, port
    finally:
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 30)
    assert code == 0


async def status(port: int) -> dict[str, Any]:
    return await request_status(Address("127.0.0.1", port), "c", 10)


async def test_killed_agents_whose_records_are_nowhere_look_each_for_its_own(ring: Ring, launched: tuple[Manager, int]) -> None:
    """All holders of their records die while they hang, as if these were beyond a cut; then they are killed, and started again."""
    manager, port = launched
    second = agent_id("c", "a-1")
    for number, chosen in enumerate(((), (second,))):
        manager.multicast(replace(manager.order("train", number), chosen=chosen))
        await until(lambda number=number: len(manager.brought) == 2 + number, 30)
    before = [await status(port + index) for index in range(2)]
    assert 0 < before[0]["durable_version"] < before[1]["durable_version"]
    for one in before:
        os.kill(one["pid"], signal.SIGSTOP)
    await ring.kill(manager)
    later = Manager(TREE, incarnation=2)
    await later.listen(manager.me.port)
    ring.hosts.append(later)
    await later.enter()
    later.driver.dispatch(CreateTree(TREE))
    for one in before:
        os.kill(one["pid"], signal.SIGKILL)
    await until(lambda: later.joined() == {"a-0", "a-1"}, 30)
    later.multicast(later.order("train", 2))
    for index, one in enumerate(before):
        looks = f"version {one['durable_version']} was durable, and version none was found"
        async with asyncio.timeout(15):
            while looks not in (after := await status(port + index))["doing"]:
                pass
        assert (after["version"], after["job"]["done"], later.brought) == (0, 0, [])
        assert after["incarnation"] > one["incarnation"]
