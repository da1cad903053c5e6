"""The manager dies, alone and with others: no committed round is lost, and theta is as if nothing had happened (promises P5, P6)."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from scripts.life_line import send
from tests.end_to_end.stories import AGENTS, ROUNDS, STORY_S, in_a_job, story, the_end


@pytest.mark.parametrize("wiped", [False, True], ids=["with its state directory", "elsewhere, with nothing but its leaf set"])
async def test_a_killed_manager_goes_on_from_the_last_committed_round(wiped: bool, tmp_path: Path, undisturbed: str) -> None:
    """kill -9 and a second start: from its own disk, or, on another machine, from the replicas on its leaf set."""
    async with story(tmp_path) as cluster:
        before = await cluster.until(lambda status: status["round"] >= 4, STORY_S)
        cluster.kill_manager()
        if wiped:
            shutil.rmtree(tmp_path / "manager")
            agent = await cluster.agent(0)
            assert agent is not None
            cluster.start_manager("--listen", str(cluster.other_address), "--join", agent["address"])
            cluster.asked = cluster.other_address
        else:
            cluster.start_manager()
        back = await cluster.until(lambda status: status["stage"] not in ("locating", "waiting"), STORY_S)
        # A status tells of a round before it is durable: what had been announced then is the one before.
        assert back["round"] >= before["round"] - (before["stage"] in ("committing", "electing"))
        assert back["version"] >= before["version"] - (before["stage"] in ("committing", "electing"))
        assert "resumed round=" in cluster.log("manager.log")
        final = await the_end(cluster)
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)
        assert final["theta_digest"] == undisturbed


async def test_two_agents_and_the_manager_die_at_once(tmp_path: Path, undisturbed: str) -> None:
    """Everything on disk, three processes killed in one moment: all come back as themselves and the run ends with the same theta."""
    async with story(tmp_path, agents_on_disk=True) as cluster:
        first = await in_a_job(cluster, "agent-0", from_round=3)
        second = await in_a_job(cluster, "agent-4", from_round=3)
        send(first["pid"], signal.SIGKILL)
        send(second["pid"], signal.SIGKILL)
        cluster.kill_manager()
        cluster.start_manager()
        final = await the_end(cluster)
        for life in (first, second):
            after = await cluster.agent(int(life["name"][-1]))
            assert after is not None
            assert after["resumed_from"]["version"] >= life["durable_version"]
        assert final["counts"]["alive"] == AGENTS
        assert final["theta_digest"] == undisturbed


async def test_a_manager_is_killed_in_the_middle_of_a_retrieval(tmp_path: Path, undisturbed: str) -> None:
    """The look-up cannot end, for all who could answer are stopped. Its next life looks anew for what it needs, and theta is the same."""
    async with story(tmp_path) as cluster:
        dead = await in_a_job(cluster, "agent-2", from_round=4)
        others = [await cluster.pid(f"agent-{index}") for index in range(AGENTS) if index != 2]
        for pid in others:
            send(pid, signal.SIGSTOP)
        send(dead["pid"], signal.SIGKILL)
        await cluster.until(lambda s: any(r["agent"] == "agent-2" and r["outcome"] == "running" for r in s["recoveries"]), STORY_S)
        cluster.kill_manager()
        for pid in others:
            send(pid, signal.SIGCONT)
        cluster.start_manager()
        final = await the_end(cluster)
        after = await cluster.agent(2)
        assert after is not None
        assert after["resumed_from"]["version"] >= dead["durable_version"]
        assert (final["round"], final["counts"]["alive"]) == (ROUNDS, AGENTS)
        assert final["theta_digest"] == undisturbed
