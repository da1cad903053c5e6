"""A federated run in one process: the real learners, and the real server step of fmrec_manager/aggregation.py, without the network between.

Exact recovery makes a run of real processes equal to the undisturbed one bit for bit; so theta here is theta there, and what is measured
here is the method, the model and the data. One thing differs: a tree has one server rate, and a falling one is several runs there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from fmrec_agent.learning.learner import Contribution, Job, Tensors
from fmrec_agent.learning.loading import load_learner, load_task
from fmrec_agent.learning.methods.ridge import solution
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import Parameters, TargetTask
from fmrec_manager.aggregation import Aggregator, Optimizer
from protocol.identifiers import agent_id


@dataclass(frozen=True, slots=True)
class Stage:
    """So many rounds with one rate of the server; the optimizer's moments go on from stage to stage."""

    rounds: int
    server_rate: float


def falling(rounds: int, rate: float, *, parts: int = 20) -> tuple[Stage, ...]:
    """From `rate` down along half a cosine (Loshchilov & Hutter, ICLR 2017, equation 5), constant within each of so many parts."""
    ends = [rounds * part // parts for part in range(parts + 1)]
    heights = [(1 + math.cos(math.pi * part / parts)) / 2 for part in range(parts)]
    return tuple(Stage(end - start, rate * height) for start, end, height in zip(ends, ends[1:], heights, strict=False))


@dataclass(frozen=True, slots=True)
class Trained:
    """theta, of so many sources, and what it cost. loss: the mean loss of the last round's contributions."""

    theta: Tensors
    sources: int
    loss: float
    rounds: int
    wall_s: float
    cpu_s: float


def train(
    options: LearningOptions,
    *,
    sources: int | Sequence[int],
    stages: tuple[Stage, ...],
    optimizer: Optimizer,
    seed: int,
    threads: int = 1,
) -> Trained:
    """theta after the stages, by source agents weighted by their samples: the first so many, or those of these indices.

    threads: torch's. An agent has one; a process that is several agents by turns may have more.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    chosen = range(sources) if isinstance(sources, int) else sources
    names = [f"agent-{index}" for index in chosen]
    learners = [load_learner(options, name=name, role="source", index=index) for index, name in zip(chosen, names, strict=True)]
    torch.set_num_threads(threads)
    theta: Tensors = learners[0].initial_parameters(seed)
    state: Mapping[str, Any] | None = None
    done, losses = 0, [float("nan")]
    for stage in stages:
        aggregator = Aggregator("cpu", optimizer, stage.server_rate, 0.9, "samples")
        if state is not None:
            aggregator.restore(state)
        for round_ in range(done, done + stage.rounds):
            results = [worked(learner, Job("train", round_, seed), theta) for learner in learners]
            by_agent = {
                agent_id("fmrec", name): (result.tensors, result.samples, 1.0) for name, result in zip(names, results, strict=True)
            }
            theta, _ = aggregator.aggregate(theta, by_agent)
            losses = [result.loss for result in results]
        state, done = aggregator.state(), done + stage.rounds
    return Trained(theta, len(names), mean(losses), done, time.perf_counter() - began, time.process_time() - cpu_began)


def adapted(options: LearningOptions, trained: Trained, *, targets: int, seed: int) -> list[dict[str, float]]:
    """The metrics of each of the first so many targets, which adapts theta.

    What a target draws depends on its name and on the number of rounds before, so both are those of real processes, whose sources come
    first.
    """
    learners = [load_learner(options, name=f"agent-{trained.sources + index}", role="target", index=index) for index in range(targets)]
    return [dict(worked(learner, Job("adapt", trained.rounds, seed), trained.theta).metrics) for learner in learners]


def evaluated(options: LearningOptions, model: Parameters, *, targets: int) -> dict[str, float]:
    """Each metric's mean over the first so many targets, of the model as it is: none of their data is used."""
    results = []
    for index in range(targets):
        task = load_task(options, role="target", index=index)
        assert isinstance(task, TargetTask)
        results.append(task.evaluate(model)[1])
    return means(results)


def means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over the targets."""
    return {metric: mean(one[metric] for one in metrics) for metric in metrics[0]}


def linear_prior(theta: Tensors) -> Parameters:
    """The parking task's linear model in ridge's theta, before any target adapts it."""
    return {"weight": solution(torch.tensor(theta["curvature"]), torch.tensor(theta["slope"]))}


def worked(learner: Any, job: Job, theta: Tensors) -> Contribution:
    """What the whole job yields."""
    for _ in range(learner.begin(job, theta)):
        learner.step()
    result: Contribution = learner.finish()
    return result
