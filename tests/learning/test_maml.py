"""MAML's steps against what is known: closed forms on quadratics, an unrolled step, the textbook's Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmrec_agent.learning.learner import Job, LearnerError
from fmrec_agent.learning.loading import load_learner, load_task
from fmrec_agent.learning.meta_gradient import MetaGradient, meta_gradient
from fmrec_agent.learning.methods.maml import MAML
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import Batch, Parameters, SourceTask
from tests.learning.parabolas import QuadraticSource, QuadraticTarget


def found_by(options: LearningOptions, task: SourceTask, theta: Parameters, support: Batch, query: Batch) -> MetaGradient:
    settings = {"rate": options.inner_rate, "weights": options.step_weights, "first_order": options.first_order}
    return meta_gradient(task, theta, support, query, **settings)


@pytest.mark.parametrize(("inner_steps", "first_order"), [(1, False), (1, True), (3, False), (3, True)])
def test_the_meta_gradient_of_a_parabola_is_the_one_on_paper(inner_steps: int, first_order: bool) -> None:
    """phi - 1 = (1 - 3 alpha)^n (theta - 1); d phi / d theta = (1 - 3 alpha)^n, taken as 1 in first order (Finn et al., 5.2)."""
    options = LearningOptions(inner_rate=0.1, inner_steps=inner_steps, first_order=first_order, iterations_per_round=4, dtype="float64")
    learner = MAML(options, QuadraticSource(), name="a")
    assert learner.begin(Job("train", 0, 0), {"theta": np.array([2.0])}) == 4
    losses = [learner.step() for _ in range(4)]
    factor = (1 - 0.1 * 3.0) ** inner_steps
    phi = 1.0 + factor * (2.0 - 1.0)
    contribution = learner.finish()
    np.testing.assert_allclose(contribution.tensors["theta"], [(1.0 if first_order else factor) * 5.0 * (phi + 1.0)], rtol=1e-14)
    np.testing.assert_allclose([contribution.loss, *losses], 5.0 * (phi + 1.0) ** 2 / 2, rtol=1e-14)
    assert contribution.samples == 7


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("name", ["parking", "sinusoid"])
def test_the_meta_gradient_of_a_network_is_that_of_the_unrolled_step(name: str, inner_steps: int, first_order: bool) -> None:
    options = LearningOptions.model_validate(
        {"inner_rate": 0.05, "inner_steps": inner_steps, "first_order": first_order, "dtype": "float64", "task": {"name": name}}
    )
    task = load_task(options, role="source", index=0)
    assert isinstance(task, SourceTask)
    support, query = task.draw(np.random.default_rng(1))
    theta = {key: value.requires_grad_() for key, value in task.initial_parameters(3).items()}
    phi = dict(theta)
    for _ in range(inner_steps):
        inner = torch.autograd.grad(task.loss(phi, support), list(phi.values()), create_graph=True)
        phi = {k: v - 0.05 * (g.detach() if first_order else g) for (k, v), g in zip(phi.items(), inner, strict=True)}
    task.loss(phi, query).backward()
    found = found_by(options, task, theta, support, query)
    for key, value in theta.items():
        torch.testing.assert_close(found.gradient[key], value.grad, rtol=1e-6, atol=1e-9)


def test_the_meta_gradient_is_the_slope_of_the_objective() -> None:
    """Central differences of L(phi(theta), query) along a random direction: independent of autograd."""
    options = LearningOptions(dtype="float64", inner_rate=0.5)
    task = load_task(options, role="source", index=1)
    assert isinstance(task, SourceTask)
    support, query = task.draw(np.random.default_rng(1))
    theta = task.initial_parameters(0)
    direction = {key: torch.tensor(np.random.default_rng(2).standard_normal(value.shape)) for key, value in theta.items()}

    def objective(shift: float) -> float:
        return found_by(options, task, {k: v + shift * direction[k] for k, v in theta.items()}, support, query).loss

    slope = (objective(1e-5) - objective(-1e-5)) / 2e-5
    gradient = found_by(options, task, theta, support, query).gradient
    assert slope == pytest.approx(sum(float((gradient[k] * direction[k]).sum()) for k in theta), rel=1e-6)


def test_a_meta_batch_is_the_mean_of_its_tasks() -> None:
    many = LearningOptions.model_validate({"dtype": "float64", "inner_rate": 0.01, "task": {"name": "sinusoid", "meta_batch": 5}})
    one = many.model_copy(update={"task": many.task.model_copy(update={"meta_batch": 1})})
    task, single = load_task(many, role="source", index=0), load_task(one, role="source", index=0)
    assert isinstance(task, SourceTask)
    assert isinstance(single, SourceTask)
    (sx, sy), (qx, qy) = task.draw(np.random.default_rng(0))
    theta = task.initial_parameters(0)
    each = [found_by(one, single, theta, (sx[i], sy[i]), (qx[i], qy[i])) for i in range(5)]
    found = found_by(many, task, theta, (sx, sy), (qx, qy))
    assert found.loss == pytest.approx(np.mean([one.loss for one in each]))
    for key, value in found.gradient.items():
        torch.testing.assert_close(value, torch.stack([one.gradient[key] for one in each]).mean(0))


def test_adaptation_is_adam() -> None:
    options = LearningOptions(adapt_iterations=25, adapt_rate=0.05, dtype="float64")
    learner = MAML(options, QuadraticTarget(), name="a")
    learner.begin(Job("adapt", 0, 0), {"theta": np.array([2.0])})
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.05)
    for _ in range(25):
        adam.zero_grad()
        loss = 3.0 * (theta - 1.0).square().sum() / 2
        loss.backward()
        assert learner.step() == pytest.approx(float(loss.detach()), rel=1e-12)
        adam.step()
    np.testing.assert_allclose(learner.finish().tensors["theta"], theta.detach().numpy(), rtol=1e-12)


def test_adaptation_by_gradient_descent_reports_its_milestones() -> None:
    """theta - 1 shrinks by 1 - 3 x 0.1 at each step."""
    options = LearningOptions(adapt_iterations=2, adapt_optimizer="sgd", adapt_rate=0.1, dtype="float64")
    learner = MAML(options, QuadraticTarget(), name="a")
    learner.begin(Job("adapt", 0, 0), {"theta": np.array([2.0])})
    learner.step()
    learner.step()
    contribution = learner.finish()
    assert contribution.metrics == pytest.approx({"distance": 0.49, "distance_after_1": 0.7})
    assert contribution.loss == pytest.approx(3.0 * 0.49**2 / 2)


def test_a_job_that_cannot_be_is_refused_and_changes_nothing() -> None:
    learner = load_learner(LearningOptions(), name="a", role="source", index=0)
    theta = dict(learner.initial_parameters(0))
    before = learner.state()
    with pytest.raises(LearnerError, match="a is a source and cannot adapt"):
        learner.begin(Job("adapt", 0, 0), theta)
    with pytest.raises(LearnerError, match=r"theta/decoder.bias is missing, and this task's model wants float32\[1\]"):
        learner.begin(Job("train", 0, 0), {key: value for key, value in theta.items() if key != "decoder.bias"})
    with pytest.raises(LearnerError, match=r"lstm.weight_hh is float32\[8, 2\], and this task's model wants float32\[16, 4\]"):
        learner.begin(Job("train", 0, 0), theta | {"lstm.weight_hh": np.zeros((8, 2), np.float32)})
    with pytest.raises(LearnerError, match=r"decoder.bias is float64\[1\]"):
        learner.begin(Job("train", 0, 0), theta | {"decoder.bias": np.zeros(1)})
    with pytest.raises(LearnerError, match="a has no job"):
        learner.step()
    assert learner.state() == before


def test_steps_and_finish_come_in_their_order() -> None:
    learner = load_learner(LearningOptions(iterations_per_round=2), name="a", role="source", index=0)
    learner.begin(Job("train", 5, 0), learner.initial_parameters(0))
    learner.step()
    with pytest.raises(LearnerError, match="a has done 1 of 2 iterations"):
        learner.finish()
    learner.step()
    with pytest.raises(LearnerError, match="a has done all iterations of its train job of round 5"):
        learner.step()
