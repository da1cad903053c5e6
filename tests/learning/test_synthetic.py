"""Synthetic(alpha, beta): its labels are a linear model's, devices differ by alpha and beta, adaptation helps (FedProx, section 5.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.loading import load_learner, load_task
from fmrec_agent.learning.options import LearningOptions, SyntheticOptions
from fmrec_agent.learning.task import SourceTask
from fmrec_agent.learning.tasks.synthetic import drawn

F64 = torch.float64


def centres(beta: float) -> np.ndarray:
    """The mean input of each of 200 devices, over its last coordinates, whose own spread is small."""
    some = [drawn(SyntheticOptions(beta=beta), "source", index, F64)[0] for index in range(200)]
    return np.array([float(inputs[:, 30:].mean()) for inputs in some])


def test_a_device_is_its_own_for_good() -> None:
    first, again, other, target = (
        drawn(SyntheticOptions(), role, index, F64) for role, index in (("source", 0), ("source", 0), ("source", 1), ("target", 0))
    )
    assert torch.equal(first[0], again[0])
    assert len({len(first[1]), len(other[1]), len(target[1])}) > 1
    assert all(50 <= len(device[1]) <= 10_000 for device in (first, other, target))
    assert first[0].shape[1] == 60


def test_beta_spreads_the_inputs() -> None:
    """v_k's coordinates have the mean B_k ~ N(0, beta): over 30 coordinates the mean's deviation is sqrt(beta^2 + 1 / 30)."""
    assert 0.13 < centres(0.0).std() < 0.23
    assert 1.8 < centres(2.0).std() < 2.3


def accuracy_on_a_third(options: SyntheticOptions) -> float:
    """Of one logistic fit of two devices."""
    (*fitted, (inputs, classes)) = (drawn(options, "source", index, F64) for index in range(3))
    xs, ys = (torch.cat(part) for part in zip(*fitted, strict=True))
    weight, bias = torch.zeros(10, 60, dtype=F64, requires_grad=True), torch.zeros(10, dtype=F64, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = functional.cross_entropy(functional.linear(xs, weight, bias), ys)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    descent.step(loss)
    with torch.no_grad():
        return float((functional.linear(inputs, weight, bias).argmax(1) == classes).double().mean())


def test_iid_devices_share_one_model() -> None:
    """One logistic fit of two devices is as good on a third; with their own models it is not."""
    assert accuracy_on_a_third(SyntheticOptions(iid=True, data_seed=3)) > 0.7
    assert accuracy_on_a_third(SyntheticOptions(iid=False, data_seed=3)) < 0.4


def test_iid_devices_share_one_law_of_inputs() -> None:
    """Whose first coordinate is normal, with mean 0 and deviation 1: so is sqrt(n) times the mean of n of them."""
    iid = [drawn(SyntheticOptions(iid=True, data_seed=3), "source", index, F64)[0] for index in range(40)]
    means = np.array([inputs[:, 0].mean().item() * np.sqrt(len(inputs)) for inputs in iid])
    assert 0.7 < means.std() < 1.3


def test_support_and_query_never_meet() -> None:
    task = load_task(LearningOptions.model_validate({"batch": 500, "task": {"name": "synthetic"}}), role="source", index=0)
    assert isinstance(task, SourceTask)
    (support, _), (query, _) = task.draw(np.random.default_rng(0))
    assert not {tuple(row) for row in support.tolist()} & {tuple(row) for row in query.tolist()}


def test_adaptation_helps_on_a_device_of_its_own_kind() -> None:
    chosen = {"adapt_iterations": 50, "adapt_optimizer": "sgd", "adapt_rate": 0.1, "adapt_batch": 20, "task": {"name": "synthetic"}}
    after = []
    for index in range(10):
        learner = load_learner(LearningOptions.model_validate(chosen), name="t", role="target", index=index)
        theta = learner.initial_parameters(0)
        for _ in range(learner.begin(Job("adapt", 0, 0), theta)):
            learner.step()
        after.append(learner.finish().metrics["accuracy_percent"])
    assert np.mean(after) > 50, "chance is 10"
