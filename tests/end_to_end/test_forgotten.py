"""An agent that is killed and never started again: the run goes on without it, and in time nobody keeps what it left."""

from __future__ import annotations

import signal
from pathlib import Path

from protocol.identifiers import NodeId, agent_id
from protocol.parameters import OverlayParameters
from scripts.local_cluster import CLUSTER
from tests.aio.waiting import until
from tests.end_to_end.stories import STORY_S, in_a_job, member, story

KEPT_S = 2 * OverlayParameters().upkeep_interval_s
"""The shortest that may be set."""


def keepers(folder: Path, owner: NodeId) -> set[str]:
    """Whose disks hold a record of this owner, but for its own."""
    return {path.parent.parent.name for path in folder.rglob(f"{owner}-*.record")} - {"agent-1"}


async def test_it_is_retired_and_its_record_kept_for_so_long_and_no_longer(tmp_path: Path) -> None:
    gone, lives = agent_id(CLUSTER, "agent-1"), agent_id(CLUSTER, "agent-2")
    kept = f"overlay.forget_after_s={KEPT_S}"
    manager_set = ["tree.main.recovery=substitute", "tree.main.staleness_max=1", "tree.main.rounds=100000", kept]
    async with story(tmp_path, manager_set=manager_set, agent_set=[kept], restart=False, agents_on_disk=True) as cluster:
        await in_a_job(cluster, "agent-1", from_round=1, durable_version=1)
        await cluster.signal_agent("agent-1", signal.SIGKILL)
        retired = "dead for more than 1 rounds, which go on without it"
        status = await cluster.until(lambda status: retired in member(status, "agent-1")["reason"], STORY_S)
        assert member(status, "agent-1")["state"] == "dead"
        assert keepers(tmp_path, gone), "it may come back"
        await until(lambda: not keepers(tmp_path, gone), STORY_S)
        assert "record_forgotten" in cluster.log("agents.log") + cluster.log("manager.log")
        assert len(keepers(tmp_path, lives)) >= OverlayParameters().write_quorum
        await cluster.until(lambda later: later["round"] > status["round"], STORY_S)
