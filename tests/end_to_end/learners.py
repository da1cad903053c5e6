"""Learners of the tests' own, loaded by agents as `tests.end_to_end.learners:...`."""

from __future__ import annotations

import time

from fmrec_agent.learning.learner import Contribution, Job, Learner, Role, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions

DIVERGING = "agent-1"
ABSURD_RATE = 1e30
STRAGGLER, SLOW_ROUND, SLOW_STEP_S = "agent-1", 1, 2.0


def one_diverges(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    """MAML; in one agent with an inner rate at which its loss overflows."""
    changes: dict[str, object] = {"learner": "maml"}
    if name == DIVERGING:
        changes["inner_rate"] = ABSURD_RATE
    return load_learner(options.model_copy(update=changes), name=name, role=role, index=index)


def one_straggles(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    """MAML; one agent is slow in one round."""
    learner = load_learner(options.model_copy(update={"learner": "maml"}), name=name, role=role, index=index)
    return Straggler(learner) if name == STRAGGLER else learner


class Straggler(Learner):
    """A learner that is slow in SLOW_ROUND, as on a machine that does something else then."""

    def __init__(self, learner: Learner) -> None:
        self.role = learner.role
        self._learner = learner
        self._round = -1

    def initial_parameters(self, seed: int) -> Tensors:
        return self._learner.initial_parameters(seed)

    def begin(self, job: Job, theta: Tensors) -> int:
        self._round = job.round
        return self._learner.begin(job, theta)

    def step(self) -> float:
        if self._round == SLOW_ROUND:
            time.sleep(SLOW_STEP_S)
        return self._learner.step()

    def finish(self) -> Contribution:
        return self._learner.finish()

    def state(self) -> tuple[Tensors, bytes]:
        return self._learner.state()

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        self._learner.restore(tensors, extra)
