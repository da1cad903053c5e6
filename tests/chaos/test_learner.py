"""What chaos trains: a learner by whose theta a lost state is seen."""

from __future__ import annotations

from collections.abc import Callable

from fmrec_agent.learning.learner import Job, Learner
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.settings import AgentSettings
from fmrec_manager.aggregation import Aggregator
from fmrec_manager.report import digest_of
from fmrec_manager.settings import TreeSettings
from protocol.aio.settings import load
from protocol.identifiers import agent_id
from scripts.chaos_run.run import AGENT_SET, SERVER

NAMES = ("host-1-0", "host-2-0")
ROUNDS, DIES_BEFORE = 4, 2


def born(index: int) -> Learner:
    settings = load(AgentSettings, None, AGENT_SET, {})
    return load_learner(settings.learning, name=NAMES[index], role="source", index=index)


def from_zero(_: Learner) -> Learner:
    return born(1)


def from_its_record(before: Learner) -> Learner:
    after = born(1)
    after.restore(*before.state())
    return after


def nobody_dies(before: Learner) -> Learner:
    return before


def theta_with(second_life: Callable[[Learner], Learner]) -> bytes:
    """The digest of theta after a run in one process, in which agent 1 begins a second life between two rounds."""
    tree = TreeSettings.model_validate(SERVER)
    learners = [born(index) for index in range(len(NAMES))]
    aggregator = Aggregator("cpu", tree.server_optimizer, tree.server_rate, tree.momentum, tree.weighting)
    theta = dict(learners[0].initial_parameters(tree.seed))
    for number in range(ROUNDS):
        if number == DIES_BEFORE:
            learners[1] = second_life(learners[1])
        contributions = {}
        for name, learner in zip(NAMES, learners, strict=True):
            for _ in range(learner.begin(Job("train", number, tree.seed), theta)):
                learner.step()
            found = learner.finish()
            contributions[agent_id("fmrec", name)] = (found.tensors, found.samples, 1.0)
        theta, _ = aggregator.aggregate(theta, contributions)
    return digest_of(theta)


def test_a_life_that_begins_from_zero_in_a_later_round_makes_another_theta() -> None:
    assert theta_with(from_zero) != theta_with(nobody_dies)


def test_a_life_that_goes_on_from_its_record_makes_the_same() -> None:
    assert theta_with(from_its_record) == theta_with(nobody_dies)
