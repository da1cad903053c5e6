"""The gradient of a loss after adaptation, over what was adapted: exactly, in first order, or by a difference of gradients.

With phi_0 = theta and phi_j = phi_{j-1} - alpha grad L(phi_{j-1}, support), after n steps phi = phi_n:

1. exact (Finn et al., ICML 2017, section 2.2): grad over theta of L(phi, query), through every inner step; one step gives
   (I - alpha H(theta, support)) grad L(phi, query).
2. first order (section 5.2 there): the inner gradients count as constants, so it is grad L(phi, query), and costs no Hessian.
3. Hessian-free (Fallah et al., NeurIPS 2020, section 5; one inner step): with d = grad L(phi, query),

       d - alpha [grad L(theta + delta d, support) - grad L(theta - delta d, support)] / (2 delta),

   which tends to the exact one as delta tends to 0, with an error of order delta^2, and needs no second derivative. Rounding
   adds about alpha / delta times the dtype's epsilon, in units of the gradient at theta: in float32, alpha = 0.01 and delta = 0.001
   that is 1e-6; a delta of 1e-5 wants float64.
4. The objective of the first two may be sum_j w_j L(phi_j, query), the multi-step loss of MAML++ (Antoniou et al., ICLR 2019, section 3),
   with weights w_1..w_n that stay: so one theta serves a target that takes one step and one that takes n. w = (0, .., 0, 1) is MAML.

A batch may hold several tasks (task.meta_batch > 1: every tensor has a leading axis). Each task then has its own copy of theta (a
view), one `torch.func.vmap` computes all losses, and what is returned is the mean over the tasks. As no task reads another's
copy, the gradient of the summed losses is every task's own. The model is a plain function, so ordinary autograd differentiates
through the inner step; `torch.func.grad` gives the same numbers in twice the time for a model this small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmrec_agent.learning.task import Batch, Parameters, SourceTask

Rates = float | Mapping[str, Tensor]
"""alpha: one for all, or by theta's names and shapes."""


class MetaGradient(NamedTuple):
    """gradient: by theta's names and shapes. loss: the query loss at phi, or what stands for it. Both are means over the batch's tasks."""

    gradient: dict[str, Tensor]
    loss: float


def leaves(parameters: Parameters) -> dict[str, Tensor]:
    """The same values as leaves of a new graph, with gradients."""
    return {key: value.detach().requires_grad_() for key, value in parameters.items()}


def spread(task: SourceTask, theta: Parameters, batch: Batch) -> dict[str, Tensor]:
    """theta once for each task of the batch, as views with a leading axis; theta itself where a batch is of one task."""
    if task.meta_batch == 1:
        return dict(theta)
    return {key: value.expand(len(batch[0]), *value.shape) for key, value in theta.items()}


def losses(task: SourceTask, parameters: Parameters, batch: Batch) -> Tensor:
    """The loss of each task of the batch at its own copy of the parameters: [tasks], or a scalar where a batch is of one task."""
    return torch.func.vmap(task.loss)(parameters, batch) if task.meta_batch > 1 else task.loss(parameters, batch)


def gradients(task: SourceTask, parameters: Parameters, batch: Batch, *, differentiable: bool = False) -> dict[str, Tensor]:
    """Each task's gradient at its own copy of the parameters. differentiable: with a graph, for those who differentiate it again."""
    total = losses(task, parameters, batch).sum()
    return dict(zip(parameters, torch.autograd.grad(total, list(parameters.values()), create_graph=differentiable), strict=True))


def inner_steps(
    task: SourceTask, phi: dict[str, Tensor], support: Batch, rates: Rates, steps: int, *, differentiable: bool
) -> dict[str, Tensor]:
    """phi after `steps` steps of gradient descent on the support batch. differentiable: the inner gradients count as functions of phi."""
    for _ in range(steps):
        step = gradients(task, phi, support, differentiable=differentiable)
        phi = {key: value - (rates if isinstance(rates, float) else rates[key]) * step[key] for key, value in phi.items()}
    return phi


def loss_on_the_way(
    task: SourceTask, phi: dict[str, Tensor], support: Batch, query: Batch, rates: Rates, weights: Sequence[float], *, differentiable: bool
) -> Tensor:
    """sum_j w_j L(phi_j, query) of each task, after one inner step for each weight: [tasks], or a scalar for a batch of one task."""
    total = torch.zeros(())
    for weight in weights:
        phi = inner_steps(task, phi, support, rates, 1, differentiable=differentiable)
        if weight:
            total = total + weight * losses(task, phi, query)
    return total


def mean_gradient(loss: Tensor, over: Parameters) -> MetaGradient:
    """The gradient of the mean over the tasks, by the leaves that their losses were made from."""
    loss = loss.mean()
    return MetaGradient(dict(zip(over, torch.autograd.grad(loss, list(over.values())), strict=True)), float(loss.detach()))


def meta_gradient(
    task: SourceTask, theta: Parameters, support: Batch, query: Batch, *, rate: float, weights: Sequence[float], first_order: bool
) -> MetaGradient:
    """The first form above, or the second; one inner step for each of the weights that the fourth has."""
    origin = leaves(theta)
    start = spread(task, origin, support)
    return mean_gradient(loss_on_the_way(task, start, support, query, rate, weights, differentiable=not first_order), origin)


def hessian_free_gradient(task: SourceTask, theta: Parameters, support: Batch, query: Batch, *, rate: float, delta: float) -> MetaGradient:
    """The third form above."""
    origin = leaves(spread(task, theta, support))
    phi = leaves(inner_steps(task, origin, support, rate, 1, differentiable=False))
    loss = losses(task, phi, query)
    direction = dict(zip(phi, torch.autograd.grad(loss.sum(), list(phi.values())), strict=True))
    ahead, behind = (
        gradients(task, leaves({key: origin[key] + shift * direction[key] for key in phi}), support) for shift in (delta, -delta)
    )
    each = {key: direction[key] - rate * (ahead[key] - behind[key]) / (2 * delta) for key in phi}
    return MetaGradient(averaged(task, each), float(loss.detach().mean()))


def averaged(task: SourceTask, each: Parameters) -> dict[str, Tensor]:
    """The mean over the tasks of what each of them has; itself where a batch is of one task."""
    return {key: value.mean(0) if task.meta_batch > 1 else value for key, value in each.items()}
