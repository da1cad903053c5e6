"""Agents die, hang and come back; in mode exact theta is as if nothing had happened (promises P1, P2, P5)."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from protocol.aio.status_client import request_status
from protocol.identifiers import Address
from scripts.life_line import send
from scripts.local_cluster import CLUSTER, HOST, free_ports
from tests.end_to_end.stories import (
    AGENT_SET,
    AGENTS,
    RECOVERED_WITHIN_S,
    ROUNDS,
    STORY_S,
    TARGET,
    in_a_job,
    index_of,
    member,
    recovery_of,
    story,
    the_end,
)

ROOT = Path(__file__).resolve().parents[2]


async def test_a_killed_agent_goes_on_from_its_own_record(tmp_path: Path, undisturbed: str) -> None:
    """kill -9 in the middle of a round: its record is at the manager at once, its next life starts from it, theta is the same."""
    async with story(tmp_path) as cluster:
        before = await in_a_job(cluster, "agent-2", from_round=4)
        killed = time.time()
        send(before["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        after = await cluster.agent(index_of("agent-2"))
        assert after is not None
        assert after["pid"] != before["pid"]
        assert after["incarnation"] > before["incarnation"]
        # Nothing acknowledged is lost: what its quorum held when it was killed, or newer.
        assert after["resumed_from"]["version"] >= before["durable_version"] > 0
        assert after["resumed_from"]["iteration"] > 0
        recovery = recovery_of(final, before)
        assert recovery["outcome"] == "verified", recovery
        assert recovery["version"] >= before["durable_version"]
        assert recovery["noticed_unix_s"] - killed + recovery["total_ms"] / 1000 < RECOVERED_WITHIN_S, recovery
        assert final["theta_digest"] == undisturbed


async def test_an_agent_on_a_replaced_machine_goes_on_from_its_record(tmp_path: Path, undisturbed: str) -> None:
    """The same name at another address, with nothing on disk; its record comes from those who held it for the life that died."""
    async with story(tmp_path, restart=False) as cluster:
        before = await in_a_job(cluster, "agent-0", from_round=4)
        send(before["pid"], signal.SIGKILL)
        port = free_ports(1)
        sets = [part for item in ("name=agent-0", *AGENT_SET) for part in ("--set", item)]
        cluster.spawn("replaced.log", ["fmrec-agent", "start", "--join", str(cluster.address), "--listen", f"{HOST}:{port}", *sets])
        final = await the_end(cluster)
        after = await request_status(Address(HOST, port), CLUSTER, STORY_S)
        assert (after["name"], after["id"]) == ("agent-0", before["id"])
        assert after["address"] != before["address"]
        assert after["resumed_from"]["version"] >= before["durable_version"] > 0
        assert final["counts"]["alive"] == AGENTS
        assert final["theta_digest"] == undisturbed


async def test_a_killed_target_goes_on_with_its_adaptation(tmp_path: Path) -> None:
    """Adaptation is recovered like training: the target's next life begins where its last record ended, not at 0."""
    async with story(tmp_path, manager_set=["tree.main.rounds=1"], agent_set=["learning.adapt_iterations=300"]) as cluster:
        before = await in_a_job(cluster, TARGET, from_round=1, durable_version=3)
        send(before["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        after = await cluster.agent(index_of(TARGET))
        assert after is not None
        assert after["resumed_from"]["version"] >= before["durable_version"]
        assert recovery_of(final, before)["outcome"] == "verified"
        assert final["results"][TARGET]["rmse_pp"] > 0


async def test_every_agent_is_killed_in_the_same_instant(tmp_path: Path, undisturbed: str) -> None:
    """No replica is left but the manager's; whoever finds nothing begins anew, and its next jobs are the same all the same."""
    async with story(tmp_path) as cluster:
        await cluster.until(lambda status: status["round"] >= 4, STORY_S)
        agents = [await cluster.agent(index) for index in range(AGENTS)]
        for agent in agents:
            assert agent is not None
            send(agent["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        assert final["counts"]["alive"] == AGENTS
        assert final["theta_digest"] == undisturbed


async def test_an_agent_is_killed_twice_in_a_row(tmp_path: Path, undisturbed: str) -> None:
    """The second time as soon as the new life answers, before it can have finished anything."""
    async with story(tmp_path) as cluster:
        before = await in_a_job(cluster, "agent-2", from_round=4)
        send(before["pid"], signal.SIGKILL)
        again = await cluster.until(lambda status: member(status, "agent-2")["incarnation"] > before["incarnation"], STORY_S)
        send(member(again, "agent-2")["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        assert member(final, "agent-2")["state"] == "alive"
        assert final["theta_digest"] == undisturbed


async def test_a_killed_parent_leaves_nobody_behind(tmp_path: Path, undisturbed: str) -> None:
    """The parent of other members in the tree is killed: they join again through another, and miss no round."""
    async with story(tmp_path) as cluster:
        await cluster.until(lambda status: status["round"] >= 2, STORY_S)
        # While the manager is away the agents gather under the one closest to the treeId, and stay there when it is back.
        cluster.kill_manager()
        cluster.start_manager()
        back = await cluster.until(lambda status: status["stage"] == "train" and status["counts"]["alive"] == AGENTS, STORY_S)
        names = {member["address"]: member["name"] for member in back["members"]}
        agents = [await cluster.agent(index) for index in range(AGENTS)]
        above = {agent["parent"].rpartition("@")[2] for agent in agents if agent is not None and agent["parent"] is not None}
        (name,) = [names[address] for address in above if address in names]
        before = await in_a_job(cluster, name, back["round"])
        send(before["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        assert final["counts"]["alive"] == AGENTS
        assert recovery_of(final, before)["outcome"] == "verified"
        assert final["theta_digest"] == undisturbed


async def test_a_hanging_agent_is_waited_for(tmp_path: Path, undisturbed: str) -> None:
    """SIGSTOP in mode exact: silence gives it away, its round stays open, and after SIGCONT it goes on as if it had not slept."""
    async with story(tmp_path) as cluster:
        before = await in_a_job(cluster, "agent-3", from_round=3)
        send(before["pid"], signal.SIGSTOP)
        noticed = await cluster.until(lambda status: any(r["outcome"] == "verified" for r in status["recoveries"]), STORY_S)
        recovery = recovery_of(noticed, before)
        assert recovery["cause"] == "heartbeat", recovery
        assert member(noticed, "agent-3")["state"] == "dead"
        assert noticed["round"] == before["round"]
        send(before["pid"], signal.SIGCONT)
        final = await the_end(cluster)
        after = await cluster.agent(index_of("agent-3"))
        assert after is not None
        assert after["pid"] == before["pid"]
        assert final["theta_digest"] == undisturbed


async def test_a_substitute_stands_in_for_a_hanging_agent(tmp_path: Path) -> None:
    """SIGSTOP in mode substitute: nobody waits, the hanging agent's newest replica stands in, and all rounds are done without it."""
    async with story(tmp_path, manager_set=["tree.main.recovery=substitute"]) as cluster:
        before = await in_a_job(cluster, "agent-3", from_round=3)
        send(before["pid"], signal.SIGSTOP)
        final = await the_end(cluster)
        assert final["round"] == ROUNDS
        assert member(final, "agent-3")["state"] == "dead"
        first = next(recovery for recovery in final["recoveries"] if recovery["agent"] == "agent-3")
        assert (first["cause"], first["outcome"]) == ("heartbeat", "verified"), first
        assert "halted" not in cluster.log("manager.log")


async def test_a_dropped_agent_is_given_up(tmp_path: Path, undisturbed: str) -> None:
    """Mode drop: a source that is killed and not restarted is neither recovered nor waited for, and the run ends without halting."""
    async with story(tmp_path, manager_set=["tree.main.recovery=drop"], restart=False) as cluster:
        before = await in_a_job(cluster, "agent-1", from_round=3)
        send(before["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        assert (final["round"], final["recoveries"]) == (ROUNDS, [])
        assert member(final, "agent-1")["state"] == "dead"
        assert "halted" not in cluster.log("manager.log")
        assert "agent-1 (pid" in cluster.log("agents.log")
        assert final["theta_digest"] != undisturbed


async def test_an_overflowing_loss_is_refused_and_the_round_goes_on(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One agent's loss is not finite: the manager says so and closes each round without it; theta stays finite."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with story(tmp_path, agent_set=["learning.learner=tests.end_to_end.learners:one_diverges"]) as cluster:
        final = await the_end(cluster)
        assert final["round"] == ROUNDS
        assert 0 < final["loss"] < 1
        assert final["theta_digest"] != undisturbed
        said = cluster.log("manager.log")
        assert said.count("contribution_refused") == ROUNDS
        assert "lower the rate or look at the data of this agent" in said
        assert "the manager refused version" in cluster.log("agents.log")
