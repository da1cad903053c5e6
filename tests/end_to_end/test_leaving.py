"""Processes that end in order: by Ctrl-C, or because a newer life has taken over."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from scripts.local_cluster import BIN, HOST, LocalCluster, free_ports, plain_environment
from tests.end_to_end.stories import AGENTS, ROUNDS, STORY_S, in_a_job, story


async def test_ctrl_c_ends_everything_and_says_so(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the launcher and to all agents: they leave in order, nobody recovers them, each command exits with 130."""
    async with story(tmp_path) as cluster:
        await in_a_job(cluster, "agent-0", from_round=1)
        assert cluster.launcher is not None
        assert cluster.manager is not None
        os.killpg(cluster.launcher.pid, signal.SIGINT)
        assert await asyncio.to_thread(cluster.launcher.wait, STORY_S) == 130
        assert cluster.processes() == [cluster.manager.pid]
        status = await cluster.status()
        assert status is not None
        assert status["counts"] == {"alive": 0, "suspect": 0, "dead": 0, "left": AGENTS}, status["members"]
        assert status["recoveries"] == []
        os.killpg(cluster.manager.pid, signal.SIGINT)
        assert await asyncio.to_thread(cluster.manager.wait, STORY_S) == 130
        assert cluster.processes() == []
        where = f"main stops in round {status['round']} of {ROUNDS}; theta and round state are kept by {tmp_path}"
        assert where in cluster.log("manager.log")
        assert "Traceback" not in cluster.log("agents.log") + cluster.log("manager.log")


def test_beside_the_live_table_a_log_is_kept_where_stderr_is_a_file(tmp_path: Path) -> None:
    """The table is on a terminal, and what would tear it goes elsewhere."""
    terminal, end = os.openpty()
    command = [str(BIN / "fmrec-manager"), "serve", "--listen", f"{HOST}:{free_ports(1)}"]
    with (tmp_path / "manager.log").open("wb") as log:
        manager = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=end, stderr=log, env=plain_environment())
    os.close(end)
    try:
        shown, deadline = b"", time.monotonic() + STORY_S
        while b"waiting for agents" not in shown:
            readable, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
            assert readable, shown
            shown += os.read(terminal, 1 << 16)  # OSError where the manager has ended
        manager.send_signal(signal.SIGINT)
        with suppress(OSError):
            while os.read(terminal, 1 << 16):
                pass
        assert manager.wait(STORY_S) == 130
    finally:
        manager.kill()
        manager.wait()
        os.close(terminal)
    assert "INFO    fmrec.manager the manager of cluster fmrec listens on" in (tmp_path / "manager.log").read_text()


async def test_of_two_agents_with_one_name_the_older_leaves(tmp_path: Path) -> None:
    """A name is one agent: whoever starts it again takes over, and the earlier life says why it goes, which is no failure."""
    cluster = LocalCluster(tmp_path, agents=1, sources=1, manager_set=["tree.main.sources_min=2"], restart=False, abrupt=True)
    async with cluster:
        older = (await cluster.until(lambda status: status["counts"]["alive"] == 1, STORY_S))["members"][0]
        newer = cluster.spawn("newer.log", ["fmrec-agent", "start", "--join", str(cluster.address), "--listen", "127.0.0.1:auto"])
        assert cluster.launcher is not None
        assert await asyncio.to_thread(cluster.launcher.wait, STORY_S) == 0
        cluster.launcher = None  # its end is what was asked for
        assert "a newer life of this agent has started" in cluster.log("agents.log")
        status = await cluster.until(
            lambda status: status["counts"]["alive"] == 1 and status["members"][0]["pid"] == newer.pid, STORY_S
        )
        assert [member["name"] for member in status["members"]] == [older["name"]]
        assert status["members"][0]["incarnation"] > older["incarnation"]
