"""How well each task is learnt: trains in one process through the agents' learners and the manager's server step, and measures on targets.

    sinusoid     K = 10: MSE after 1 and 10 steps; the floor is a net of the same size trained on all sinusoids without adaptation in mind
    synthetic    Synthetic(1, 1), 30 devices: accuracy on 30 new devices after adaptation
    parking      RMSE over the 12 targets with 0, 1, 3, 6 and 24 days of their data, by ridge; the floor is persistence
    parking-lstm the same, by the published network
    omniglot     5-way 1-shot on characters that no source has, one source and twelve; the floor is chance

Each is trained from every seed given. No target's test data enters training, nor what training chooses for itself (ridge's prior and its
strength). Rates, numbers of rounds and the linear model's features were chosen by hand, with test errors in view. One
thread; CPU seconds are beside wall time, since these alone can be compared on a machine that is not idle. Each row is told on standard
error when it is done. --json: one object on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import Parameters
from fmrec_manager.aggregation import AggregationError, Optimizer
from scripts.demo_report import hardware
from scripts.federation import Stage, Trained, adapted, evaluated, falling, linear_prior, train

Row = dict[str, Any]
"""case: what was trained how. seed. rounds, wall_s, cpu_s: of the training. One entry more for each figure."""

SINUSOID_CASES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("Meta-SGD, 1 step", {"learner": "meta-sgd", "inner_steps": 1, "rate_max": 0.02}, 8_000),
    ("MAML, 5 steps", {"learner": "maml", "inner_steps": 5, "inner_rate": 0.001, "adapt_optimizer": "sgd", "adapt_rate": 0.001}, 8_000),
    ("pre-trained", {"learner": "fedavg", "adapt_optimizer": "sgd", "adapt_rate": 0.001}, 8_000),
)
"""case, method, rounds. One step can be long; several of that length diverge, and so does a pre-trained net that adapts at 0.01."""
LOTS, DAYS = 30, (1, 3, 6, 24)
LSTM = {"learner": "fedavg", "iterations_per_round": 1, "adapt_iterations": 400, "adapt_rate": 0.001}
LSTM_HIDDEN, LSTM_ROUNDS = 16, 1000
OMNIGLOT_CASES = (("MAML, 1 agent", 1, 8, 3600), ("MAML, 12 agents", 12, 1, 2500))
"""case, agents, episodes of each in a round, rounds."""
SHORT = 20
"""--quick divides rounds and targets by this: to see that everything runs, not for figures."""


def sinusoid(seed: int, data: str, share: int) -> Iterator[Row]:
    """Meta-SGD for one step, MAML for several, and a net trained to fit all sinusoids at once (Finn et al., section 5.1: pretrained)."""
    shared = {"task": {"name": "sinusoid", "meta_batch": 25, "queries": 20}, "iterations_per_round": 1, "adapt_iterations": 10}
    for case, method, rounds in SINUSOID_CASES:
        options = LearningOptions.model_validate({**shared, **method})
        trained = train(options, sources=1, stages=falling(rounds // share, 0.003), optimizer="adam", seed=seed)
        yield {**described(case, seed, trained), **adapted(options, trained.theta, targets=600 // share, seed=seed)}


OUTER: dict[str, tuple[float, Optimizer]] = {"MAML": (0.02, "adam"), "FedAvg": (1.0, "sgd")}
"""The server's rate and optimizer of each method on Synthetic(1, 1)."""


def synthetic(seed: int, data: str, share: int) -> Iterator[Row]:
    for case, own in (
        ("MAML", {"learner": "maml", "inner_rate": 0.1}),
        ("FedAvg", {"learner": "fedavg", "local_rate": 0.1}),
    ):
        adapt = {"adapt_optimizer": "sgd", "adapt_rate": 0.1, "adapt_iterations": 50, "adapt_batch": 20}
        task = {"name": "synthetic", "data_seed": seed}
        options = LearningOptions.model_validate({**adapt, **own, "iterations_per_round": 5, "batch": 20, "task": task})
        rate, optimizer = OUTER[case]
        trained = train(options, sources=30, stages=(Stage(200 // share, rate),), optimizer=optimizer, seed=seed)
        yield {**described(case, seed, trained), **adapted(options, trained.theta, targets=30, seed=seed)}


def omniglot(seed: int, data: str, share: int) -> Iterator[Row]:
    """Second-order MAML, one inner step in training and three at test, as the sources' only agent and as twelve."""
    for case, sources, meta_batch, rounds in OMNIGLOT_CASES:
        options = omniglot_options(data, sources, meta_batch, queries=5)
        trained = train(options, sources=sources, stages=falling(rounds // share, 0.003), optimizer="adam", seed=seed)
        for shots in (1, 5):
            test = omniglot_options(data, sources, meta_batch, queries=15, shots=shots)
            figures = adapted(test, trained.theta, targets=600 // share, seed=seed)
            yield {**described(f"{case}, {shots}-shot", seed, trained), **figures}


def omniglot_options(data: str, sources: int, meta_batch: int, *, queries: int, shots: int = 1) -> LearningOptions:
    method = {"inner_rate": 0.4, "inner_steps": 1, "iterations_per_round": 1}
    test = {"adapt_iterations": 3, "adapt_optimizer": "sgd", "adapt_rate": 0.4}
    task = {"name": "omniglot", "data": data, "sources": sources, "meta_batch": meta_batch, "queries": queries, "shots": shots}
    return LearningOptions.model_validate({**method, **test, "task": task})


def described(case: str, seed: int, trained: Trained) -> Row:
    """The row's part that every case has."""
    figures = {"rounds": trained.rounds, "wall_s": trained.wall_s, "cpu_s": trained.cpu_s, "loss": trained.loss}
    return {"case": case, "seed": seed, **figures}


def parking(seed: int, data: str, share: int) -> Iterator[Row]:
    """The linear model with a learnt prior, for each amount of target data; nothing in it is left to chance, so seeds agree."""
    for days in DAYS:
        options = parking_options(data, days, {"learner": "ridge"}, model="linear")
        trained = train(options, sources=LOTS // share or 2, stages=(Stage(2, 1.0),), optimizer="sgd", seed=seed)
        yield parking_row(f"ridge, {days} days", options, trained, linear_prior(trained.theta), seed)


def parking_lstm(seed: int, data: str, share: int) -> Iterator[Row]:
    """The published network: one theta, averaged over all sources' steps, for every amount of target data."""
    options = [parking_options(data, days, LSTM, hidden=LSTM_HIDDEN) for days in DAYS]
    stages = falling(LSTM_ROUNDS // share, 0.01)
    trained = train(options[0], sources=LOTS // share or 2, stages=stages, optimizer="adam", seed=seed)
    model = {key: torch.tensor(value) for key, value in trained.theta.items()}
    for days, chosen in zip(DAYS, options, strict=True):
        yield parking_row(f"FedAvg, LSTM, {days} days", chosen, trained, model, seed)


def parking_options(data: str, days: int, method: dict[str, Any], **task: Any) -> LearningOptions:
    return LearningOptions.model_validate({**method, "task": {"name": "parking", "data": data, "days": days, **task}})


def parking_row(case: str, options: LearningOptions, trained: Trained, model: Parameters, seed: int) -> Row:
    """model: what theta is before a target adapts it."""
    figures = adapted(options, trained.theta, targets=12, seed=seed)
    return {**described(case, seed, trained), **figures, "without_target_data": evaluated(options, model, targets=12)["rmse_pp"]}


EXPERIMENTS: dict[str, Callable[[int, str, int], Iterator[Row]]] = {
    "sinusoid": sinusoid,
    "synthetic": synthetic,
    "parking": parking,
    "parking-lstm": parking_lstm,
    "omniglot": omniglot,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", default="synthetic", help="the folder of the real data (parking, omniglot)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train from each of these")
    parser.add_argument("--quick", action="store_true", help=f"1 / {SHORT} of the rounds and targets: to see that it runs")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    share = SHORT if given.quick else 1
    try:
        rows = []
        for seed in given.seeds:
            for row in EXPERIMENTS[given.experiment](seed, given.data, share):
                print(*(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
                rows.append(row)
    except (LearnerError, AggregationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {"experiment": given.experiment, "data": given.data, "quick": given.quick, "hardware": hardware(), "rows": rows}
    if given.json:
        print(json.dumps(report))
        return 0
    table = Table(*rows[0], box=None, title=f"{given.experiment}, {report['hardware']}")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
