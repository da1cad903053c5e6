"""A straggler is slow, not dead: its replica serves the round that it is too late for, and it takes part in the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.identifiers import agent_id
from scripts.local_cluster import CLUSTER
from tests.end_to_end.learners import SLOW_ROUND, STRAGGLER
from tests.end_to_end.stories import AGENTS, index_of, member, story, the_end

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, ITERATIONS = 3, 5
MANAGER_SET = (
    f"tree.main.rounds={ROUNDS}",
    "tree.main.recovery=substitute",
    "tree.main.round_deadline_s=4",
    "tree.main.staleness_discount=0.5",
    "tree.main.adapt=false",
)
AGENT_SET = (
    "learning.learner=tests.end_to_end.learners:one_straggles",
    f"learning.iterations_per_round={ITERATIONS}",
    "checkpoint_every=100",
)


async def test_a_stragglers_replica_serves_and_what_it_does_too_late_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job would take more than twice as long as the round may. Its contribution to the round before stands in at half the weight; it is
    heard all the while, gives its late job up for the next round's, and contributes to that one itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with story(tmp_path, manager_set=MANAGER_SET, agent_set=AGENT_SET) as cluster:
        before = (await cluster.until(lambda status: status["counts"]["alive"] == AGENTS, 30))["members"]
        final = await the_end(cluster)
        said, straggler = cluster.log("manager.log"), agent_id(CLUSTER, STRAGGLER)
        # Version 1 was theta_0, which this agent was asked for.
        assert f"stood_in agent={straggler} round={SLOW_ROUND} version=2 factor=0.5" in said

        (recovery,) = [recovery for recovery in final["recoveries"] if recovery["agent"] == STRAGGLER]
        assert (recovery["cause"], recovery["outcome"]) == ("deadline", "verified")
        assert (recovery["round"], recovery["iteration"]) == (SLOW_ROUND - 1, ITERATIONS)

        now = member(final, STRAGGLER)
        (then,) = [life for life in before if life["name"] == STRAGGLER]
        assert (now["state"], now["pid"], now["incarnation"]) == ("alive", then["pid"], then["incarnation"])
        assert "agent_lost" not in said
        assert "halted" not in said
        assert (final["round"], len(final["losses"])) == (ROUNDS, ROUNDS)

        agent = await cluster.agent(index_of(STRAGGLER))
        assert agent is not None
        assert (agent["round"], agent["job"]["done"]) == (ROUNDS - 1, ITERATIONS), "the last round it has done itself"
        assert agent["version"] == 3, "theta_0, and the contributions to the first round and the last"
        assert (ROUNDS - 1) * ITERATIONS < agent["iteration"] < ROUNDS * ITERATIONS, "the late job was begun, and not ended"
