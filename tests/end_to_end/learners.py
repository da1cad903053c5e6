"""Learners of the tests' own, loaded by agents as `tests.end_to_end.learners:...`."""

from __future__ import annotations

from fmrec_agent.learning.learner import Learner, Role
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions

DIVERGING = "agent-1"
ABSURD_RATE = 1e30


def one_diverges(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    """MAML; in one agent with an inner rate at which its loss overflows."""
    changes: dict[str, object] = {"learner": "maml"}
    if name == DIVERGING:
        changes["inner_rate"] = ABSURD_RATE
    return load_learner(options.model_copy(update=changes), name=name, role=role, index=index)
