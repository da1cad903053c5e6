"""The parking table: RMSE on the test days of 12 target lots with 1, 3, 6 and 24 days of their data.

One process, by the Learner contract and the manager's Aggregator (scripts/federation.py): exact recovery makes the runs of real
processes the same. A method is trained once a seed, on the sources alone; the days matter to the targets only. persistence: in 35
minutes it will be as now.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch

from fmrec_agent.learning.learner import Job, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Optimizer
from scripts.federation import Stage, train, worked

DAYS = (1, 3, 6, 24)
SOURCES, TARGETS = 30, 12
HIDDEN = 4
Method = tuple[dict[str, Any], tuple[Stage, ...], Optimizer]
METHODS: dict[str, Method] = {
    "ridge": ({"learner": "ridge", "task": {"model": "linear"}}, (Stage(2, 1.0),), "sgd"),
    "maml": ({"learner": "maml", "task": {"hidden": HIDDEN}}, (Stage(60, 0.02),), "adam"),
}
"""Options, stages and server optimizer of each method that is trained here."""


def options(method: str, data: str, days: int) -> LearningOptions:
    """Of the method, for targets with so many days."""
    own = METHODS[method][0]
    return LearningOptions.model_validate({**own, "task": {"name": "parking", "data": data, "days": days, **own["task"]}})


def by_target(given: LearningOptions, theta: Tensors, seed: int) -> list[dict[str, float]]:
    """Each target's metrics after its adaptation."""
    learners = [load_learner(given, name=f"target-{index}", role="target", index=index) for index in range(TARGETS)]
    return [dict(worked(learner, Job("adapt", 0, seed), theta).metrics) for learner in learners]


def measure(data: str, seeds: list[int]) -> dict[str, dict[str, dict[str, Any]]]:
    """By days and method. rmse_pp_by_target: the mean over the seeds."""
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, Any]]] = {str(days): {} for days in DAYS}
    for method, (_, stages, optimizer) in METHODS.items():
        own_seeds = seeds[:1] if method == "ridge" else seeds  # nothing of ridge is left to chance
        thetas = {
            seed: train(options(method, data, DAYS[0]), sources=SOURCES, stages=stages, optimizer=optimizer, seed=seed).theta
            for seed in own_seeds
        }
        for days in DAYS:
            found = [by_target(options(method, data, days), theta, seed) for seed, theta in thetas.items()]
            row = {"seeds": own_seeds, "hidden": None if method == "ridge" else HIDDEN}
            table[str(days)][method] = {**_figures([[metrics["rmse_pp"] for metrics in one] for one in found]), **row}
            persistence = [[metrics["persistence_rmse_pp"] for metrics in found[0]]]
            table[str(days)]["persistence"] = {**_figures(persistence), "seeds": [], "hidden": None}
            print(f"  {method}, {days} days: {table[str(days)][method]['rmse_pp_mean']:.2f} pp", flush=True)
    return table


def _figures(by_seed: list[list[float]]) -> dict[str, Any]:
    targets = [round(mean(values), 4) for values in zip(*by_seed, strict=True)]
    return {"rmse_pp_mean": round(mean(mean(values) for values in by_seed), 4), "rmse_pp_by_target": targets}
