"""Ridge regression towards a prior learnt from the sources, in closed form, for models whose loss is quadratic in their parameters.

With L(w) = w^T H w - 2 s^T w + c on a batch (so H is half of the Hessian, s minus half of the gradient at 0: F^T F / n and
F^T y / n of a linear model), and over one's n samples

    prior       theta_0 = H^-1 s,  H = sum_i omega_i H_i,  s = sum_i omega_i s_i: the least squares of all sources' support together
    adaptation  w = argmin  n L(w) + lambda |w - theta_0|^2  =  theta_0 + (n H + lambda I)^-1 n (s - H theta_0)

which is the posterior mean under a Gaussian prior (the inner solver of Bertinetto et al., ICLR 2019, R2-D2, about a learnt centre).
The strength lambda is learnt too: each source adapts on its own support tasks by each lambda of STRENGTHS and sends the query
losses; a target takes the lambda of the least mean. A source's prior holds its own support but never its query.

What is sent, aggregated and replicated is (H, s, query losses), as theta minus one's own. Server: weighting samples, sgd with rate 1,
so that the next theta is the weighted mean. The first round yields the prior, the second the losses under it; later ones change
nothing. No data but these sums leaves an agent. A target needs one iteration, on all of its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmrec_agent.learning.gradient_learner import MeanLearner
from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.meta_gradient import MetaGradient
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
UNABLE_BUT = {"gradient_norm_max": 0.0, "adapt_iterations": 1, "adapt_optimizer": "adam"}
"""Options of descent: a bound would spoil the sums, a second solution count the data twice, and no optimizer but the default is taken."""
JITTER = 1e-12
"""Added to a prior's H: features that no source has ever shown get the weight 0."""


class Expansion(NamedTuple):
    """A quadratic loss: L(w) = w^T curvature w - 2 slope^T w + constant; [P, P] and [P], the parameters end to end."""

    curvature: Tensor
    slope: Tensor


class Ridge(MeanLearner):
    method = "ridge"
    sends_difference = True

    def __init__(self, options: LearningOptions, task: Task, *, name: str) -> None:
        for key, able in UNABLE_BUT.items():
            if (asked := getattr(options, key)) != able:
                raise LearnerError(f"ridge is solved in closed form, and so knows no {key} = {asked!r}: set it to {able!r}")
        self._shapes = {key: value.shape for key, value in task.initial_parameters(0).items()}
        if isinstance(task, SourceTask) and not self._is_quadratic(task):
            raise LearnerError(
                f"ridge is for losses that are quadratic in the model's parameters, which that of task {options.task.name!r} is not as it "
                'is set: choose a linear model (task "parking" has model = "linear"), or another learner'
            )
        super().__init__(options, task, name=name)

    def _is_quadratic(self, task: SourceTask) -> bool:
        """Is its gradient affine along a line? By one batch, before anything of the size P x P is made."""
        generator = stream("ridge", "is the loss quadratic?")
        support, _ = task.draw(generator)
        batch = support if task.meta_batch == 1 else (support[0][0], support[1][0])
        start = flat(task.initial_parameters(0))
        step = torch.as_tensor(generator.normal(size=len(start)), dtype=start.dtype)
        gradients = [torch.func.grad(partial(self._loss, task, batch=batch))(start + turn * step) for turn in (0, 1, 2)]
        return torch.allclose(gradients[0] + gradients[2], 2 * gradients[1], rtol=1e-3, atol=1e-4)

    def _made(self, seed: int) -> dict[str, Tensor]:
        """A prior of H = I and s = the model's own start, so that theta_0 is that."""
        start = flat(self._task.initial_parameters(seed))
        return {
            "curvature": torch.eye(len(start), dtype=start.dtype),
            "slope": start,
            "query_loss": torch.zeros(len(STRENGTHS), dtype=start.dtype),
        }

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        if task.meta_batch == 1:
            support, query = ((inputs[None], targets[None]) for inputs, targets in (support, query))
        episodes = list(zip(*support, *query, strict=True))
        prior = Expansion(parameters["curvature"], parameters["slope"])
        own = [self._expansion(task, (inputs, targets)) for inputs, targets, _, _ in episodes]
        query_loss = torch.zeros_like(parameters["query_loss"])
        for expansion, (_, targets, *query_batch) in zip(own, episodes, strict=True):
            adapted = torch.stack([posterior(prior, expansion, len(targets), strength) for strength in STRENGTHS])
            query_loss += torch.func.vmap(partial(self._loss, task, batch=query_batch))(adapted) / len(own)
        mean = Expansion(*(torch.stack(each).mean(0) for each in zip(*own, strict=True)))
        sent = {**mean._asdict(), "query_loss": query_loss}
        return MetaGradient({key: parameters[key] - sent[key] for key in parameters}, float(query_loss.min()))

    def _adapt(self, generator: np.random.Generator) -> float:
        """The posterior takes the prior's place: its H is n H + lambda I, its s what makes its centre w."""
        assert isinstance(self._task, TargetTask)
        batch, theta = self._moved(self._task.draw_adaptation(generator)), self._groups["theta"]
        strength, samples = STRENGTHS[int(theta["query_loss"].argmin())], len(batch[1])
        own = self._expansion(self._task, batch)
        centre = posterior(Expansion(theta["curvature"], theta["slope"]), own, samples, strength)
        theta["curvature"] = samples * own.curvature + strength * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
        theta["slope"] = theta["curvature"] @ centre
        return float(self._loss(self._task, centre, batch))

    def _model(self) -> dict[str, Tensor]:
        theta = self._groups["theta"]
        return self._named(solution(theta["curvature"], theta["slope"]))

    def _named(self, vector: Tensor) -> dict[str, Tensor]:
        parts = torch.split(vector, [shape.numel() for shape in self._shapes.values()])
        return {key: part.reshape(shape) for (key, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _loss(self, task: Task, vector: Tensor, batch: Sequence[Tensor]) -> Tensor:
        return task.loss(self._named(vector), (batch[0], batch[1]))

    def _expansion(self, task: Task, batch: Batch) -> Expansion:
        """Of the batch's loss at 0, exact where it is quadratic."""
        origin = torch.zeros_like(self._groups["theta"]["slope"])
        loss = partial(self._loss, task, batch=batch)
        return Expansion(torch.func.hessian(loss)(origin) / 2, -torch.func.grad(loss)(origin) / 2)


def flat(parameters: Parameters) -> Tensor:
    return torch.cat([value.flatten() for value in parameters.values()])


def solution(curvature: Tensor, slope: Tensor) -> Tensor:
    """The least of the quadratic."""
    least: Tensor = torch.linalg.solve(curvature + JITTER * torch.eye(len(slope), dtype=slope.dtype, device=slope.device), slope)
    return least


def posterior(prior: Expansion, own: Expansion, samples: int, strength: float) -> Tensor:
    """w of the formula above."""
    centre = solution(*prior)
    precision = samples * own.curvature + strength * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
    change: Tensor = torch.linalg.solve(precision, samples * (own.slope - own.curvature @ centre))
    return centre + change
