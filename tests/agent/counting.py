"""A learner of a few numbers for the tests of what drives learners: deterministic, with a generator whose state matters."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Tensors


class Counting(Learner):
    """Each iteration adds a draw of its generator to `w`. before_step is called in the training thread before each."""

    role = "source"

    def __init__(self, iterations: int = 10, before_step: Callable[[int], None] = lambda done: None) -> None:
        self.iterations = iterations
        self.before_step = before_step
        self.threads: set[int] = {threading.get_ident()}
        self.jobs: list[Job] = []
        self.steps = 0
        self.theta: Tensors = {}
        self._w = np.zeros(3)
        self._done = 0
        self._generator = np.random.Generator(np.random.PCG64(7))

    def initial_parameters(self, seed: int) -> Tensors:
        self.threads.add(threading.get_ident())
        return {"w": np.full(3, float(seed))}

    def begin(self, job: Job, theta: Tensors) -> int:
        self.jobs.append(job)
        self.theta = theta
        self._w, self._done = theta["w"].copy(), 0
        return self.iterations

    def step(self) -> float:
        self.before_step(self._done)
        self.threads.add(threading.get_ident())
        self._w = self._w + self._generator.normal(size=3)
        self._done += 1
        self.steps += 1
        return float(self._w.sum())

    def finish(self) -> Contribution:
        return Contribution({"w": self._w.copy()}, float(self._w.sum()), 10)

    def state(self) -> tuple[Tensors, bytes]:
        self.threads.add(threading.get_ident())
        state: dict[str, Any] = self._generator.bit_generator.state  # type: ignore[assignment]
        return {"w": self._w.copy()}, json.dumps({"done": self._done, "random": state}).encode()

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        try:
            said = json.loads(extra)
            self._w, self._done = tensors["w"].copy(), said["done"]
            self._generator.bit_generator.state = said["random"]
        except (ValueError, KeyError) as error:
            raise LearnerError(f"this is no state of Counting: {error}") from error


class Numpys(Counting):
    """All its figures are numpy's own, as np.mean() and its kin return them."""

    def begin(self, job: Job, theta: Tensors) -> int:
        return np.int64(super().begin(job, theta))  # type: ignore[return-value]

    def step(self) -> float:
        return np.float32(super().step())  # type: ignore[return-value]

    def finish(self) -> Contribution:
        return Contribution({"w": self._w.copy()}, np.float64(0.1), np.int64(10), {"rmse_pp": np.float32(0.1)})  # type: ignore[arg-type, dict-item]


def counting(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one that trains."""
    return Counting()


def numpys(options: object, *, name: str, role: str, index: int) -> Numpys:
    """As `learning.learner`: one whose figures are numpy's."""
    return Numpys()


def diverging(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one that cannot go on in its third iteration."""

    def diverge(done: int) -> None:
        if done == 2:
            raise LearnerError("the loss diverged: lower the rate")

    return Counting(before_step=diverge)


def crashing(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one with a mistake in it."""

    def crash(done: int) -> None:
        raise ZeroDivisionError("a mistake in somebody's learner")

    return Counting(before_step=crash)


def built_late(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one that waits while it is built."""
    wait("building")
    return Counting()


def stepping_late(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one that waits in each iteration."""
    return Counting(before_step=lambda done: wait("stepping"))


def wait(where: str) -> None:
    """Say in the folder that this process runs in that it is there, and go on when somebody says so."""
    here = Path(f"{where}-{os.getpid()}")
    here.touch()
    while not here.with_suffix(".go").exists():
        time.sleep(0.01)


def thetaless(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one with a mistake in what it begins from, which nobody may ever ask it for."""

    class Thetaless(Counting):
        def initial_parameters(self, seed: int) -> Tensors:
            raise ValueError("there is no theta_0 here")

    return Thetaless()


class Unsealable(Counting):
    """What it brings has no form as bytes."""

    def initial_parameters(self, seed: int) -> Tensors:
        return {"w": np.array([object()])}

    def finish(self) -> Contribution:
        return Contribution({"w": self._w.astype(object)}, 0.5, 10)


class Measuring(Counting):
    """It measures more than a record can say."""

    def finish(self) -> Contribution:
        return Contribution({"w": self._w.copy()}, 0.5, 10, {f"m{number}": 0.5 for number in range(65)})


class Roomless(Counting):
    """There is no room for what it was."""

    def restore(self, tensors: Tensors, extra: bytes) -> None:
        raise RuntimeError("CUDA out of memory")


def roomless(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`."""
    return Roomless()


def unsealable(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`."""
    return Unsealable()


def measuring(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`."""
    return Measuring()


def folderless(options: object, *, name: str, role: str, index: int) -> Counting:
    """As `learning.learner`: one that cannot be built."""
    raise LearnerError("there is no folder data")


class Gate:
    """Holds a learner before a step of its until it is opened."""

    def __init__(self, step: int) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._step = step

    def __call__(self, done: int) -> None:
        if done == self._step and not self.open.is_set():
            self.reached.set()
            assert self.open.wait(10), f"nobody opened the gate before step {done}"
