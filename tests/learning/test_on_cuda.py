"""Every method on a CUDA device: the same bytes from run to run and from process to process, and the CPU's result but for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fmrec_agent.learning.conformance import elsewhere, findings, maker
from fmrec_agent.learning.learner import Contribution, Job, JobKind, Role
from fmrec_agent.learning.loading import LEARNERS, load_learner
from fmrec_agent.learning.options import LearningOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: learning on one stays unchecked")
SINUSOIDS = {"name": "sinusoid", "meta_batch": 5, "hidden": 8}
CAR_PARKS = {"name": "parking", "hidden": 4}
LINEAR = {"name": "parking", "model": "linear"}


def options(method: str, **more: Any) -> LearningOptions:
    task = LINEAR if method == "ridge" else CAR_PARKS
    sizes = {"batch": 16, "iterations_per_round": 3, "adapt_iterations": 1 if method == "ridge" else 5}
    return LearningOptions.model_validate({"learner": method, "device": "cuda", "dtype": "float64", "task": task, **sizes, **more})


def worked(chosen: LearningOptions, role: Role = "source", kind: JobKind = "train") -> Contribution:
    learner = load_learner(chosen, name="a", role=role, index=0)
    for _ in range(learner.begin(Job(kind, 0, 0), learner.initial_parameters(1))):
        learner.step()
    return learner.finish()


@pytest.mark.parametrize("method", LEARNERS)
def test_recovery_is_exact_on_one_device_whatever_the_process(method: str) -> None:
    chosen = options(method, dtype="float32")
    found = [*findings(maker(chosen, "source"), "source"), *findings(maker(chosen, "target"), "target"), elsewhere(chosen, "source")]
    assert [finding for finding in found if finding.fault] == []


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize(("role", "kind"), [("source", "train"), ("target", "adapt")])
def test_the_result_is_the_cpus_but_for_rounding(method: str, role: Role, kind: JobKind) -> None:
    there, here = (worked(options(method, device=device), role, kind) for device in ("cuda", "cpu"))
    assert there.loss == pytest.approx(here.loss, rel=1e-6)
    for key, value in here.tensors.items():
        np.testing.assert_allclose(there.tensors[key], value, rtol=1e-6, atol=1e-9)


def test_tasks_together_are_tasks_in_parts_but_for_rounding() -> None:
    whole, parts = (worked(options("maml", task=SINUSOIDS, tasks_at_once=at_once)) for at_once in (5, 2))
    for key, value in whole.tensors.items():
        np.testing.assert_allclose(parts.tensors[key], value, rtol=1e-9, atol=1e-12)
