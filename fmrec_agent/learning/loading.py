"""Which learner an agent runs: one of the known methods by name, or anything that follows the contract as `module:attribute`.

The attribute is called as `attribute(options, name=..., role=..., index=...)` and returns a Learner: a Learner class or a
function. It may call `load_task` for the task that the options describe. A module is looked for in the working directory too, after all
other places. torch is imported only when a known method is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fmrec_agent.learning.learner import Learner, LearnerError, Role
from fmrec_agent.learning.options import LearningOptions, OmniglotOptions, ParkingOptions, SyntheticOptions
from fmrec_agent.learning.stranger import told

if TYPE_CHECKING:
    from fmrec_agent.learning.gradient_learner import GradientLearner
    from fmrec_agent.learning.task import SourceTask, TargetTask


class Factory(Protocol):
    def __call__(self, options: LearningOptions, *, name: str, role: Role, index: int) -> Learner: ...


def load_learner(options: LearningOptions, *, name: str, role: Role, index: int) -> Learner:
    """The learner of agent `name`, the `index`-th (from 0) of its role.

    LearnerError where the learner is unknown, cannot be imported or cannot be made, and where its data is not to be had.
    """
    if options.learner in LEARNERS:
        return load_method(options.learner)(options, load_task(options, role=role, index=index), name=name)
    factory = _factory(options.learner)
    try:
        learner = factory(options, name=name, role=role, index=index)
    except LearnerError:
        raise
    except (Exception, SystemExit) as error:  # it is a stranger's code, and may raise anything
        raise LearnerError(
            f"learner {options.learner!r} cannot be made ({told(error)}): "
            "mend it; it is called as (options, name=..., role=..., index=...)"
        ) from error
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
    if isinstance(options.task, SyntheticOptions):
        from fmrec_agent.learning.tasks.synthetic import synthetic_task

        return synthetic_task(options, options.task, role=role, index=index)
    if isinstance(options.task, OmniglotOptions):
        from fmrec_agent.learning.tasks.omniglot import omniglot_task

        return omniglot_task(options, options.task, role=role, index=index)
    from fmrec_agent.learning.tasks.sinusoid import sinusoid_task

    return sinusoid_task(options, options.task, role=role, index=index)


LEARNERS: Mapping[str, str] = {
    "maml": "maml:MAML",
    "fomaml": "fomaml:FOMAML",
    "meta-sgd": "meta_sgd:MetaSGD",
    "reptile": "reptile:Reptile",
    "per-fedavg": "per_fedavg:PerFedAvg",
    "lin": "lin:Lin",
    "admm": "admm:ADMM",
    "fedavg": "fedavg:FedAvg",
    "ridge": "ridge:Ridge",
}
"""Module and class of each method, in methods/; its options are in options.METHODS."""


def load_method(name: str) -> type[GradientLearner]:
    """The class of the method of this name, one of LEARNERS."""
    module, _, attribute = LEARNERS[name].partition(":")
    method: type[GradientLearner] = getattr(importlib.import_module(f"fmrec_agent.learning.methods.{module}"), attribute)
    return method


def _factory(name: str) -> Factory:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        near = difflib.get_close_matches(name, LEARNERS, n=1, cutoff=0.0)[0]
        raise LearnerError(
            f"there is no learner {name!r}: "
            f"did you mean {near!r}? Known are {', '.join(LEARNERS)}; others as module:attribute"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise LearnerError(f"learner {name!r} cannot be imported ({error}): install it, or correct learner") from error
    except (Exception, SystemExit) as error:  # it is a stranger's code, and may raise anything
        raise LearnerError(f"learner {name!r} cannot be imported ({told(error)}): mend its module") from error
    factory: Factory | None = getattr(module, attribute, None)
    if factory is None:
        near = ", ".join(difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.0))
        raise LearnerError(f"learner {name!r}: module {module_name} has no {attribute!r}: did you mean {near!r}?")
    if not callable(factory):
        raise LearnerError(f"learner {name!r} is a {type(factory).__name__}: name a Learner class, or a function that makes a Learner")
    return factory
