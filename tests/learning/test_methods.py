"""The methods against each other and against their papers' lines: limits, special cases, and averages as the manager makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fmrec_agent.learning.gradient_learner import GradientLearner
from fmrec_agent.learning.learner import Contribution, Job, LearnerError, Tensors
from fmrec_agent.learning.loading import LEARNERS, load_learner, load_method, load_task
from fmrec_agent.learning.meta_gradient import hessian_free_gradient, meta_gradient
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import Batch, Parameters, SourceTask
from fmrec_manager.aggregation import Aggregator
from protocol.identifiers import NodeId
from tests.learning.parabolas import QuadraticSource, QuadraticTarget

SINUSOIDS = {"name": "sinusoid", "meta_batch": 5, "hidden": 8}


def options(learner: str, **more: Any) -> LearningOptions:
    return LearningOptions.model_validate({"learner": learner, "dtype": "float64", **more})


def on_parabolas(learner: str, *tasks: QuadraticSource, **more: Any) -> list[GradientLearner]:
    """A learner for each task, QuadraticSource() where none is given."""
    chosen = options(learner, **more)
    return [load_method(learner)(chosen, task, name=str(at)) for at, task in enumerate(tasks or (QuadraticSource(),))]


def done(learner: Any, theta: Tensors, round_: int = 0) -> Contribution:
    for _ in range(learner.begin(Job("train", round_, 0), theta)):
        learner.step()
    contribution: Contribution = learner.finish()
    return contribution


def averaged(theta: Tensors, contributions: list[Contribution], weighting: Any = "samples") -> Tensors:
    """The manager's next theta, with sgd at the rate 1."""
    aggregator = Aggregator("cpu", "sgd", 1.0, 0.0, weighting)
    given = {NodeId(at): (one.tensors, one.samples, 1.0) for at, one in enumerate(contributions)}
    return aggregator.aggregate(theta, given)[0]


def source_task(name: str = "parking") -> tuple[SourceTask, Batch, Batch]:
    task = load_task(options("maml", task={"name": name}), role="source", index=0)
    assert isinstance(task, SourceTask)
    return task, *task.draw(np.random.default_rng(1))


# --- gradients --------------------------------------------------------------------------------------------------------


def test_hessian_free_tends_to_the_exact_gradient_with_the_square_of_delta() -> None:
    """A tenth of delta, a hundredth of the error: the difference is central (Fallah et al., section 5)."""
    task, support, query = source_task()
    theta = task.initial_parameters(3)
    exact = meta_gradient(task, theta, support, query, rate=0.5, weights=(1.0,), first_order=False)
    errors = []
    for delta in (0.3, 0.03, 0.003):
        found = hessian_free_gradient(task, theta, support, query, rate=0.5, delta=delta)
        assert found.loss == pytest.approx(exact.loss)
        errors.append(max(float((found.gradient[key] - exact.gradient[key]).abs().max()) for key in theta))
    assert errors[1] / errors[0] == pytest.approx(0.01, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.01, rel=0.1)


def test_on_a_parabola_hessian_free_is_exact_whatever_delta() -> None:
    """grad L is linear in theta there; so ADMM's and Per-FedAvg's g is (1 - 3 alpha) 5 (phi + 1)."""
    phi = 1.0 + (1 - 0.3) * (2.0 - 1.0)
    gradient = (1 - 0.3) * 5 * (phi + 1)
    (admm,) = on_parabolas("admm", inner_rate=0.1, delta=7.0, rho=4.0)
    assert done(admm, {"theta": np.array([2.0])}).tensors["theta"] == pytest.approx([2 * gradient / 4.0], rel=1e-12)
    (local,) = on_parabolas("per-fedavg", inner_rate=0.1, delta=7.0, local_rate=0.01, iterations_per_round=1)
    assert done(local, {"theta": np.array([2.0])}).tensors["theta"] == pytest.approx([0.01 * gradient], rel=1e-12)


def test_per_fedavg_without_the_hessian_takes_first_order_steps() -> None:
    (learner,) = on_parabolas("per-fedavg", hessian="none", inner_rate=0.1, local_rate=0.01, iterations_per_round=3)
    local = 2.0
    for _ in range(3):
        phi = local - 0.1 * 3 * (local - 1)
        local -= 0.01 * 5 * (phi + 1)
    assert done(learner, {"theta": np.array([2.0])}).tensors["theta"] == pytest.approx([2.0 - local], rel=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_meta_sgd_with_frozen_equal_rates_is_maml(inner_steps: int, first_order: bool) -> None:
    more = {"task": SINUSOIDS, "inner_steps": inner_steps, "first_order": first_order, "iterations_per_round": 3}
    maml = load_learner(options("maml", inner_rate=0.05, **more), name="a", role="source", index=0)
    frozen = options("meta-sgd", rate_min=0.05, rate_max=0.05, learn_rates=False, **more)
    meta_sgd = load_learner(frozen, name="a", role="source", index=0)
    theta = maml.initial_parameters(3)
    with_rates = meta_sgd.initial_parameters(3)
    assert with_rates.keys() == theta.keys() | {f"rate/{key}" for key in theta}
    expected, found = done(maml, theta), done(meta_sgd, with_rates)
    for key in theta:
        np.testing.assert_allclose(found.tensors[key], expected.tensors[key], rtol=1e-12, atol=1e-15)
        assert not found.tensors[f"rate/{key}"].any()
    assert found.metrics["nufm_gradient_norm"] == pytest.approx(expected.metrics["nufm_gradient_norm"])


@pytest.mark.parametrize("learner", ["maml", "fomaml", "meta-sgd"])
def test_with_the_last_steps_weight_alone_the_multi_step_loss_is_none(learner: str) -> None:
    """w = (0, 0, 1) is the method without step_losses, bit for bit."""
    made = [
        load_learner(options(learner, task=SINUSOIDS, inner_steps=3, iterations_per_round=2, **more), name="a", role="source", index=0)
        for more in ({}, {"step_losses": [0.0, 0.0, 1.0]})
    ]
    theta = made[0].initial_parameters(3)
    plain, weighted = (done(each, theta) for each in made)
    assert plain.loss == weighted.loss
    assert all(np.array_equal(plain.tensors[key], weighted.tensors[key]) for key in theta)


def test_the_multi_step_loss_is_the_weighted_sum_of_shorter_adaptations() -> None:
    """0.3 L(phi_1) + 0.7 L(phi_3): so are the loss and its gradient, by theta and by the rates."""
    more = {"task": SINUSOIDS, "rate_max": 0.01, "iterations_per_round": 1}
    both, one, three = (
        load_learner(options("meta-sgd", inner_steps=len(weights), step_losses=weights, **more), name="a", role="source", index=0)
        for weights in ([0.3, 0.0, 0.7], [0.3], [0.0, 0.0, 0.7])
    )
    theta = both.initial_parameters(3)
    found, *parts = (done(each, theta) for each in (both, one, three))
    assert found.loss == pytest.approx(sum(part.loss for part in parts))
    for key in theta:
        np.testing.assert_allclose(found.tensors[key], sum(part.tensors[key] for part in parts), rtol=1e-9, atol=1e-12)


def test_the_logarithms_of_rates_are_learnt_and_adapted_by() -> None:
    """d/d(log a) = a d/da, and nothing else changes."""
    more = {"task": SINUSOIDS, "inner_steps": 2, "iterations_per_round": 1}
    plain, logarithmic = (
        load_learner(options("meta-sgd", log_rates=log, **more), name="a", role="source", index=0) for log in (False, True)
    )
    theta, of_logs = plain.initial_parameters(3), logarithmic.initial_parameters(3)
    expected, found = done(plain, theta), done(logarithmic, of_logs)
    assert found.loss == pytest.approx(expected.loss)
    for key in theta:
        if key.startswith("rate/"):
            np.testing.assert_allclose(np.exp(of_logs[key]), theta[key])
        scale = theta[key] if key.startswith("rate/") else 1.0
        np.testing.assert_allclose(found.tensors[key], scale * expected.tensors[key], rtol=1e-9, atol=1e-15)
    target = load_method("meta-sgd")(options("meta-sgd", log_rates=True), QuadraticTarget(), name="t")
    target.begin(Job("adapt", 0, 0), {"theta": np.array([2.0]), "rate/theta": np.log([0.1])})
    target.step()
    assert target.finish().tensors["theta"] == pytest.approx([1.7])


@pytest.mark.parametrize("learner", [name for name in LEARNERS if name != "ridge"])
def test_who_sends_the_way_of_its_parameters_says_so(learner: str) -> None:
    """By any other server than sgd it is no step towards their mean; a gradient may be used by all."""
    (method,) = on_parabolas(learner, iterations_per_round=2)
    said = done(method, method.initial_parameters(0)).metrics.get("difference")
    assert said == {"maml": None, "fomaml": None, "meta-sgd": None}.get(learner, 1.0)


@pytest.mark.parametrize(("learner", "sent"), [("maml", 0.5), ("fedavg", 2 * 0.1 * 0.5)])
def test_a_long_vector_is_shortened_and_a_short_one_left(learner: str, sent: float) -> None:
    """maml's vector is 9.45 long, of either of two draws; fedavg takes two steps of the rate 0.1."""
    theta = {"theta": np.array([2.0])}
    (bounded,) = on_parabolas(learner, iterations_per_round=2, gradient_norm_max=0.5)
    assert done(bounded, theta).tensors["theta"] == pytest.approx([sent])
    free, roomy = (on_parabolas(learner, iterations_per_round=2, gradient_norm_max=bound)[0] for bound in (0.0, 100.0))
    assert done(free, theta).tensors["theta"] == done(roomy, theta).tensors["theta"] > sent


def test_meta_sgd_learns_its_rates_and_adapts_by_them() -> None:
    """dL(phi)/da = - grad L(phi, query) grad L(theta, support): 5 (phi + 1) and 3 (theta - 1) on the parabolas."""
    more = {"rate_min": 0.1, "rate_max": 0.1}
    (learner,) = on_parabolas("meta-sgd", **more)
    theta = {"theta": np.array([2.0]), "rate/theta": np.array([0.1])}
    phi = 1 + 0.7
    found = done(learner, theta)
    assert found.tensors["theta"] == pytest.approx([0.7 * 5 * (phi + 1)])
    assert found.tensors["rate/theta"] == pytest.approx([-5 * (phi + 1) * 3])
    target = load_method("meta-sgd")(options("meta-sgd", **more), QuadraticTarget(), name="t")
    assert target.begin(Job("adapt", 0, 0), theta) == 1
    target.step()
    adapted = target.finish()
    assert adapted.tensors == {"theta": pytest.approx([phi]), "rate/theta": pytest.approx([0.1])}
    assert adapted.metrics == pytest.approx({"distance": 0.7, "distance_after_1": 0.7})


def test_the_learnt_rates_start_between_their_bounds_and_alike_everywhere() -> None:
    made = [load_learner(options("meta-sgd", task=SINUSOIDS), name=name, role="source", index=0).initial_parameters(4) for name in "ab"]
    rates = np.concatenate([value.ravel() for key, value in made[0].items() if key.startswith("rate/")])
    assert 0.005 <= rates.min() < 0.02
    assert 0.09 < rates.max() <= 0.1
    assert all(np.array_equal(made[0][key], made[1][key]) for key in made[0])


# --- averages ---------------------------------------------------------------------------------------------------------


def test_reptile_with_one_step_is_averaged_descent() -> None:
    """theta - sum omega_i alpha grad L_i(theta): one step of descent on the weighted loss."""
    agents = on_parabolas("reptile", QuadraticSource(1.0, 3), QuadraticSource(5.0, 1), inner_rate=0.1, inner_steps=1)
    theta = {"theta": np.array([2.0])}
    slope = 3 / 4 * 3 * (2.0 - 1.0) + 1 / 4 * 3 * (2.0 - 5.0)
    contributions = [done(agent, theta) for agent in agents]
    assert averaged(theta, contributions)["theta"] == pytest.approx([2.0 - 0.1 * slope], rel=1e-14)
    assert contributions[0].metrics["nufm_gradient_norm"] == pytest.approx(3.0)


def test_reptile_takes_the_two_batches_in_turn() -> None:
    (learner,) = on_parabolas("reptile", inner_rate=0.1, inner_steps=3)
    phi = 2.0
    for curvature, centre in ((3, 1), (5, -1), (3, 1)):
        phi -= 0.1 * curvature * (phi - centre)
    contribution = done(learner, {"theta": np.array([2.0])})
    assert contribution.tensors["theta"] == pytest.approx([2.0 - phi], rel=1e-14)
    assert contribution.loss == pytest.approx(5 * (phi + 1) ** 2 / 2)


def local_steps(method: str, centre: float, steps: int) -> float:
    """Where an agent with this support centre ends, by the method's own line."""
    local = 2.0
    for _ in range(steps):
        phi = local - 0.1 * 3 * (local - centre)
        slope = (3 * (local - centre) + 5 * (local + 1)) / 2 if method == "fedavg" else 0.7 * 5 * (phi + 1)
        local -= 0.05 * slope
    return local


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("method", ["fedavg", "lin", "per-fedavg"])
def test_with_sgd_at_the_rate_1_the_manager_averages_parameters(method: str, weighting: str) -> None:
    more = {} if method == "fedavg" else {"inner_rate": 0.1}
    agents = on_parabolas(method, QuadraticSource(1.0, 3), QuadraticSource(5.0, 1), local_rate=0.05, iterations_per_round=4, **more)
    theta = {"theta": np.array([2.0])}
    contributions = [done(agent, theta) for agent in agents]
    ends = [local_steps(method, 1.0, 4), local_steps(method, 5.0, 4)]
    mean = (3 * ends[0] + ends[1]) / 4 if weighting == "samples" else sum(ends) / 2
    assert averaged(theta, contributions, weighting)["theta"] == pytest.approx([mean], rel=1e-12)
    assert contributions[0].metrics["nufm_gradient_norm"] == pytest.approx(abs(2.0 - ends[0]) / (0.05 * 4))


# --- ADMM -------------------------------------------------------------------------------------------------------------


def papers_admm(rho: float, prior: float, weights: list[float], rounds: int) -> list[float]:
    """theta of each round, by the paper's own lines: penalty rho / n, and theta_i and y_i of each agent."""
    theta, start, n = 2.0, 2.0, len(weights)
    penalty, duals, thetas = rho / n, [0.0] * n, []
    for _ in range(rounds):
        local = [0.0] * n
        for i, centre in enumerate((1.0, 5.0)):
            phi = theta - 0.1 * 3 * (theta - centre)
            meta = (1 - 0.3) * 5 * (phi + 1)
            local[i] = theta - (duals[i] + weights[i] * meta) / penalty
            duals[i] += penalty * (local[i] - theta)
        total = sum(duals[i] + penalty * local[i] for i in range(n))
        theta = (2 * prior * start + total) / (2 * prior + n * penalty)
        thetas.append(theta)
    return thetas


@pytest.mark.parametrize("prior", [0.0, 0.7])
@pytest.mark.parametrize(("weighting", "weights"), [("samples", [0.75, 0.25]), ("uniform", [0.5, 0.5])])
def test_admm_is_the_papers_lines(weighting: str, weights: list[float], prior: float) -> None:
    more = {"inner_rate": 0.1, "rho": 9.0, "prior": prior, "iterations_per_round": 2}
    agents = on_parabolas("admm", QuadraticSource(1.0, 3), QuadraticSource(5.0, 1), **more)
    theta: Tensors = agents[0].initial_parameters(0)
    for round_, expected in enumerate(papers_admm(9.0, prior, weights, 6)):
        theta = averaged(theta, [done(agent, theta, round_) for agent in agents], weighting)
        assert theta["theta"] == pytest.approx([expected], rel=1e-12)


def test_admm_rests_where_the_weighted_meta_gradients_cancel() -> None:
    agents = on_parabolas("admm", QuadraticSource(1.0, 3), QuadraticSource(5.0, 1), inner_rate=0.1, rho=9.0, iterations_per_round=1)
    theta: Tensors = {"theta": np.array([2.0])}
    for round_ in range(150):
        contributions = [done(agent, theta, round_) for agent in agents]
        theta = averaged(theta, contributions)
    # phi_i = 0.7 theta + 0.3 centre_i; sum omega_i (phi_i + 1) = 0.
    at_rest = -(1 + 0.3 * (3 * 1.0 + 5.0) / 4) / 0.7
    assert theta["theta"] == pytest.approx([at_rest], abs=1e-9)
    duals = [agent.state()[0]["dual/theta"][0] for agent in agents]
    assert abs(duals[0]) > 0.1
    assert 3 * duals[0] + duals[1] == pytest.approx(0, abs=1e-8)


def test_a_dual_changes_only_when_the_next_job_begins() -> None:
    """So a round that is begun again is the same round, a job that was given up leaves no trace, and a run begun anew starts from 0."""
    (agent,) = on_parabolas("admm", inner_rate=0.1)
    first, second = {"theta": np.array([2.0])}, {"theta": np.array([1.5])}

    def dual() -> float:
        return float(agent.state()[0]["dual/theta"][0])

    gradient = done(agent, first, 3).metrics["nufm_gradient_norm"]
    assert dual() == 0
    fourth = done(agent, second, 4)
    assert dual() == pytest.approx(-gradient)
    assert done(agent, second, 4).tensors == fourth.tensors
    agent.begin(Job("train", 5, 0), first)
    agent.step()
    after_fourth = dual()
    agent.begin(Job("train", 6, 0), first)
    assert dual() == after_fourth == pytest.approx(-fourth.metrics["nufm_gradient_norm"])
    done(agent, first, 6)
    agent.begin(Job("train", 1, 0), first)
    assert dual() == 0
    done(agent, first, 2)
    agent.begin(Job("train", 3, 1), first)
    assert dual() == 0


# --- several tasks ----------------------------------------------------------------------------------------------------


class OneByOne(SourceTask):
    """A task of a meta-batch's draws, of which it hands out the `at`-th alone."""

    def __init__(self, whole: SourceTask, at: int) -> None:
        self._whole, self._at = whole, at
        self.label, self.samples = whole.label, whole.samples

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        return self._whole.initial_parameters(seed)

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        return self._whole.loss(parameters, batch)

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        support, query = self._whole.draw(generator)
        return (support[0][self._at], support[1][self._at]), (query[0][self._at], query[1][self._at])


class Cubics(SourceTask):
    """The draws of another task, fitted by a polynomial: a loss that is quadratic in the parameters."""

    def __init__(self, whole: SourceTask) -> None:
        self._whole, self.meta_batch, self.label, self.samples = whole, whole.meta_batch, whole.label, whole.samples

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        return {"w": torch.full((4,), float(seed), dtype=torch.float64)}

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        powers = (batch[0] / 5.0) ** torch.arange(4)
        return ((powers @ parameters["w"] - batch[1].squeeze(-1)) ** 2).mean()

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        return self._whole.draw(generator)


@pytest.mark.parametrize("method", LEARNERS)
def test_tasks_together_are_tasks_one_by_one(method: str) -> None:
    """vmap over a draw's tasks, in whole or in parts, is the mean of learners that each know one of the tasks."""
    chosen = options(method, task=SINUSOIDS, iterations_per_round=1)
    whole = load_task(chosen, role="source", index=0)
    assert isinstance(whole, SourceTask)
    whole = Cubics(whole) if method == "ridge" else whole
    made = load_method(method)
    theta = made(chosen, whole, name="a").initial_parameters(0)
    each = [done(made(chosen, OneByOne(whole, at), name="a"), theta).tensors for at in range(5)]
    for at_once in (1, 2, 5):
        found = done(made(chosen.model_copy(update={"tasks_at_once": at_once}), whole, name="a"), theta).tensors
        for key in theta:
            np.testing.assert_allclose(found[key], np.mean([one[key] for one in each], axis=0), rtol=1e-9, atol=1e-13)
            assert np.any(found[key])


# --- options ----------------------------------------------------------------------------------------------------------


def test_adapting_by_learnt_rates_needs_a_method_that_learns_them() -> None:
    with pytest.raises(LearnerError, match="maml cannot adapt by adapt_optimizer 'learnt': set it to adam or sgd"):
        load_learner(options("maml", adapt_optimizer="learnt"), name="a", role="target", index=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(LearnerError, match=r'learning.device is "cuda", but torch finds no CUDA device here: set it to "auto" or "cpu"'):
        load_learner(options("maml", device="cuda"), name="a", role="source", index=0)
