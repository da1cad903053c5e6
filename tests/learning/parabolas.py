"""Tasks whose every gradient is known on paper, for the tests of methods."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task


class Quadratic(Task):
    """L(theta, (curvature, centre)) = curvature (theta - centre)^2 / 2."""

    samples = 7
    label = "a parabola"

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        return {"theta": torch.tensor([2.0 + seed], dtype=torch.float64)}

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        curvature, centre = batch
        return (curvature * (parameters["theta"] - centre) ** 2 / 2).mean()


class QuadraticSource(Quadratic, SourceTask):
    """support: curvature 3, centre 1, unless another is given. query: curvature 5, centre -1."""

    def __init__(self, centre: float = 1.0, samples: int = 7) -> None:
        self._centre = centre
        self.samples = samples

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        return parabola(3.0, self._centre), parabola(5.0, -1.0)


class QuadraticTarget(Quadratic, TargetTask):
    milestones = (1,)

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        return parabola(3.0, 1.0)

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        return float(self.loss(parameters, parabola(3.0, 1.0))), {"distance": float(parameters["theta"]) - 1.0}


def parabola(curvature: float, centre: float) -> Batch:
    return torch.tensor([curvature], dtype=torch.float64), torch.tensor([centre], dtype=torch.float64)
