"""The plug-in contract: what a learning method must offer so that FMRec can train it and recover it.

A learner works in *jobs* and a job in *iterations*. Between any two iterations the agent may take `state()`, and a new process
that is given those bytes through `restore()` must go on as if nothing had happened: the same iterations, bit for bit. That is
all that exact recovery (DESIGN, promise P5) asks of a learner:

1. `state()` holds everything that the next iteration reads and that `__init__`'s arguments do not fix: parameters under
   way, accumulated gradients, optimizer moments, the random generator and the position in the data order.
2. `step()` is deterministic on one kind of device: no clock, no global random source, no dependence on other processes.
3. `initial_parameters(seed)` is the same in every agent: names, shapes, dtypes and values.

conformance.py checks this of any learner (`fmrec-agent check-learner`).

Everything crosses this border as numpy arrays by name, so that a learner need not be torch and the overlay need not know.
One learner is driven by one thread, off the event loop, which has file descriptors of its own: what a learner opens, it closes.

Where one launcher starts several agents, it builds a learner of each role, begins a job and iterates once, before it forks: so `__init__`,
`begin` and the first `step` leave nothing behind in the process that a fork can't go on with. Where that is tried and fails, each
agent begins for itself, which takes a little longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Tensors = Mapping[str, np.ndarray[Any, Any]]
JobKind = Literal["train", "adapt"]
Role = Literal["source", "target"]


class LearnerError(Exception):
    """The learner cannot be built or cannot go on: one sentence that says what, where and what to do."""


class LearnerFailed(LearnerError):
    """It raised what it does not tell of itself: an accident, which another life may be spared."""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work from the manager: `train` yields a contribution to a round, `adapt` fits a target and measures it.

    `seed` is the run's seed; a learner derives its streams from (seed, its agent's name), never from the process.
    """

    kind: JobKind
    round: int
    seed: int


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a finished job yields.

    tensors: for `train` the meta-gradient, with theta's names, shapes and dtypes; for `adapt` the adapted parameters.
    loss: the query loss (train) or test loss (adapt), in the task's own unit; not finite means that the job failed.
    samples: |D_i|, the number of local samples, for omega_i = |D_i| / sum |D|.
    metrics: further figures by name, units last (`rmse_pp`, `persistence_rmse_pp`).
    """

    tensors: Tensors
    loss: float
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Learner(ABC):
    """One agent's learning; loading.py builds it once in each process, from (options, name, role, index)."""

    role: Role

    @abstractmethod
    def initial_parameters(self, seed: int) -> Tensors:
        """theta_0, from the seed alone: every agent of a tree returns equal bytes."""

    @abstractmethod
    def begin(self, job: Job, theta: Tensors) -> int:
        """Start `job` from `theta` and return its number of iterations (at least 1).

        What earlier jobs left behind (duals, say) stays; what belongs to one job is made anew. The same round begun again from the same
        theta is the same job, so what a job leaves to others counts from the next round on. A learner whose jobs depend on nothing
        earlier (a stream of chance for each job, named by run seed, agent, kind and round) is exact even when all its records are lost.
        """

    @abstractmethod
    def step(self) -> float:
        """One iteration of the job that was begun or restored; returns its loss."""

    @abstractmethod
    def finish(self) -> Contribution:
        """After the last iteration: what the job yields. Changes nothing that `state()` holds."""

    @abstractmethod
    def state(self) -> tuple[Tensors, bytes]:
        """A copy of all that later iterations and jobs read: (tensors by name, anything else as bytes)."""

    @abstractmethod
    def restore(self, tensors: Tensors, extra: bytes) -> None:
        """Become the learner whose `state()` returned these; LearnerError where they are not of this learner."""
