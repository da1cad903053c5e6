"""Reptile: move the initialisation towards where a few steps on each task lead (Nichol et al., arXiv 1803.02999, algorithms 1 and 2).

    phi_0 = theta,   phi_j = phi_{j-1} - alpha grad L(phi_{j-1}, batch_j), j = 1..k,   theta <- theta + epsilon mean_i (phi_i - theta)

A draw yields theta - phi_k. Its two batches take turns (support, query, support, ...): what Reptile gains over averaged descent comes
from the steps of one task having different batches (section 5 there), and with k = 1 it is averaged descent.

Server: sgd, whose server_rate is epsilon (at 1 the next theta is the weighted mean of the phi_i); weighting uniform for the paper's mean.
Options: inner_rate is alpha, inner_steps is k. The meta-gradient of the metrics is (theta - phi_k) / (alpha k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmrec_agent.learning.gradient_learner import MeanLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, averaged, inner_steps, leaves, losses, spread
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class Reptile(MeanLearner):
    method = "reptile"
    sends_difference = True

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        start = spread(task, parameters, support)
        phi = leaves(start)
        for step in range(self._options.inner_steps):
            batch = query if step % 2 else support
            phi = leaves(inner_steps(task, phi, batch, self._options.inner_rate, 1, differentiable=False))
        with torch.no_grad():
            loss = float(losses(task, phi, query).mean())
        return MetaGradient(averaged(task, {key: start[key] - phi[key].detach() for key in start}), loss)

    def _meta_gradient(self, iterations: int) -> dict[str, Tensor]:
        length = self._options.inner_rate * self._options.inner_steps
        return {key: value / length for key, value in self._sent(iterations).items()}

    def _sent(self, iterations: int) -> dict[str, Tensor]:
        return super()._meta_gradient(iterations)
