"""One learner that keeps every promise of the contract, and for each promise one that breaks it. No torch: they are loaded in children."""

from __future__ import annotations

import random
import time

import numpy as np

from fmrec_agent.learning.learner import Contribution, Job, Learner, Role, Tensors


class Sound(Learner):
    """Keeps every promise; those below break one each. A job has three steps, each adds a number that is drawn."""

    def __init__(self, options: object, *, name: str, role: Role, index: int) -> None:
        self.role, self.name = role, name
        self.sum, self.theta, self.done = np.zeros(2), np.zeros(2), 0

    def initial_parameters(self, seed: int) -> Tensors:
        return {"theta": np.full(2, float(seed))}

    def begin(self, job: Job, theta: Tensors) -> int:
        self.theta, self.sum, self.done = theta["theta"].copy(), np.zeros(2), 0
        return 3

    def step(self) -> float:
        self.sum += self.drawn() * self.theta
        self.done += 1
        return 1.0

    def drawn(self) -> float:
        return float(self.done)

    def finish(self) -> Contribution:
        return Contribution({"theta": self.sum.copy()}, 1.0, 3)

    def state(self) -> tuple[Tensors, bytes]:
        return {"theta": self.theta.copy(), "sum": self.sum.copy()}, bytes([self.done])

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        self.theta, self.sum, self.done = tensors["theta"].copy(), tensors["sum"].copy(), extra[0]


class DrawsFromTheGlobalSource(Sound):
    def drawn(self) -> float:
        return random.random()


class ReadsTheClock(Sound):
    def drawn(self) -> float:
        return time.perf_counter()


class Hashes(Sound):
    def drawn(self) -> float:
        return float(hash("data order") % 1000)


class ForgetsWhereItIs(Sound):
    def restore(self, tensors: Tensors, extra: bytes) -> None:
        super().restore(tensors, bytes([0]))


class ForgetsAcrossJobs(Sound):
    """What its first job leaves to the second, no state holds."""

    left, carried = 0.0, 0.0

    def begin(self, job: Job, theta: Tensors) -> int:
        self.carried, self.left = self.left, 5.0
        return super().begin(job, theta)

    def drawn(self) -> float:
        return self.carried


class ReturnsItsOwnArrays(Sound):
    def state(self) -> tuple[Tensors, bytes]:
        return {"theta": self.theta, "sum": self.sum}, bytes([self.done])


class FinishesTooWell(Sound):
    def finish(self) -> Contribution:
        self.sum /= 3
        return super().finish()


class SendsAnotherShape(Sound):
    def finish(self) -> Contribution:
        return Contribution({"theta": np.zeros(3)}, 1.0, 3)


class StartsByName(Sound):
    def initial_parameters(self, seed: int) -> Tensors:
        return {"theta": np.full(2, float(ord(self.name)))}


class MovesOnAtEachBegin(Sound):
    """What it keeps from job to job is state, but counts jobs and not rounds."""

    jobs = 0

    def begin(self, job: Job, theta: Tensors) -> int:
        self.jobs += 1
        return super().begin(job, theta)

    def drawn(self) -> float:
        return float(self.jobs)

    def state(self) -> tuple[Tensors, bytes]:
        tensors, extra = super().state()
        return tensors, extra + bytes([self.jobs])

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        super().restore(tensors, extra)
        self.jobs = extra[1]


class KeepsWhatWasGivenUp(Sound):
    """A job that is begun after one that was given up half-way goes on with that one's sum."""

    def begin(self, job: Job, theta: Tensors) -> int:
        kept = self.sum if 0 < self.done < 3 else np.zeros(2)
        total = super().begin(job, theta)
        self.sum = kept.copy()
        return total


class KeepsItsFirstTheta(Sound):
    """It is state, but restore() leaves what is there already."""

    first: float | None = None

    def begin(self, job: Job, theta: Tensors) -> int:
        self.first = float(theta["theta"][0]) if self.first is None else self.first
        return super().begin(job, theta)

    def drawn(self) -> float:
        assert self.first is not None
        return self.first

    def state(self) -> tuple[Tensors, bytes]:
        tensors, extra = super().state()
        return ({**tensors, "first": np.array([self.first])} if self.first is not None else tensors), extra

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        super().restore(tensors, extra)
        if self.first is None and "first" in tensors:
            self.first = float(tensors["first"][0])


class HasNothingToDo(Sound):
    def begin(self, job: Job, theta: Tensors) -> int:
        return 0


class SpeaksOfItsState(Sound):
    def state(self) -> tuple[Tensors, bytes]:
        return super().state()[0], "three steps"  # type: ignore[return-value]


class Raises(Sound):
    def step(self) -> float:
        raise ValueError("no data")
