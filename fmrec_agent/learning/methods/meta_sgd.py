"""Meta-SGD: the initialisation and a learning rate for each parameter, learnt together (Li et al., arXiv 1707.09835, algorithms 1 and 2).

    phi_i = theta - a o grad L(theta, support_i);   min over (theta, a) of  sum_i omega_i L(phi_i, query_i)

o is the elementwise product; a has theta's shapes, and its signs are free. What is sent, aggregated and replicated is (theta, a): beside
each tensor of the model stands `rate/<name>`, which no model sees. FedMeta (Chen et al., arXiv 1802.07876) runs it in the same way.
The rates start at random in [rate_min, rate_max], the paper's [0.005, 0.1], from the seed. A target adapts by its
rates (adapt_optimizer "learnt"), theta <- theta - a o grad L(theta, adaptation data); that they were learnt for.

With log_rates, `rate/<name>` holds log a: a stays positive, and a step of the server's Adam changes it by a factor. A step on a itself is
as long as the server's rate, often many times a, and with several inner steps the next phi is out of bounds. Our own.

Server: weighting samples, sgd or adam with the outer rate beta. Options: inner_steps, first_order, step_losses (as for MAML), rate_min,
rate_max, log_rates; without learn_rates the rates get no gradient and stay, and with rate_min = rate_max = alpha that is MAML.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmrec_agent.learning.gradient_learner import MeanLearner
from fmrec_agent.learning.meta_gradient import MetaGradient, leaves, loss_on_the_way, mean_gradient, spread
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


def rate(name: str) -> str:
    """The name of a tensor's rates."""
    return f"rate/{name}"


class MetaSGD(MeanLearner):
    method = "meta-sgd"
    adapt_optimizers = ("learnt", "adam", "sgd")

    def _made(self, seed: int) -> dict[str, Tensor]:
        generator, model = stream("meta-sgd rates", seed), super()._made(seed)
        between = (self._options.rate_min, self._options.rate_max)
        rates = {rate(key): torch.tensor(generator.uniform(*between, value.shape), dtype=value.dtype) for key, value in model.items()}
        return {**model, **({key: value.log() for key, value in rates.items()} if self._options.log_rates else rates)}

    def _rate(self, learnt: Parameters, key: str) -> Tensor:
        """a of a tensor of the model."""
        held = learnt[rate(key)]
        return held.exp() if self._options.log_rates else held

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        options = self._options
        learnt = leaves(parameters)
        model = {key: learnt[key] for key in self._model_keys}
        rates = {key: self._rate(learnt, key) for key in self._model_keys}
        start = spread(task, model, support)
        differentiable = not options.first_order
        loss = loss_on_the_way(task, start, support, query, rates, options.step_weights, differentiable=differentiable)
        found = mean_gradient(loss, learnt)
        if not options.learn_rates:
            for key in rates:
                found.gradient[rate(key)].zero_()
        return found

    def _descend(self, gradient: Parameters) -> None:
        if self._options.adapt_optimizer != "learnt":
            super()._descend(gradient)
            return
        theta = self._groups["theta"]
        for key, value in gradient.items():
            theta[key] -= self._rate(theta, key) * value
