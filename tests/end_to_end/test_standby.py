"""A standby takes the manager's place, and of the two only one ever commits a round (promises P5, P6)."""

from __future__ import annotations

import signal
from pathlib import Path

from scripts.local_cluster import LocalCluster, Status
from tests.end_to_end.stories import AGENTS, ROUNDS, STORY_S, story, the_end


async def watched(cluster: LocalCluster) -> Status:
    """In the middle of the run, and the standby sees the manager. The manager's status."""
    await cluster.standby_watches(STORY_S)
    return await cluster.until(lambda status: status["round"] >= 3, STORY_S)


async def taken_over(cluster: LocalCluster, before: Status) -> Status:
    """The standby roots the tree now, and has lost no committed round. Its status."""
    cluster.asked = cluster.other_address
    now = await cluster.until(lambda status: status["stage"] in ("train", "adapt", "done"), STORY_S)
    # A status tells of a round before it is committed: what had been announced then is the one before.
    committed = before["stage"] not in ("committing", "electing")
    assert now["version"] >= before["version"] - (not committed)
    return now


async def test_a_standby_takes_over_from_a_killed_manager(tmp_path: Path, undisturbed: str) -> None:
    async with story(tmp_path, standby=True) as cluster:
        before = await watched(cluster)
        cluster.kill_manager()
        await taken_over(cluster, before)
        final = await the_end(cluster)
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)
        assert final["counts"]["alive"] == AGENTS
        assert final["theta_digest"] == undisturbed


async def test_a_manager_that_hung_and_wakes_finds_another_in_its_place(tmp_path: Path, undisturbed: str) -> None:
    """SIGSTOP, and rounds go on without it; SIGCONT: it says that it is superseded and stands by, and has said nothing else to anybody."""
    async with story(tmp_path, standby=True) as cluster:
        before = await watched(cluster)
        cluster.hang_manager()
        now = await taken_over(cluster, before)
        later = await cluster.until(lambda status: status["round"] >= min(now["round"] + 2, ROUNDS), STORY_S)
        assert cluster.manager is not None
        cluster.manager.send_signal(signal.SIGCONT)
        final = await the_end(cluster)
        said = cluster.log("manager.log")
        assert f"tree main is rooted at {cluster.other_address}, or was last, with term" in said, said
        assert "this manager stands by for it" in said
        assert final["version"] >= later["version"]
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)
        assert final["theta_digest"] == undisturbed
        first, second = rounds_of("committed", cluster, "manager.log"), rounds_of("committed", cluster, "standby.log")
        assert not set(first) & set(second), "both have committed this"
        # Hung while it asked for agreement: then the standby finds that round at an elector, and its own first word is the agreement.
        taken_on = [number for number in rounds_of("goes_on", cluster, "standby.log") if number not in first]
        assert first + taken_on + second == list(range(ROUNDS + 1))


async def test_a_manager_that_wakes_when_its_successor_is_dead_takes_its_place(tmp_path: Path, undisturbed: str) -> None:
    """The agents have promised to serve no earlier root: it waited for their contributions for ever. It is told, and comes back later."""
    async with story(tmp_path, standby=True) as cluster:
        before = await watched(cluster)
        cluster.hang_manager()
        now = await taken_over(cluster, before)
        await cluster.until(lambda status: status["round"] > now["round"], STORY_S)
        assert cluster.standby is not None
        cluster.standby.kill()
        cluster.standby.wait()
        assert cluster.manager is not None
        cluster.manager.send_signal(signal.SIGCONT)
        cluster.asked = cluster.address
        final = await the_end(cluster)
        said = cluster.log("manager.log")
        assert "this manager stands by for it" in said
        assert "this standby takes over, with term" in said
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)
        assert final["theta_digest"] == undisturbed


def rounds_of(fact: str, cluster: LocalCluster, log: str) -> list[int]:
    """The rounds that this manager says it has committed, or goes on from, in the order of its log."""
    lines = [line for line in cluster.log(log).splitlines() if f"fmrec.tree.main {fact} " in line]
    return [int(line.split("round=")[1].split()[0]) for line in lines]
