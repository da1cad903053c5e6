"""ADMM-FedMeta: agents and platform agree on theta by duals (Yue et al., MobiHoc 2021, algorithm 1; inexact ADMM).

    min over theta, theta_i of  sum_i w_i L(phi_i(theta_i), query_i) + lambda ||theta - theta_c||^2   such that  theta_i = theta

Agent i keeps a dual y_i, 0 at first. A round, with g_i the Hessian-free meta-gradient at theta (meta_gradient.py, third form):

    theta_i = theta - (y_i + w_i g_i) / rho,   y_i <- y_i + rho (theta_i - theta)                                        (agents)
    theta   = (2 lambda theta_c + sum_i (y_i + rho theta_i)) / (2 lambda + n rho)                                        (platform)

1. The first line makes the new dual -w_i g_i, whatever the old one was; so a dual is read one round after it was made, and only then.
2. With w_i = omega_i and the penalty rho / n (so rho here is n times the paper's), theta_i and the dual in units of w_i, the platform's
   line is theta <- theta - sum_i omega_i c_i, where

       c_i = (y_i + 2 g_i + 2 lambda (theta - theta_c)) / (rho + 2 lambda)

   knows neither n nor the others' weights: it is what agent i sends. At a fixed point y_i = -g_i and sum_i omega_i g_i = 0 (lambda = 0).
3. y_i exists in one process alone: without recovery it dies with its agent. It is the group `dual` of the state, and stays what it was
   at the job's start until the next job begins. So a round that is begun again reads the dual that it read before; a job that never
   came to its end leaves the dual alone; another run, or the same one begun anew (an earlier round), starts from 0.

g_i is the mean over the round's draws. theta_c is what the run started from, theta_0 of its seed.

Server: sgd with server_rate 1; weighting samples for w_i = |D_i| / sum |D|, uniform for w_i = 1 / n. Options: inner_rate is alpha, delta,
rho, prior is lambda.
"""

from __future__ import annotations

from torch import Tensor

from fmrec_agent.learning.gradient_learner import MeanLearner, zeros
from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.meta_gradient import MetaGradient, hessian_free_gradient
from fmrec_agent.learning.task import Batch, Parameters, SourceTask


class ADMM(MeanLearner):
    method = "admm"
    sends_difference = True
    train_groups = ("sum", "dual")

    def gradient(self, task: SourceTask, parameters: Parameters, support: Batch, query: Batch) -> MetaGradient:
        options = self._options
        return hessian_free_gradient(task, parameters, support, query, rate=options.inner_rate, delta=options.delta)

    def _begun(self, job: Job, theta: Parameters) -> dict[str, dict[str, Tensor]]:
        return {**super()._begun(job, theta), "dual": self._dual(job, theta)}

    def _dual(self, job: Job, theta: Parameters) -> dict[str, Tensor]:
        """y_i at the start of the job (rule 3)."""
        last = self._progress
        if last.kind is None or last.seed != job.seed or job.round < last.round:
            return zeros(theta)
        if last.round == job.round or last.iteration < self._options.iterations_per_round:
            return self._groups["dual"]
        return {key: -value for key, value in self._meta_gradient(last.iteration).items()}

    def _sent(self, iterations: int) -> dict[str, Tensor]:
        prior, gradient, dual = self._options.prior, self._meta_gradient(iterations), self._groups["dual"]
        sent = {key: dual[key] + 2 * gradient[key] for key in dual}
        if prior:
            theta, start = self._groups["theta"], self._made(self._progress.seed)
            sent = {key: value + 2 * prior * (theta[key] - start[key].to(value.device)) for key, value in sent.items()}
        return {key: value / (self._options.rho + 2 * prior) for key, value in sent.items()}
