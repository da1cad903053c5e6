"""Learners of one's own: the examples keep the contract, a broken learner is told how it breaks it, and a module is a task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fmrec_agent.learning.conformance import ELSEWHERE, elsewhere, findings, maker
from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Role, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.methods.maml import MAML
from fmrec_agent.learning.module_task import ModuleSource, ModuleTarget
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Aggregator
from protocol.identifiers import NodeId
from tests.learning import broken_learners
from tests.learning.broken_learners import Sound

ROOT = Path(__file__).resolve().parents[2]
BROKEN = broken_learners.__name__
EXAMPLES = ["examples.torch_module:learner", "examples.numpy_learner:Line"]


def options(learner: str, **more: Any) -> LearningOptions:
    return LearningOptions.model_validate({"learner": learner, "iterations_per_round": 4, "adapt_iterations": 4, **more})


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("learner", EXAMPLES)
def test_the_examples_keep_the_contract(learner: str, role: Role) -> None:
    found = list(findings(maker(options(learner), role), role))
    assert [finding.fault for finding in found] == [None] * 7


@pytest.mark.parametrize("learner", EXAMPLES)
def test_the_examples_learn(learner: str) -> None:
    """Three sources for 60 rounds, then a target that adapts: better than from a random start."""
    chosen = options(learner, iterations_per_round=1, adapt_optimizer="sgd", adapt_rate=0.1)
    sources = [load_learner(chosen, name=f"agent-{index}", role="source", index=index) for index in range(3)]
    start = theta = sources[0].initial_parameters(0)
    aggregator = Aggregator("cpu", "adam", 0.05, 0.0, "samples")
    for round_ in range(60):
        given = {NodeId(at): (job_done(one, Job("train", round_, 0), theta).tensors, 100, 1.0) for at, one in enumerate(sources)}
        theta = aggregator.aggregate(theta, given)[0]
    target = load_learner(chosen, name="target", role="target", index=0)
    before, after = (job_done(target, Job("adapt", 0, 0), values).loss for values in (start, theta))
    assert after < before / 2


def job_done(learner: Learner, job: Job, theta: Tensors) -> Contribution:
    for _ in range(learner.begin(job, theta)):
        learner.step()
    return learner.finish()


# --- broken learners --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "promise", "told"),
    [
        (broken_learners.DrawsFromTheGlobalSource, "restored at any iteration", "it ended job 1 with other bytes"),
        (broken_learners.ReadsTheClock, "restored at any iteration", "it ended job 1 with other bytes"),
        (broken_learners.ForgetsWhereItIs, "restored at any iteration", "restored after 1 of 3 steps of job 1"),
        (broken_learners.ForgetsAcrossJobs, "restored at any iteration", "it ended job 2 with other bytes"),
        (broken_learners.ReturnsItsOwnArrays, "state() returns copies", "changed arrays that state() had returned: copy them"),
        (broken_learners.FinishesTooWell, "finish() changes nothing", "state() differs before and after finish()"),
        (broken_learners.SendsAnotherShape, "a contribution fits theta", "tensor theta of the contribution is (dtype('float64'), (3,))"),
        (broken_learners.StartsByName, "theta_0 is the same", "seed 1 gave different bytes"),
        (broken_learners.MovesOnAtEachBegin, "a round that is begun again", "job 2, begun twice, ended with other bytes"),
        (broken_learners.KeepsWhatWasGivenUp, "a round that is begun again", "job 1, begun anew after 2 of 3 steps, ended with other"),
        (broken_learners.KeepsItsFirstTheta, "restored after other work", "into a learner that had worked, it ended job 1 with"),
        (broken_learners.HasNothingToDo, "it can be taken through two jobs", "begin() returned 0: a job has at least one iteration"),
        (broken_learners.SpeaksOfItsState, "it can be taken through two jobs", "returned a str beside its arrays: encode it as bytes"),
        (broken_learners.Raises, "it can be taken through two jobs", f"ValueError: no data, raised in {broken_learners.__file__}, line "),
    ],
)
def test_a_broken_promise_is_found_and_told(broken: type[Sound], promise: str, told: str) -> None:
    def make(name: str) -> Learner:
        return broken(None, name=name, role="source", index=0)

    (fault,) = [(finding.promise, finding.fault) for finding in findings(make, "source") if finding.fault][:1]
    assert fault[0].startswith(promise)
    assert fault[1] is not None
    assert told in fault[1]


def test_a_sound_learner_has_no_fault_and_one_that_hashes_is_found_by_another_process() -> None:
    assert all(finding.fault is None for finding in findings(lambda name: Sound(None, name=name, role="source", index=0), "source"))
    assert elsewhere(options(f"{BROKEN}:Sound"), "source").fault is None
    finding = elsewhere(options(f"{BROKEN}:Hashes"), "source")
    assert finding.promise == ELSEWHERE
    assert finding.fault == "no clock, no hash(), no order of a set and no global random source may show"


def check_learner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("fmrec-agent")), "check-learner", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_the_command_checks_a_learner_from_the_working_directory() -> None:
    few = ("--set", "learning.adapt_iterations=3", "--set", "task=line")
    kept = check_learner("examples.numpy_learner:Line", *few)
    assert (kept.returncode, kept.stderr) == (0, "")
    assert kept.stdout.count("kept") == 16
    broken = check_learner(f"{BROKEN}:ForgetsWhereItIs", "--role", "source")
    assert broken.returncode == 1
    assert "source  broken  restored at any iteration, it ends with equal bytes: restored after 1 of 3 steps" in broken.stdout


# --- modules ----------------------------------------------------------------------------------------------------------


def test_a_module_is_a_task_of_its_parameters() -> None:
    x = torch.arange(6.0).reshape(6, 1)
    target = ModuleTarget(
        lambda: nn.Linear(1, 1), nn.functional.mse_loss, (x, x), (x, 2 * x), batch=3, metrics=lambda out, y: {"bias": float((out - y)[0])}
    )
    theta = target.initial_parameters(5)
    assert all(torch.equal(value, target.initial_parameters(5)[key]) for key, value in theta.items())
    assert not torch.equal(theta["weight"], target.initial_parameters(6)["weight"])
    exact = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([0.5])}
    assert target.evaluate(exact) == (0.25, {"bias": 0.5})
    inputs, targets = target.draw_adaptation(np.random.default_rng(0))
    assert inputs.shape == (3, 1)
    assert torch.equal(inputs, targets)


def test_making_a_task_leaves_the_global_random_source_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    x = torch.zeros(2, 1)
    ModuleSource(lambda: nn.Linear(1, 1), nn.functional.mse_loss, (x, x), (x, x), batch=1).initial_parameters(3)
    assert torch.equal(torch.rand(1), expected)


def test_a_module_with_a_buffer_is_refused() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(LearnerError, match=r"the model has the buffer 0.running_mean, which would be neither learnt nor recovered"):
        ModuleSource(lambda: nn.Sequential(nn.BatchNorm1d(1)), nn.functional.mse_loss, (x, x), (x, x), batch=1)


def data(inputs: int, targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(inputs, 1), torch.ones(targets, 1)


def test_data_of_no_rows_or_of_two_lengths_are_refused() -> None:
    def source(support: tuple[torch.Tensor, torch.Tensor], query: tuple[torch.Tensor, torch.Tensor]) -> None:
        ModuleSource(lambda: nn.Linear(1, 1), nn.functional.mse_loss, support, query, batch=4)

    with pytest.raises(LearnerError, match="the support data have 0 rows of inputs and 0 of targets: give at least one"):
        source(data(0, 0), data(3, 3))
    with pytest.raises(LearnerError, match="the query data have 3 rows of inputs and 9 of targets"):
        source(data(3, 3), data(3, 9))
    with pytest.raises(LearnerError, match="the test data have 0 rows"):
        ModuleTarget(lambda: nn.Linear(1, 1), nn.functional.mse_loss, data(3, 3), data(0, 0), batch=4)


class Scaled(nn.Module):
    """A line, and a parameter beside it that is unused, or a constant factor."""

    def __init__(self, *, constant: bool) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.factor = nn.Parameter(torch.full((1,), 3.0), requires_grad=not constant)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.line(inputs)
        return outputs if self.factor.requires_grad else self.factor * outputs


def module_source(model: Callable[[], nn.Module]) -> ModuleSource:
    return ModuleSource(model, nn.functional.mse_loss, data(9, 9), data(9, 9), batch=4)


def test_a_parameter_that_the_loss_leaves_out_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"the loss does not depend on the model's parameter factor: take it out, or make it a constant"):
        module_source(lambda: Scaled(constant=False))


def test_a_parameter_without_gradient_is_a_constant() -> None:
    source = module_source(lambda: Scaled(constant=True))
    theta = source.initial_parameters(0)
    assert theta.keys() == {"line.weight", "line.bias"}
    zero = {key: torch.zeros_like(value) for key, value in theta.items()}
    assert float(source.loss({**zero, "line.bias": torch.ones(1)}, data(2, 2))) == 4.0, "(3 * 1 - 1)^2"
    learner = MAML(LearningOptions(), source, name="a")
    contribution = job_done(learner, Job("train", 0, 0), learner.initial_parameters(0))
    assert contribution.tensors.keys() == theta.keys()


def test_a_model_less_exact_than_asked_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"learning.dtype is float64, but weight of a Linear is torch.float32: make the model"):
        MAML(LearningOptions(dtype="float64"), module_source(lambda: nn.Linear(1, 1)), name="a")
