"""MAML: find an initialisation from which one gradient step on a new task's few data goes far (Finn et al., ICML 2017).

    min over theta of  sum_i omega_i L(phi_i, query_i),   phi_i = theta - alpha grad L(theta, support_i),   omega_i = |D_i| / sum |D|

A draw yields the meta-gradient at theta, (I - alpha H(theta, support)) grad L(phi, query); with several inner steps the chain
has one factor a step. As FedMeta sends it (Chen et al., arXiv 1802.07876, algorithm 1: FedMeta with MAML), the contribution is the
meta-gradient, and the manager steps. With step_losses the objective is sum_j w_j L(phi_j, query), one weight for each inner step.

Server: weighting samples; FedMeta's outer step is sgd or adam with the rate beta. Options: inner_rate is alpha, inner_steps, first_order,
step_losses.
"""

from __future__ import annotations

from fmrec_agent.learning.gradient_learner import MeanLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, meta_gradient
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class MAML(MeanLearner):
    method = "maml"

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        options = self._options
        return meta_gradient(
            task, parameters, support, query, rate=options.inner_rate, weights=options.step_weights, first_order=options.first_order
        )
