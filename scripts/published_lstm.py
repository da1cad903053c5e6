"""The forecaster as published (LSTMs of hidden size 1 as encoder and decoder, 23 parameters), trained as FedAvg with one step a round.

One theta, by the mean of all sources' gradients, serves every amount of target data; how a target adapts it depends on its days.
`scripts/train_tasks.py parking-lstm-choice` compares CANDIDATES on source lots that training left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fmrec_agent.learning.options import LearningOptions
from scripts.federation import Trained, falling, train

ROUNDS = 5000
MODEL = {"hidden": 1, "decoder": "all"}
METHOD = {"learner": "fedavg", "iterations_per_round": 1}
Adaptation = tuple[Literal["adam", "sgd"], float, int]
"""Optimizer, rate, steps."""
ADAPTATION: dict[int, Adaptation] = {1: ("sgd", 0.1, 400), 3: ("adam", 0.01, 1600), 6: ("adam", 0.01, 1600), 24: ("adam", 0.01, 1600)}
"""By days of target data."""
CANDIDATES: tuple[Adaptation, ...] = (
    *(("sgd", 0.1, steps) for steps in (100, 400, 1600)),
    *(("adam", rate, steps) for rate in (0.001, 0.003, 0.01) for steps in (100, 400, 1600)),
)


def options(data: str, days: int, adaptation: Adaptation | None = None, **task: Any) -> LearningOptions:
    """For targets with so many days. adaptation: instead of the one for these days."""
    optimizer, rate, steps = adaptation or ADAPTATION[days]
    adapt = {"adapt_optimizer": optimizer, "adapt_rate": rate, "adapt_iterations": steps}
    return LearningOptions.model_validate({**METHOD, **adapt, "task": {"name": "parking", "data": data, "days": days, **MODEL, **task}})


def trained(data: str, sources: Sequence[int], seed: int, rounds: int = ROUNDS) -> Trained:
    """theta, from these source lots."""
    return train(options(data, min(ADAPTATION)), sources=sources, stages=falling(rounds, 0.01), optimizer="adam", seed=seed)
