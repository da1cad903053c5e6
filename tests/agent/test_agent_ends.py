"""A single agent as a real command ends when it is asked to, whatever its learner does at that moment."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.agent.ring import Ring, free_port, until

ROOT = str(Path(__file__).resolve().parents[2])
COMMAND = [sys.executable, "-c", "import sys; from fmrec_agent.cli import main; sys.exit(main())", "start"]


@pytest.mark.parametrize("where", ["building", "stepping"])
async def test_an_agent_whose_learner_does_not_come_back_ends_when_asked(ring: Ring, where: str, tmp_path: Path) -> None:
    """The interpreter would wait for the training thread."""
    manager = await ring.manager()
    learner = "built_late" if where == "building" else "stepping_late"
    chosen = {"cluster": "c", "name": "a", "task": "counting", "learning.learner": f"tests.agent.counting:{learner}"}
    options = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    arguments = ["--listen", f"127.0.0.1:{free_port()}", "--join", str(manager.me.address), *options]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    try:
        if where == "stepping":
            await until(lambda: manager.joined() == {"a"}, 60)
            manager.multicast(manager.order("train", 0))
        await until(lambda: (tmp_path / f"{where}-{process.pid}").exists(), 60)
        process.terminate()
        said, _ = await asyncio.wait_for(process.communicate(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert (b" source " in said) is (where == "stepping"), "its row was written"
