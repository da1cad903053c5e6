"""The parking table: RMSE on the test days of 12 target lots with 1, 3, 6 and 24 days of their data.

One process, by the Learner contract and the manager's Aggregator (scripts/federation.py): exact recovery makes the runs of real
processes the same. A method is trained from each seed on the sources alone. For the linear model that is done for each number of days,
since its sources draw tasks as long as a target's data; with the LSTM the days matter to the targets only, and one theta serves
all. persistence: in 35 minutes it will be as now.
"""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

import torch

from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Optimizer
from scripts.federation import Stage, Trained, train, worked
from scripts.paper_run.finished import Finished

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


def by_target(given: LearningOptions, trained: Trained, seed: int) -> list[dict[str, float]]:
    """Each target's metrics after its adaptation."""
    learners = [load_learner(given, name=f"agent-{SOURCES + index}", role="target", index=index) for index in range(TARGETS)]
    return [dict(worked(learner, Job("adapt", trained.rounds, seed), trained.theta).metrics) for learner in learners]


async def adapted(data: str, method: str, seed: int) -> dict[str, list[dict[str, float]]]:
    """By days: each target's metrics, of theta that this method has trained from this seed."""
    own, stages, optimizer = METHODS[method]
    found, trained = {}, None
    for days in DAYS:
        given = options(method, data, days)
        if trained is None or own["task"].get("model") == "linear":
            trained = train(given, sources=SOURCES, stages=stages, optimizer=optimizer, seed=seed)
        found[str(days)] = by_target(given, trained, seed)
    return found


async def measure(data: str, seeds: list[int], finished: Finished) -> dict[str, dict[str, dict[str, Any]]]:
    """By days and method. rmse_pp_by_target: the mean over the seeds."""
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, Any]]] = {str(days): {} for days in DAYS}
    for method in METHODS:
        chance = method != "ridge"  # which leaves nothing to it
        own_seeds = seeds if chance else seeds[:1]
        found = [await finished.once(f"{data}, {method}, seed {seed}", partial(adapted, data, method, seed)) for seed in own_seeds]
        for days, row in table.items():
            metrics = [one[days] for one in found]
            row[method] = {**_figures("rmse_pp", metrics), "seeds": own_seeds, "hidden": HIDDEN if chance else None}
            row["persistence"] = {**_figures("persistence_rmse_pp", metrics[:1]), "seeds": [], "hidden": None}
    return table


def _figures(metric: str, by_seed: list[list[dict[str, float]]]) -> dict[str, Any]:
    targets = [mean(one[metric] for one in ones) for ones in zip(*by_seed, strict=True)]
    return {"rmse_pp_mean": round(mean(targets), 4), "rmse_pp_by_target": [round(value, 4) for value in targets]}
