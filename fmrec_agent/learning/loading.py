"""Which learner an agent runs: one of the known methods by name, or anything that follows the contract as `module:attribute`.

The attribute is called as `attribute(options, name=..., role=..., index=...)` and returns a Learner: a Learner class or a
function. It may call `load_task` for the task that the options describe. torch is imported only when a known method is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Protocol

from fmrec_agent.learning.learner import Learner, LearnerError, Role
from fmrec_agent.learning.options import LearningOptions, ParkingOptions

if TYPE_CHECKING:
    from fmrec_agent.learning.task import SourceTask, TargetTask


class Factory(Protocol):
    def __call__(self, options: LearningOptions, *, name: str, role: Role, index: int) -> Learner: ...


def load_learner(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    """The learner of agent `name`, the `index`-th (from 0) of its role.

    LearnerError where the learner is unknown or cannot be imported, and where its data is not to be had.
    """
    learner = _factory(options.learner)(options, name=name, role=role, index=index)
    if not isinstance(learner, Learner):
        raise LearnerError(
            f"{options.learner} made a {type(learner).__name__}, not a Learner: "
            "derive from fmrec_agent.learning.learner.Learner"
        )
    return learner


def load_task(options: LearningOptions, *, role: Role, index: int) -> SourceTask | TargetTask:
    """The data and model of the options' task. LearnerError where the data is not to be had."""
    if isinstance(options.task, ParkingOptions):
        from fmrec_agent.learning.tasks.parking import parking_task

        return parking_task(options, options.task, role=role, index=index)
    from fmrec_agent.learning.tasks.sinusoid import sinusoid_task

    return sinusoid_task(options, options.task, role=role, index=index)


def _maml(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    import torch

    from fmrec_agent.learning.maml import MAML

    # Bit for bit holds for one number of threads; and one process is one agent, of which a machine runs many.
    torch.set_num_threads(1)
    return MAML(options, load_task(options, role=role, index=index), name=name)


def _fomaml(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    return _maml(options.model_copy(update={"first_order": True}), name=name, role=role, index=index)


LEARNERS: dict[str, Factory] = {"maml": _maml, "fomaml": _fomaml}


def _factory(name: str) -> Factory:
    if name in LEARNERS:
        return LEARNERS[name]
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        near = difflib.get_close_matches(name, LEARNERS, n=1, cutoff=0.0)[0]
        raise LearnerError(
            f"there is no learner {name!r}: "
            f"did you mean {near!r}? Known are {', '.join(LEARNERS)}; others as module:attribute"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise LearnerError(f"learner {name!r} cannot be imported ({error}): install it, or correct learner") from error
    factory: Factory | None = getattr(module, attribute, None)
    if factory is None:
        near = ", ".join(difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.0))
        raise LearnerError(f"learner {name!r}: module {module_name} has no {attribute!r}: did you mean {near!r}?")
    return factory
