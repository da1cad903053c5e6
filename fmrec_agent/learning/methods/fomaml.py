"""First-order MAML: the inner gradient counts as a constant (Finn et al., ICML 2017, section 5.2).

A draw yields grad L(phi, query), taken at phi = theta - alpha grad L(theta, support): MAML's meta-gradient without the factor
I - alpha H. It costs one gradient more than plain descent.

Server: as for MAML. Options: inner_rate is alpha, inner_steps, step_losses.
"""

from __future__ import annotations

from fmrec_agent.learning.gradient_learner import MeanLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, meta_gradient
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class FOMAML(MeanLearner):
    method = "fomaml"

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        options = self._options
        return meta_gradient(task, parameters, support, query, rate=options.inner_rate, weights=options.step_weights, first_order=True)
