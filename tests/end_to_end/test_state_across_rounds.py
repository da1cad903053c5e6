"""ADMM's dual lives in one process, from round to round: after kills theta must be as if nobody had died (promise P5)."""

from __future__ import annotations

import signal
from pathlib import Path

from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.settings import AgentSettings
from fmrec_manager.aggregation import Aggregator
from fmrec_manager.report import digest_of
from fmrec_manager.settings import TreeSettings
from protocol.aio.settings import load
from protocol.identifiers import agent_id
from scripts.life_line import send
from scripts.local_cluster import CLUSTER
from tests.end_to_end.stories import AGENT_SET, ROUNDS, SOURCES, in_a_job, member, recovery_of, story, the_end

ADMM = ("learning.learner=admm", "learning.rho=20.0", "learning.iterations_per_round=12", "checkpoint_every=4")
SGD = ("tree.main.server_optimizer=sgd", "tree.main.server_rate=1.0", "tree.main.adapt=false")


def theta_in_one_process() -> bytes:
    """The digest of what the learners and the aggregation make of the same run without processes, a network, or deaths."""
    settings = load(AgentSettings, None, [*AGENT_SET, *ADMM], {})
    names = [f"agent-{index}" for index in range(SOURCES)]
    learners = [load_learner(settings.learning, name=name, role="source", index=index) for index, name in enumerate(names)]
    aggregator = Aggregator("cpu", "sgd", 1.0, 0.0, "samples")
    seed = TreeSettings().seed
    theta = dict(learners[0].initial_parameters(seed))
    for round_ in range(ROUNDS):
        contributions = {}
        for name, learner in zip(names, learners, strict=True):
            for _ in range(learner.begin(Job("train", round_, seed), theta)):
                learner.step()
            found = learner.finish()
            contributions[agent_id(CLUSTER, name)] = (found.tensors, found.samples, 1.0)
        theta, _ = aggregator.aggregate(theta, contributions)
    return digest_of(theta)


async def test_the_duals_of_killed_agents_come_back(tmp_path: Path) -> None:
    """kill -9 of two agents, rounds apart, each in the middle of a round and with a record of that life at its quorum."""
    async with story(tmp_path, manager_set=SGD, agent_set=ADMM) as cluster:
        lives = []
        for name, from_round in (("agent-2", 3), ("agent-0", 7)):
            lives.append(await in_a_job(cluster, name, from_round, durable_version=3))
            send(lives[-1]["pid"], signal.SIGKILL)
        final = await the_end(cluster)
        for life in lives:
            assert recovery_of(final, life)["outcome"] == "verified"
            assert member(final, life["name"])["incarnation"] > life["incarnation"]
        assert final["theta_digest"] == theta_in_one_process().hex()
