"""The parking table: RMSE on the test days of 12 target lots with 1, 3, 6 and 24 days of their data.

One process, by the Learner contract and the manager's Aggregator (scripts/federation.py): exact recovery makes the runs of real
processes the same. A method is trained from each seed on the sources alone. For the linear model that is done for each number of days,
since its sources draw tasks as long as a target's data; with an LSTM the days matter to the targets only, and one theta serves
all. persistence: in 35 minutes it will be as now.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import torch

from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Optimizer
from scripts import published_lstm
from scripts.federation import Stage, Trained, train, worked
from scripts.paper_run.finished import Finished

DAYS = (1, 3, 6, 24)
SOURCES, TARGETS = 30, 12
HIDDEN = 4


class Method(NamedTuple):
    """options: for targets with (the data's name, so many days). train: (data, days, seed) -> theta. by_days: is that another theta for
    each number of days? hidden: size of the LSTM, None without one. chance: does a seed matter?"""

    options: Callable[[str, int], LearningOptions]
    train: Callable[[str, int, int], Trained]
    by_days: bool = False
    hidden: int | None = None
    chance: bool = True


def parking(data: str, days: int, learner: str, **task: Any) -> LearningOptions:
    return LearningOptions.model_validate({"learner": learner, "task": {"name": "parking", "data": data, "days": days, **task}})


def trained(options: LearningOptions, stage: Stage, optimizer: Optimizer, seed: int) -> Trained:
    return train(options, sources=SOURCES, stages=(stage,), optimizer=optimizer, seed=seed)


def ridge(data: str, days: int) -> LearningOptions:
    return parking(data, days, "ridge", model="linear")


def maml(data: str, days: int) -> LearningOptions:
    return parking(data, days, "maml", hidden=HIDDEN)


METHODS: dict[str, Method] = {
    "ridge": Method(ridge, lambda data, days, seed: trained(ridge(data, days), Stage(2, 1.0), "sgd", seed), by_days=True, chance=False),
    "maml": Method(maml, lambda data, days, seed: trained(maml(data, days), Stage(60, 0.02), "adam", seed), hidden=HIDDEN),
    "fedavg": Method(
        published_lstm.options,
        lambda data, days, seed: published_lstm.trained(data, range(SOURCES), seed),
        hidden=published_lstm.MODEL["hidden"],
    ),
}
"""fedavg: of the network as it was published."""


def by_target(given: LearningOptions, trained: Trained, seed: int) -> list[dict[str, float]]:
    """Each target's metrics after its adaptation."""
    learners = [load_learner(given, name=f"agent-{SOURCES + index}", role="target", index=index) for index in range(TARGETS)]
    return [dict(worked(learner, Job("adapt", trained.rounds, seed), trained.theta).metrics) for learner in learners]


async def adapted(data: str, name: str, seed: int) -> dict[str, list[dict[str, float]]]:
    """By days: each target's metrics, of theta that this method has trained from this seed."""
    method, found, theta = METHODS[name], {}, None
    for days in DAYS:
        if theta is None or method.by_days:
            theta = method.train(data, days, seed)
        found[str(days)] = by_target(method.options(data, days), theta, seed)
    return found


async def measure(data: str, seeds: list[int], finished: Finished) -> dict[str, dict[str, dict[str, Any]]]:
    """By days and method. rmse_pp_by_target: the mean over the seeds."""
    torch.set_num_threads(1)
    table: dict[str, dict[str, dict[str, Any]]] = {str(days): {} for days in DAYS}
    for name, method in METHODS.items():
        own_seeds = seeds if method.chance else seeds[:1]
        found = [await finished.once(f"{data}, {name}, seed {seed}", partial(adapted, data, name, seed)) for seed in own_seeds]
        for days, row in table.items():
            metrics = [one[days] for one in found]
            row[name] = {**_figures("rmse_pp", metrics), "seeds": own_seeds, "hidden": method.hidden}
            row["persistence"] = {**_figures("persistence_rmse_pp", metrics[:1]), "seeds": [], "hidden": None}
    return table


def _figures(metric: str, by_seed: list[list[dict[str, float]]]) -> dict[str, Any]:
    targets = [mean(one[metric] for one in ones) for ones in zip(*by_seed, strict=True)]
    return {"rmse_pp_mean": round(mean(targets), 4), "rmse_pp_by_target": [round(value, 4) for value in targets]}
