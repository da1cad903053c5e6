"""Per-FedAvg: local steps down MAML's objective, then an average (Fallah et al., NeurIPS 2020, algorithm 1).

    local <- local - beta (I - alpha H(local, D'')) grad L(local - alpha grad L(local, D), D'), tau steps;   theta <- mean_i local_i

Section 5 there has two ways round the Hessian, which the option `hessian` chooses: "none" leaves it out (FO), "free" takes
H d as a difference of two gradients over delta (HF; meta_gradient.py, third form). D is the draw's support batch and D' its query
batch. D'' is D here, and not a third batch: a draw has two, and a second draw may be of other tasks. So HF tends to MAML's gradient
of the draw.

Server: sgd with server_rate 1, weighting uniform (the paper's agents count alike). Options: inner_rate is alpha, local_rate is beta,
iterations_per_round is tau, hessian, delta.
"""

from __future__ import annotations

from fmrec_agent.learning.gradient_learner import LocalLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, hessian_free_gradient, meta_gradient
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class PerFedAvg(LocalLearner):
    method = "per-fedavg"

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        rate = self._options.inner_rate
        if self._options.hessian == "none":
            return meta_gradient(task, parameters, support, query, rate=rate, weights=(1.0,), first_order=True)
        return hessian_free_gradient(task, parameters, support, query, rate=rate, delta=self._options.delta)
