"""What was durable is known to the next life of a killed process by what its launcher keeps: as memory, and as a real command."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fmrec_agent.high_water import high_water_marks
from protocol.aio.status_client import request_status
from protocol.identifiers import Address
from protocol.overlay.events import CreateTree
from tests.agent.ring import TREE, Manager, Ring, free_port, until

ROOT = str(Path(__file__).resolve().parents[2])
COMMAND = [sys.executable, "-c", "import sys; from fmrec_agent.cli import main; sys.exit(main())", "start"]


def test_a_fork_that_is_killed_has_left_its_mark_and_no_other() -> None:
    marks = high_water_marks(3)
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        marks[1].value = 1 << 40
        os.write(told, b".")
        signal.pause()
    os.read(done, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(done)
    os.close(told)
    assert [mark.value for mark in marks] == [0, 1 << 40, 0]


@pytest.fixture
async def launched(ring: Ring) -> AsyncIterator[tuple[Manager, int]]:
    """A manager in this process and, as a real command that restarts it, agent a: it has joined. The manager, the agent's port."""
    manager, port = await ring.manager(), free_port()
    chosen = {"cluster": "c", "name": "a", "task": "counting", "learning.learner": "tests.agent.counting:counting"}
    options = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    arguments = ["--restart", "on-failure", "--listen", f"127.0.0.1:{port}", "--join", str(manager.me.address), *options]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL)
    await until(lambda: manager.joined() == {"a"}, 60)
    yield manager, port
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def status(port: int) -> dict[str, Any]:
    return await request_status(Address("127.0.0.1", port), "c", 10)


async def test_a_killed_agent_whose_record_is_nowhere_looks_for_it(ring: Ring, launched: tuple[Manager, int]) -> None:
    """The one holder of its record dies while the agent hangs, as if it were beyond a cut; the agent is killed, and started again."""
    manager, port = launched
    manager.multicast(manager.order("train", 0))
    await until(lambda: manager.brought)
    before = await status(port)
    assert before["durable_version"] > 0
    os.kill(before["pid"], signal.SIGSTOP)
    await ring.kill(manager)
    later = Manager(TREE, incarnation=2)
    await later.listen(manager.me.port)
    ring.hosts.append(later)
    await later.enter()
    later.driver.dispatch(CreateTree(TREE))
    os.kill(before["pid"], signal.SIGKILL)
    await until(lambda: later.joined() == {"a"}, 30)
    later.multicast(later.order("train", 0))
    looks = f"version {before['durable_version']} was durable, and version none was found"
    async with asyncio.timeout(10):
        while looks not in (after := await status(port))["doing"]:
            pass
    assert (after["version"], after["job"]["done"], later.brought) == (0, 0, [])
    assert after["incarnation"] > before["incarnation"]
