"""The platform-aided method of Lin, Yang and Zhang (ICDCS 2020, algorithm 1): T_0 steps of MAML at each node, then a weighted average.

    phi_i = local_i - alpha grad L(local_i, support_i)
    local_i <- local_i - beta grad over local_i of L(phi_i, query_i), T_0 steps
    theta   <- sum_i omega_i local_i,   omega_i = |D_i| / sum |D|

The gradient goes through the inner step (with first_order it does not). Where the paper's node uses all its data in each step, a draw
is what the task gives: batches of the options' size.

Server: sgd with server_rate 1, weighting samples. Options: inner_rate is alpha, local_rate is beta, iterations_per_round is T_0,
first_order.
"""

from __future__ import annotations

from fmrec_agent.learning.gradient_learner import LocalLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, meta_gradient
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class Lin(LocalLearner):
    method = "lin"

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        options = self._options
        return meta_gradient(task, parameters, support, query, rate=options.inner_rate, weights=(1.0,), first_order=options.first_order)
