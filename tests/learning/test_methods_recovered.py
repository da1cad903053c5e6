"""P5 for every method: whenever it dies, and whichever job it is at, it ends with the bytes of the undisturbed run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fmrec_agent.learning.conformance import digest, elsewhere, findings, maker
from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.loading import LEARNERS, load_learner
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Aggregator
from protocol.identifiers import agent_id

SINUSOIDS = {"name": "sinusoid", "meta_batch": 3, "hidden": 8}
SENDS_GRADIENTS = ("maml", "fomaml", "meta-sgd")
"""The others send what moves theta at the server's rate 1."""
PARKING = {"name": "parking", "days": 1, "hidden": 2}
LINEAR = {"name": "parking", "days": 1, "model": "linear"}
TASKS = {**dict.fromkeys(LEARNERS, SINUSOIDS), "ridge": LINEAR}
SOURCES, ROUNDS, ITERATIONS, CHECKPOINT_EVERY = 3, 4, 5, 3


def options(method: str, task: dict[str, object], **more: Any) -> LearningOptions:
    small = {"iterations_per_round": ITERATIONS, "adapt_iterations": 1 if method == "ridge" else 4, "batch": 8, "adapt_batch": 8}
    return LearningOptions.model_validate({"learner": method, "task": task, **small, **more})


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize(("method", "task"), [*TASKS.items(), ("admm", PARKING)])
def test_restored_at_any_iteration_of_any_job_it_ends_alike(method: str, task: dict[str, object], role: Role) -> None:
    """Jobs this short are restored at each of their iterations; the second job shows what the first one leaves to it."""
    found = list(findings(maker(options(method, task), role), role))
    assert [finding.fault for finding in found] == [None] * 7


def test_another_process_ends_alike() -> None:
    """One method stands for all, for they differ in their equations alone: ADMM, whose jobs hang together."""
    assert elsewhere(options("admm", SINUSOIDS), "source").fault is None


class Agent:
    """What an agent's process is to its learner: it checkpoints, dies, and is built anew."""

    def __init__(self, chosen: LearningOptions, name: str, index: int) -> None:
        self._build = lambda: load_learner(chosen, name=name, role="source", index=index)
        self._learner: Learner = self._build()
        self._record = (*self._learner.state(), -1, 0)

    def contribution(self, job: Job, theta: Tensors, deaths: list[int]) -> Contribution:
        """The round's; after each of these numbers of steps in it, the process dies and the next one goes on from the newest record."""
        done, total, taken, due = 0, self._learner.begin(job, theta), 0, list(deaths)
        while done < total:
            if due and taken == due[0]:
                due.pop(0)
                self._learner = self._build()
                tensors, extra, round_, done = self._record
                self._learner.restore(tensors, extra)
                if round_ != job.round:  # the round before was the last that was checkpointed
                    done = 0
                    assert self._learner.begin(job, theta) == total
            self._learner.step()
            taken, done = taken + 1, done + 1
            if done % CHECKPOINT_EVERY == 0 or done == total:
                self._record = (*self._learner.state(), job.round, done)
        return self._learner.finish()


def trained(method: str, deaths: dict[tuple[int, int], list[int]]) -> str:
    """The digest of theta after all rounds; deaths: by (round, agent), after how many steps."""
    chosen = options(method, TASKS[method])
    agents = [Agent(chosen, f"agent-{index}", index) for index in range(SOURCES)]
    aggregator = Aggregator("cpu", "sgd", 0.01 if method in SENDS_GRADIENTS else 1.0, 0.0, "samples")
    theta = load_learner(chosen, name="agent-0", role="source", index=0).initial_parameters(7)
    for round_ in range(ROUNDS):
        contributions = {}
        for index, agent in enumerate(agents):
            one = agent.contribution(Job("train", round_, 7), theta, deaths.get((round_, index), []))
            contributions[agent_id("fmrec", f"agent-{index}")] = (one.tensors, one.samples, 1.0)
        theta = aggregator.aggregate(theta, contributions)[0]
    return digest(theta)


@pytest.mark.parametrize("method", LEARNERS)
def test_theta_is_the_same_bit_for_bit_whoever_dies_when(method: str) -> None:
    """At its first step of a round an agent has the round before's record alone; twice in a round it dies in a job that was restored."""
    draw = random.Random(method)
    deaths = {(round_, draw.randrange(SOURCES)): sorted(draw.sample(range(ITERATIONS), 2)) for round_ in range(ROUNDS)}
    deaths[2, 0], deaths[3, 1] = [0], [0, 4]
    assert trained(method, deaths) == trained(method, {})


def test_without_its_dual_an_agent_of_admm_spoils_theta() -> None:
    """Why recovery must bring it back: the run of one that came back with nothing is another run."""
    chosen = options("admm", SINUSOIDS)
    kept, lost = Agent(chosen, "agent-0", 0), Agent(chosen, "agent-0", 0)
    theta = load_learner(chosen, name="agent-0", role="source", index=0).initial_parameters(7)
    for agent in (kept, lost):
        agent.contribution(Job("train", 0, 7), theta, [])
    lost = Agent(chosen, "agent-0", 0)
    ends = [digest(agent.contribution(Job("train", 1, 7), theta, []).tensors) for agent in (kept, lost)]
    assert ends[0] != ends[1]


def test_a_state_of_another_method_is_refused() -> None:
    reptile = load_learner(options("reptile", SINUSOIDS), name="a", role="source", index=0)
    admm = load_learner(options("admm", SINUSOIDS), name="a", role="source", index=0)
    admm.begin(Job("train", 0, 0), admm.initial_parameters(0))
    with pytest.raises(LearnerError, match="a runs reptile and cannot restore a state of admm: set learner to that"):
        reptile.restore(*admm.state())
