"""A Learner of your own without torch: federated linear regression in numpy, y = a x + b, each agent's data around one line.

    fmrec-manager serve --set tree.main.task=line --set tree.main.sources_min=3 --set tree.main.targets_min=1
    fmrec-agent start --count 4 --set sources=3 --set task=line --set learning.learner=examples.numpy_learner:Line
    fmrec-agent check-learner examples.numpy_learner:Line

A source sends the mean gradient of its squared error, a target descends it. All that the next step reads is in `_tensors` (theta, and
what sums up or moves) and in `_facts` (how far the job is, and the generator), so state() and restore() are three lines each.
"""

import json

import numpy as np

from fmrec_agent.learning.learner import Contribution, Learner
from fmrec_agent.learning.streams import stream


class Line(Learner):
    """Loaded once in each process, as Line(options, name=..., role=..., index=...)."""

    def __init__(self, options, *, name, role, index):
        self.role, self._options, self._name = role, options, name
        own = stream("data of a line", role, index)
        self._x = own.uniform(-1, 1, 100)
        self._y = 2 * self._x - 1 + own.normal(0, 0.1, 100)
        self._tensors, self._facts, self._generator = {}, {}, stream("nothing yet")

    def initial_parameters(self, seed):
        return {"line": stream("theta of a line", seed).normal(size=2)}

    def begin(self, job, theta):
        self._tensors = {"line": theta["line"].copy(), "sum": np.zeros(2)}
        self._facts = {"done": 0, "loss_sum": 0.0}
        self._generator = stream(job.seed, self._name, job.kind, job.round)
        return self._options.iterations_per_round if job.kind == "train" else self._options.adapt_iterations

    def step(self):
        rows = self._generator.integers(0, len(self._x), self._options.batch)
        x, line = self._x[rows], self._tensors["line"]
        error = line[0] * x + line[1] - self._y[rows]
        gradient = 2 * np.array([(error * x).mean(), error.mean()])
        if self.role == "source":
            self._tensors["sum"] += gradient
        else:
            line -= self._options.adapt_rate * gradient
        loss = float((error**2).mean())
        self._facts["done"] += 1
        self._facts["loss_sum"] += loss
        return loss

    def finish(self):
        mean = self._facts["loss_sum"] / self._facts["done"]
        if self.role == "source":
            return Contribution({"line": self._tensors["sum"] / self._facts["done"]}, mean, len(self._x))
        error = self._tensors["line"][0] * self._x + self._tensors["line"][1] - self._y
        return Contribution({"line": self._tensors["line"].copy()}, float((error**2).mean()), len(self._x), {"mean_loss": mean})

    def state(self):
        facts = {**self._facts, "generator": self._generator.bit_generator.state}
        return {name: value.copy() for name, value in self._tensors.items()}, json.dumps(facts).encode()

    def restore(self, tensors, extra):
        self._tensors, self._facts = {name: value.copy() for name, value in tensors.items()}, json.loads(extra)
        self._generator.bit_generator.state = self._facts.pop("generator")
