"""MAML's sinusoid regression (Finn et al., ICML 2017, section 5.1): y = A sin(x - p), a new amplitude and phase in every task.

A in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform; the model is an MLP of two hidden layers (40 wide and ReLU there; `activation`
offers SiLU, whose gradients are smooth), the loss squared error. Each iteration of a source draws fresh sinusoids, so sources differ by
their streams alone. A target has one sinusoid, by its index, and K points of it to adapt on; it is measured on an even grid over the
range, also after 1 and 10 steps, as the paper's figure does (set adapt_optimizer to sgd and adapt_rate to inner_rate to repeat that
figure).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fmrec_agent.learning.learner import Role
from fmrec_agent.learning.options import LearningOptions, SinusoidOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task

AMPLITUDE, PHASE, RANGE = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)
TEST_POINTS = 100
ACTIVATIONS = {"relu": torch.relu, "silu": functional.silu}


class Sinusoid(Task):
    """The model and its loss; `SinusoidSource` and `SinusoidTarget` add the data."""

    def __init__(self, options: SinusoidOptions, dtype: torch.dtype) -> None:
        self._options = options
        self._dtype = dtype
        self._activation = ACTIVATIONS[options.activation]

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Normal weights of variance 2 / fan-in (He et al. 2015), zero biases."""
        generator, width = stream("sinusoid parameters", seed), self._options.hidden
        named: dict[str, Tensor] = {}
        for layer, (fan_in, fan_out) in enumerate(((1, width), (width, width), (width, 1))):
            weight = generator.standard_normal((fan_out, fan_in)) * math.sqrt(2 / fan_in)
            named[f"layer{layer}.weight"] = torch.tensor(weight, dtype=self._dtype)
            named[f"layer{layer}.bias"] = torch.zeros(fan_out, dtype=self._dtype)
        return named

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        """Mean squared error of a batch (x [n, 1], y [n, 1])."""
        values, targets = batch
        for layer in range(3):
            values = functional.linear(values, parameters[f"layer{layer}.weight"], parameters[f"layer{layer}.bias"])
            values = self._activation(values) if layer < 2 else values
        return functional.mse_loss(values, targets)

    def _points(self, x: npt.NDArray[np.float64], amplitude: npt.NDArray[np.float64], phase: npt.NDArray[np.float64]) -> Batch:
        return torch.tensor(x, dtype=self._dtype), torch.tensor(amplitude * np.sin(x - phase), dtype=self._dtype)


class SinusoidSource(Sinusoid, SourceTask):
    """A source: `meta_batch` fresh sinusoids at each draw, K support and `queries` query points of each."""

    def __init__(self, options: SinusoidOptions, dtype: torch.dtype) -> None:
        super().__init__(options, dtype)
        self.meta_batch = options.meta_batch
        self.samples = options.meta_batch * (options.shots + options.queries)
        self.label = "sinusoids, fresh at each draw"

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        tasks, shots = self.meta_batch, self._options.shots
        amplitude, phase = generator.uniform(*AMPLITUDE, (tasks, 1, 1)), generator.uniform(*PHASE, (tasks, 1, 1))
        x, y = self._points(generator.uniform(*RANGE, (tasks, shots + self._options.queries, 1)), amplitude, phase)
        support, query = (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])
        if tasks > 1:
            return support, query
        return (support[0][0], support[1][0]), (query[0][0], query[1][0])


class SinusoidTarget(Sinusoid, TargetTask):
    """A target: the index-th sinusoid of the data seed, K points of it, and its grid of test points."""

    milestones = (1, 10)

    def __init__(self, options: SinusoidOptions, dtype: torch.dtype, index: int) -> None:
        super().__init__(options, dtype)
        generator = stream("sinusoid target", options.data_seed, index)
        amplitude, phase = generator.uniform(*AMPLITUDE, (1, 1)), generator.uniform(*PHASE, (1, 1))
        self._adaptation = self._points(generator.uniform(*RANGE, (options.shots, 1)), amplitude, phase)
        self._test = self._points(np.linspace(*RANGE, TEST_POINTS)[:, None], amplitude, phase)
        self.samples = options.shots
        self.label = f"sinusoid {index}: y = {amplitude.item():.2f} sin(x - {phase.item():.2f})"

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        """All K points: there are too few to draw from."""
        return self._adaptation

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """Mean squared error on the grid, as loss and as `mse`."""
        with torch.no_grad():
            loss = float(self.loss(parameters, self._test))
        return loss, {"mse": loss}


def sinusoid_task(options: LearningOptions, task: SinusoidOptions, *, role: Role, index: int) -> SourceTask | TargetTask:
    dtype: torch.dtype = getattr(torch, options.dtype)
    return SinusoidSource(task, dtype) if role == "source" else SinusoidTarget(task, dtype, index)
