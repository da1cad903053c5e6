"""Synthetic(alpha, beta): devices that differ by a known amount (Li et al., Federated optimization in heterogeneous networks, MLSys 2020,
section 5.1 and appendix C.1).

A device k draws, once,

    u_k ~ N(0, alpha),  W_k ~ N(u_k, 1) in R^(10 x 60),  b_k ~ N(u_k, 1) in R^10      its true model
    B_k ~ N(0, beta),   v_k ~ N(B_k, 1) in R^60                                       its law of inputs
    x ~ N(v_k, Sigma),  Sigma = diag(j^-1.2),  y = argmax(W_k x + b_k)                its samples

so alpha is how far models differ, and beta how far inputs do. alpha and beta are standard deviations, as in the paper's own code. Its
number of samples is 50 + exp(4 + 2 n), n standard normal (the power law of the paper), 10 000 at most here.
iid: W and b are drawn once for all devices, and
v is 0. What is learnt is a multinomial logistic regression, y = argmax(W x + b), from zero.

A source's support is the first half of its samples and its query the second; a target adapts on its first `shots` samples and is tested on
the others. A device is named by (data seed, role, index): sources and targets never share one. Metric: accuracy in per cent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fmrec_agent.learning.learner import Role
from fmrec_agent.learning.options import LearningOptions, SyntheticOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, sample
from fmrec_agent.learning.tasks.classification import Classification

DIMENSION, CLASSES = 60, 10
SAMPLES_MIN, SAMPLES_MAX = 50, 10_000


class Logistic(Classification):
    """The model; `SyntheticSource` and `SyntheticTarget` add the data."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Zero, whatever the seed: the loss is convex."""
        return {"weight": torch.zeros(CLASSES, DIMENSION, dtype=self._dtype), "bias": torch.zeros(CLASSES, dtype=self._dtype)}

    def logits(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """[n, 10] for inputs [n, 60]."""
        return functional.linear(inputs, parameters["weight"], parameters["bias"])


class SyntheticSource(Logistic, SourceTask):
    def __init__(self, device: Batch, label: str, *, batch: int, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        half = len(device[1]) // 2
        self._support, self._query = (device[0][:half], device[1][:half]), (device[0][half:], device[1][half:])
        self._batch = batch
        self.label = label
        self.samples = len(device[1])

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        return sample(self._support, self._batch, generator), sample(self._query, self._batch, generator)


class SyntheticTarget(Logistic, TargetTask):
    def __init__(self, device: Batch, label: str, *, shots: int, batch: int, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._adaptation, self._test = (device[0][:shots], device[1][:shots]), (device[0][shots:], device[1][shots:])
        self._batch = batch
        self.label = label
        self.samples = shots

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        return sample(self._adaptation, self._batch, generator)

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """Cross-entropy and `accuracy_percent` on all but the adaptation's samples."""
        return self.measured(parameters, self._test)


def drawn(options: SyntheticOptions, role: Role, index: int, dtype: torch.dtype) -> Batch:
    """That device's samples: inputs [n, 60] and classes [n]."""
    generator = stream("synthetic device", options.data_seed, role, index)
    number = min(SAMPLES_MIN + int(generator.lognormal(4, 2)), SAMPLES_MAX)
    if options.iid:
        shared = stream("synthetic model", options.data_seed)
        weight, bias = shared.standard_normal((CLASSES, DIMENSION)), shared.standard_normal(CLASSES)
        centre = np.zeros(DIMENSION)
    else:
        mean = options.alpha * generator.standard_normal()
        weight, bias = mean + generator.standard_normal((CLASSES, DIMENSION)), mean + generator.standard_normal(CLASSES)
        centre = options.beta * generator.standard_normal() + generator.standard_normal(DIMENSION)
    deviation = np.arange(1, DIMENSION + 1) ** (-1.2 / 2)
    inputs = centre + deviation * generator.standard_normal((number, DIMENSION))
    return torch.tensor(inputs, dtype=dtype), torch.tensor((inputs @ weight.T + bias).argmax(1))


def synthetic_task(options: LearningOptions, task: SyntheticOptions, *, role: Role, index: int) -> SourceTask | TargetTask:
    dtype: torch.dtype = getattr(torch, options.dtype)
    device = drawn(task, role, index, dtype)
    law = "iid" if task.iid else f"{task.alpha:g}, {task.beta:g}"
    label = f"device {index} of Synthetic({law})"
    if role == "source":
        return SyntheticSource(device, label, batch=options.batch, dtype=dtype)
    return SyntheticTarget(device, label, shots=task.shots, batch=options.adapt_batch, dtype=dtype)
