"""FedAvg, the plain baseline: no meta-learning, each agent descends its own loss, and the parameters are averaged.

McMahan et al., AISTATS 2017, algorithm 1 (ClientUpdate):

    local <- local - eta grad L(local, batch), one step an iteration;   theta <- sum_i omega_i local_i,   omega_i = |D_i| / sum |D|

FedAvg knows no support and query: both batches of a draw train, and L is the mean of the two losses, over all tasks of the draw.

Server: sgd with server_rate 1, weighting samples. Options: local_rate is eta; iterations_per_round is the number of local steps u.
"""

from __future__ import annotations

import torch

from fmrec_agent.learning.gradient_learner import LocalLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, leaves, losses, spread
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class FedAvg(LocalLearner):
    method = "fedavg"

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        origin = leaves(parameters)
        copies = spread(task, origin, support)
        loss = (losses(task, copies, support) + losses(task, copies, query)).mean() / 2
        gradient = torch.autograd.grad(loss, list(origin.values()))
        return MetaGradient(dict(zip(origin, gradient, strict=True)), float(loss.detach()))
