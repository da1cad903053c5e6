"""The parking table: RMSE on the test days of 12 target lots with 1, 3, 6 and 24 days of their data.

By the Learner contract and the manager's Aggregator, without a network (scripts/federation.py): exact recovery makes the runs of real
processes the same. A method is trained from each seed on the sources alone, methods and seeds beside each other on the cores. For the
linear model that is done for each number of days, since its sources draw tasks as long as a target's data; with an LSTM the days matter
to the targets only, and one theta serves all. persistence: in 35 minutes it will be as now.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import mean
from typing import Any, NamedTuple

from fmrec_agent.learning.options import LearningOptions
from scripts import published_lstm
from scripts.federation import Stage, Trained, adapted, train
from scripts.paper_run.finished import Finished

DAYS = (1, 3, 6, 24)
HIDDEN = 4


class Size(NamedTuple):
    """share: rounds, and the LSTMs' steps of adaptation, are divided by it."""

    share: int
    sources: int
    targets: int


FULL, QUICK = Size(1, 30, 12), Size(100, 2, 2)


class Method(NamedTuple):
    """options: for targets with (the data's name, so many days). train: (data, days, seed, size) -> theta. by_days: is that another theta
    for each number of days? hidden: size of the LSTM, None without one."""

    options: Callable[[str, int], LearningOptions]
    train: Callable[[str, int, int, Size], Trained]
    by_days: bool = False
    hidden: int | None = None


def parking(data: str, days: int, learner: str, **task: Any) -> LearningOptions:
    return LearningOptions.model_validate({"learner": learner, "task": {"name": "parking", "data": data, "days": days, **task}})


def ridge(data: str, days: int) -> LearningOptions:
    return parking(data, days, "ridge", model="linear")


def train_ridge(data: str, days: int, seed: int, size: Size) -> Trained:
    return train(ridge(data, days), sources=size.sources, stages=(Stage(2, 1.0),), optimizer="sgd", seed=seed)


def maml(data: str, days: int) -> LearningOptions:
    return parking(data, days, "maml", hidden=HIDDEN)


def train_maml(data: str, days: int, seed: int, size: Size) -> Trained:
    stages = (Stage(max(1, 60 // size.share), 0.02),)
    return train(maml(data, days), sources=size.sources, stages=stages, optimizer="adam", seed=seed)


def train_published(data: str, days: int, seed: int, size: Size) -> Trained:
    return published_lstm.trained(data, range(size.sources), seed, published_lstm.ROUNDS // size.share)


METHODS: dict[str, Method] = {
    "fedavg": Method(published_lstm.options, train_published, hidden=published_lstm.MODEL["hidden"]),
    "maml": Method(maml, train_maml, hidden=HIDDEN),
    "ridge": Method(ridge, train_ridge, by_days=True),
}
"""fedavg: of the network as it was published; first, for it takes longest, so that the cores end at about the same time. ridge: nothing in
it is left to chance, so its seeds agree."""


def by_days(data: str, name: str, seed: int, size: Size) -> dict[str, list[dict[str, float]]]:
    """By days: each target's metrics after its adaptation, of theta that this method has trained from this seed."""
    method, found, theta = METHODS[name], {}, None
    for days in DAYS:
        if theta is None or method.by_days:
            theta = method.train(data, days, seed, size)
        options = method.options(data, days)
        if method.hidden is not None:
            options = options.model_copy(update={"adapt_iterations": options.adapt_iterations // size.share})
        found[str(days)] = adapted(options, theta, targets=size.targets, seed=seed)
    return found


async def measure(data: str, seeds: list[int], finished: Finished, quick: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """By days and method. rmse_pp_by_target: the mean over the seeds. quick: little of everything, and the first seed alone."""
    size, seeds = (QUICK, seeds[:1]) if quick else (FULL, seeds)
    pieces = [(name, seed) for name in METHODS for seed in seeds]
    # Each is one thread's work, and none reads another's. Spawned, for a fork of a process in which torch has run may hang.
    with ProcessPoolExecutor(min(len(pieces), os.cpu_count() or 1), get_context("spawn")) as pool:

        async def piece(name: str, seed: int) -> dict[str, list[dict[str, float]]]:
            return await asyncio.get_running_loop().run_in_executor(pool, by_days, data, name, seed, size)

        keys = [f"{data}, {name}, seed {seed}{', quick' if quick else ''}" for name, seed in pieces]
        made = (finished.once(key, partial(piece, *each)) for key, each in zip(keys, pieces, strict=True))
        found = dict(zip(pieces, await asyncio.gather(*made), strict=True))
    table: dict[str, dict[str, dict[str, Any]]] = {str(days): {} for days in DAYS}
    for name, method in METHODS.items():
        for days, row in table.items():
            metrics = [found[name, seed][days] for seed in seeds]
            row[name] = {**_figures("rmse_pp", metrics), "seeds": seeds, "hidden": method.hidden}
            row["persistence"] = {**_figures("persistence_rmse_pp", metrics[:1]), "seeds": [], "hidden": None}
    return table


def _figures(metric: str, by_seed: list[list[dict[str, float]]]) -> dict[str, Any]:
    targets = [mean(one[metric] for one in ones) for ones in zip(*by_seed, strict=True)]
    return {"rmse_pp_mean": round(mean(targets), 4), "rmse_pp_by_target": [round(value, 4) for value in targets]}
