"""How well each task is learnt: trains in one process through the agents' learners and the manager's server step, and measures on targets.

    sinusoid     K = 10: MSE after 1 and 10 steps of one net; the floor is the same net trained to fit all sinusoids at once
    synthetic    Synthetic(1, 1), 30 devices: accuracy on 30 new devices after adaptation
    parking      RMSE over the 12 targets with 0, 1, 3, 6 and 24 days of their data, by ridge; the floor is persistence
    parking-lstm the same, by the published network
    parking-choice, parking-lstm-choice: compare ridge's features, and the network's ways to adapt, on source lots that training left out
    omniglot     5-way 1-shot on characters that no source has, one source and twelve; the floor is chance

Each is trained from every seed given. No target's test data enters training, nor what training chooses for itself (ridge's prior and its
strength). The linear model's features, and how the LSTM adapts, were chosen on source lots, by the two commands above; rates and numbers
of rounds by hand. CPU seconds are beside wall time, since these alone can be compared on a machine that is not idle. Each row is
told on standard error when it is done. --json: one object on standard output, with null where a figure is not finite.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.options import SYNTHETIC, LearningOptions, ParkingOptions
from fmrec_agent.learning.task import Parameters
from fmrec_agent.learning.tasks.parking_data import read_lot
from fmrec_agent.learning.tasks.synthetic_parking import synthetic_lot
from fmrec_manager.aggregation import AggregationError, Optimizer
from scripts import published_lstm
from scripts.demo_report import hardware
from scripts.federation import Stage, Trained, adapted, evaluated, falling, linear_prior, means, train

Row = dict[str, Any]
"""case: what was trained how. seed. rounds, wall_s, cpu_s: of the training. One entry more for each figure."""

FIRST_AND_TENTH = (0.5, *(0.0,) * 8, 0.5)
RATES_AT_FIRST = {"rate_min": 0.001, "rate_max": 0.001, "log_rates": True}
LEARNT_RATES = {"learner": "meta-sgd", "inner_steps": 10, "step_losses": FIRST_AND_TENTH, "gradient_norm_max": 1.0, **RATES_AT_FIRST}
SINUSOID_CASES: tuple[tuple[str, dict[str, Any], int, tuple[float, ...]], ...] = (
    ("Meta-SGD, losses of steps 1 and 10", LEARNT_RATES, 5_000, ()),
    ("pre-trained", {"learner": "fedavg", "adapt_optimizer": "sgd"}, 5_000, (0.001, 0.01)),
)
"""case, method, rounds, rates to adapt at where they are not learnt (0.01 is the paper's)."""
LOTS, DAYS = 30, (1, 3, 6, 24)
RIDGE: dict[str, Any] = {"learner": "ridge"}
RIDGE_STAGES = (Stage(2, 1.0),)
HARMONICS = (0, 4, 8, 12, 16)
LEFT_OUT = 5
"""One source lot in so many is left out of the training by which an adaptation is chosen."""
OMNIGLOT_CASES = (
    ("MAML, 1 agent, 5 queries", 1, 8, 3600, 64, 5),
    ("MAML, 1 agent, 3 queries", 1, 8, 3400, 64, 3),
    ("MAML, 1 agent, 32 channels", 1, 8, 5800, 32, 5),
    ("MAML, 12 agents", 12, 1, 1500, 64, 5),
)
"""case, agents, episodes of each in a round, rounds, channels, queries of a class in training."""
WITH_CASES = ("sinusoid", "omniglot")
"""The experiments that know --only and --threads."""
SHORT = 20
"""--quick divides rounds and targets by this: to see that everything runs, not for figures."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says. share: rounds and targets are divided by it. only: what a case's name must hold."""

    data: str
    share: int
    threads: int
    only: str


def sinusoid(seed: int, given: Given) -> Iterator[Row]:
    """One net that is good after one step and after ten, and one trained to fit all sinusoids at once (Finn et al., 5.1: pretrained)."""
    task = {"name": "sinusoid", "meta_batch": 25, "queries": 20, "activation": "silu"}
    for case, method, rounds, rates in (each for each in SINUSOID_CASES if given.only in each[0]):
        options = LearningOptions.model_validate({"task": task, "iterations_per_round": 1, "adapt_iterations": 10, **method})
        stages = falling(rounds // given.share, 0.003)
        trained = train(options, sources=1, stages=stages, optimizer="adam", seed=seed, threads=given.threads)
        for rate in rates or (options.adapt_rate,):
            at_rate = options.model_copy(update={"adapt_rate": rate})
            figures = means(adapted(at_rate, trained, targets=600 // given.share, seed=seed))
            yield {**described(f"{case}, at {rate}" if rates else case, seed, trained), **figures}


OUTER: dict[str, tuple[float, Optimizer]] = {"MAML": (0.02, "adam"), "FedAvg": (1.0, "sgd")}
"""The server's rate and optimizer of each method on Synthetic(1, 1)."""


def synthetic(seed: int, given: Given) -> Iterator[Row]:
    for case, own in (
        ("MAML", {"learner": "maml", "inner_rate": 0.1}),
        ("FedAvg", {"learner": "fedavg", "local_rate": 0.1}),
    ):
        adapt = {"adapt_optimizer": "sgd", "adapt_rate": 0.1, "adapt_iterations": 50, "adapt_batch": 20}
        task = {"name": "synthetic", "data_seed": seed}
        options = LearningOptions.model_validate({**adapt, **own, "iterations_per_round": 5, "batch": 20, "task": task})
        rate, optimizer = OUTER[case]
        trained = train(options, sources=30, stages=(Stage(200 // given.share, rate),), optimizer=optimizer, seed=seed)
        yield {**described(case, seed, trained), **means(adapted(options, trained, targets=30, seed=seed))}


def omniglot(seed: int, given: Given) -> Iterator[Row]:
    """Second-order MAML, one inner step in training, and ten at test on the support and bent copies of it; as the sources' only agent and
    as twelve."""
    for case, sources, meta_batch, rounds, channels, queries in (each for each in OMNIGLOT_CASES if given.only in each[0]):
        options = omniglot_options(given.data, sources, meta_batch, channels, queries=queries)
        stages = falling(rounds // given.share, 0.006)
        trained = train(options, sources=sources, stages=stages, optimizer="adam", seed=seed, threads=given.threads)
        for shots in (1, 5):
            test = omniglot_options(given.data, sources, meta_batch, channels, queries=15, shots=shots, copies=3)
            figures = means(adapted(test, trained, targets=600 // given.share, seed=seed))
            yield {**described(f"{case}, {shots}-shot", seed, trained), **figures}


def omniglot_options(data: str, sources: int, meta_batch: int, channels: int, *, queries: int, **task: int) -> LearningOptions:
    method = {"inner_rate": 0.4, "inner_steps": 1, "iterations_per_round": 1}
    test = {"adapt_iterations": 10, "adapt_optimizer": "sgd", "adapt_rate": 0.4}
    shared = {"name": "omniglot", "data": data, "sources": sources, "meta_batch": meta_batch, "channels": channels, "jitter": 1.0}
    return LearningOptions.model_validate({**method, **test, "task": {**shared, "queries": queries, **task}})


def described(case: str, seed: int, trained: Trained) -> Row:
    """The row's part that every case has."""
    figures = {"rounds": trained.rounds, "wall_s": trained.wall_s, "cpu_s": trained.cpu_s, "loss": trained.loss}
    return {"case": case, "seed": seed, **figures}


def parking(seed: int, given: Given) -> Iterator[Row]:
    """The linear model with a learnt prior, for each amount of target data; nothing in it is left to chance, so seeds agree."""
    for days in DAYS:
        options = parking_options(given.data, days, RIDGE, model="linear")
        trained = train(options, sources=LOTS // given.share or 2, stages=RIDGE_STAGES, optimizer="sgd", seed=seed)
        yield parking_row(f"ridge, {days} days", options, trained, linear_prior(trained.theta), seed)


def parking_lstm(seed: int, given: Given) -> Iterator[Row]:
    """The published network: one theta for every amount of target data."""
    trained = published_lstm.trained(given.data, range(LOTS // given.share or 2), seed, published_lstm.ROUNDS // given.share)
    model = {key: torch.tensor(value) for key, value in trained.theta.items()}
    for days in published_lstm.ADAPTATION:
        yield parking_row(f"FedAvg, LSTM, {days} days", published_lstm.options(given.data, days), trained, model, seed)


def parking_choice(seed: int, given: Given) -> Iterator[Row]:
    """The linear model with each number of harmonics, with and without products, on source lots, one in LEFT_OUT, that the prior and its
    strength are made without; which ones, the seed says. No target lot is read."""
    sources, names = without_some(seed, given)
    for days in DAYS:
        for harmonics, products in product(HARMONICS, (True, False)):
            task = {"model": "linear", "harmonics": harmonics, "products": products}
            options = parking_options(given.data, days, RIDGE, **task)
            trained = train(options, sources=sources, stages=RIDGE_STAGES, optimizer="sgd", seed=seed)
            lots = [parking_options(given.data, days, RIDGE, **task, lot=name) for name in names]
            case = f"{days} days, {harmonics} harmonics, {'products' if products else 'plain'}"
            yield {**described(case, seed, trained), "rmse_pp": mean_error(lots, trained, seed)}


def parking_lstm_choice(seed: int, given: Given) -> Iterator[Row]:
    """Each adaptation on source lots, one in LEFT_OUT, that training left out; which ones, the seed says. No target lot is read."""
    sources, names = without_some(seed, given)
    trained = published_lstm.trained(given.data, sources, seed, published_lstm.ROUNDS // given.share)
    for days in DAYS:
        for optimizer, rate, steps in published_lstm.CANDIDATES:
            lots = [published_lstm.options(given.data, days, (optimizer, rate, steps), lot=name) for name in names]
            yield {**described(f"{days} days, {optimizer} {rate} x {steps}", seed, trained), "rmse_pp": mean_error(lots, trained, seed)}


def without_some(seed: int, given: Given) -> tuple[list[int], list[str]]:
    """The source lots that train, by index, and those that are left out, by name."""
    lots = range(max(LOTS // given.share, LEFT_OUT))
    left_out = range(seed % LEFT_OUT, len(lots), LEFT_OUT)
    return [index for index in lots if index not in left_out], [lot_name(given.data, index) for index in left_out]


def mean_error(lots: list[LearningOptions], trained: Trained, seed: int) -> float:
    """RMSE in percentage points, the mean over these lots, each of which adapts theta as a target does."""
    return mean(adapted(options, trained, targets=1, seed=seed)[0]["rmse_pp"] for options in lots)


def lot_name(data: str, index: int) -> str:
    """Of the index-th source lot."""
    if data == SYNTHETIC:
        return synthetic_lot(ParkingOptions(), role="source", index=index).name
    return read_lot(data, role="source", index=index, lot=None).name


def parking_options(data: str, days: int, method: dict[str, Any], **task: Any) -> LearningOptions:
    return LearningOptions.model_validate({**method, "task": {"name": "parking", "data": data, "days": days, **task}})


def parking_row(case: str, options: LearningOptions, trained: Trained, model: Parameters, seed: int) -> Row:
    """model: what theta is before a target adapts it."""
    figures = means(adapted(options, trained, targets=12, seed=seed))
    return {**described(case, seed, trained), **figures, "without_target_data": evaluated(options, model, targets=12)["rmse_pp"]}


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


EXPERIMENTS: dict[str, Callable[[int, Given], Iterator[Row]]] = {
    "sinusoid": sinusoid,
    "synthetic": synthetic,
    "parking": parking,
    "parking-lstm": parking_lstm,
    "parking-choice": parking_choice,
    "parking-lstm-choice": parking_lstm_choice,
    "omniglot": omniglot,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", default="synthetic", help="the folder of the real data (parking, omniglot)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train from each of these")
    parser.add_argument("--quick", action="store_true", help=f"1 / {SHORT} of the rounds and targets: to see that it runs")
    parser.add_argument("--only", help="of sinusoid and omniglot, the cases whose name holds this (\"1 agent\")")
    parser.add_argument("--threads", type=int, help="torch's, of sinusoid and omniglot in training (default 1)")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    arguments = parser.parse_args()
    if arguments.experiment not in WITH_CASES:
        for option, value in (("--only", arguments.only), ("--threads", arguments.threads)):
            if value is not None:
                parser.error(f"{option} is of {' and '.join(WITH_CASES)}, and does nothing to {arguments.experiment}: leave it out")
    threads = 1 if arguments.threads is None else arguments.threads
    given = Given(arguments.data, SHORT if arguments.quick else 1, threads, arguments.only or "")
    try:
        rows = []
        for seed in arguments.seeds:
            for row in EXPERIMENTS[arguments.experiment](seed, given):
                print(*(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
                rows.append(row)
    except (LearnerError, AggregationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    said = {"experiment": arguments.experiment, "data": given.data, "quick": arguments.quick, "threads": given.threads}
    if not rows:
        names = ", ".join(case[0] for case in (*SINUSOID_CASES, *OMNIGLOT_CASES))
        parser.error(f"--only {given.only!r} is in no case's name: {names}")
    report = {**said, "hardware": hardware(), "rows": rows}
    if arguments.json:  # which knows no nan
        print(json.dumps({**report, "rows": [{key: finite(value) for key, value in row.items()} for row in rows]}, allow_nan=False))
        return 0
    table = Table(*rows[0], box=None, title=f"{arguments.experiment}, {report['hardware']}")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
