"""Every method recovered: 3 of 12 agents are killed in one round, and theta must be what it is without (promise P5).

The run with kills is of real processes: SIGKILL to three sources in the middle of the same round, or of the one after where an agent was
too fast to be met there. The undisturbed theta is what the same learners and the manager's Aggregator make in one process
(scripts/federation.py). rounds_lost: the most work that one agent did again, in rounds; a round that closed without one of its agents
counts whole. seconds_lost: see Seen.seconds_lost.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fmrec_agent.learning.options import LearningOptions
from fmrec_manager.aggregation import Optimizer
from fmrec_manager.report import digest_of
from scripts.federation import Stage, train
from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Kill, Plan, Seen, run

METHODS = ("maml", "fomaml", "meta-sgd", "reptile", "per-fedavg", "lin", "admm", "fedavg", "ridge")
AGENTS, SOURCES = 12, 9
VICTIMS = ("agent-1", "agent-4", "agent-7")
ROUNDS, KILL_ROUND = 8, 3
ITERATIONS, EVERY, KILLED_AT = 12, 3, 8
"""Two iterations beyond a checkpoint: what a round gathers in its middle is restored, and not its beginning."""
SGD = ("reptile", "per-fedavg", "lin", "admm", "fedavg", "ridge")
"""The methods whose server moves theta by what is sent, at rate 1 (docs/learning.md); the others' is Adam, at 0.02."""


def server(method: str) -> tuple[Optimizer, float]:
    """The server's optimizer and rate."""
    return ("sgd", 1.0) if method in SGD else ("adam", 0.02)


def options(method: str, data: str) -> dict[str, Any]:
    """The learner's options, and its task's."""
    shared = {"learner": method, "iterations_per_round": ITERATIONS, "batch": 16}
    if method == "ridge":  # in closed form, of a model whose loss is quadratic; all of a source's days together are the cheapest draw
        return {**shared, "adapt_iterations": 1, "task": {"data": data, "model": "linear", "days": 24}}
    return {**shared, "adapt_iterations": 50, "task": {"data": data}}


def undisturbed(method: str, data: str, seed: int) -> str:
    """The digest of theta, made in this process."""
    torch.set_num_threads(1)
    optimizer, rate = server(method)
    learning = LearningOptions.model_validate(options(method, data))
    trained = train(learning, sources=SOURCES, stages=(Stage(ROUNDS, rate),), optimizer=optimizer, seed=seed)
    return digest_of(dict(trained.theta)).hex()


def plan(method: str, data: str, seed: int) -> Plan:
    """The run with kills."""
    optimizer, rate = server(method)
    tree = {"seed": seed, "rounds": ROUNDS, "sources_min": SOURCES, "targets_min": AGENTS - SOURCES}
    manager = [f"tree.main.{key}={value}" for key, value in {**tree, "server_optimizer": optimizer, "server_rate": rate}.items()]
    own = options(method, data)
    agent = [f"learning.{key}={value}" for key, value in own.items() if key != "task"]
    agent += [*(f"learning.task.{key}={json.dumps(value)}" for key, value in own["task"].items()), f"checkpoint_every={EVERY}"]
    return Plan(AGENTS, SOURCES, tuple(manager), tuple(agent), tuple(Kill(name, "train", KILL_ROUND, KILLED_AT) for name in VICTIMS))


def row(theta: str, killed: Seen) -> dict[str, Any]:
    """What the kills changed and cost. theta: the undisturbed one's digest."""
    again = max(killed.iterations_again())
    return {
        "theta_equal": killed.final["theta_digest"] == theta,
        "rounds_lost": round(again / ITERATIONS + killed.final["rounds"] - len(killed.final["losses"]), 2),
        "seconds_lost": round(killed.seconds_lost(), 3),
        "killed": [f"{life['name']} in round {life['round']}" for life in killed.lives],
        "iterations_again": killed.iterations_again(),
        "theta": killed.final["theta_digest"],
    }


async def recovered(method: str, data: str, seed: int, runs: Path) -> dict[str, Any]:
    """The method's row."""
    return row(undisturbed(method, data, seed), await run(runs / method, plan(method, data, seed)))


async def measure(data: str, seed: int, runs: Path, finished: Finished, quick: bool) -> dict[str, dict[str, Any]]:
    """A row for each method; quick: for ADMM alone, whose agents have most to lose."""
    rows = {}
    for method in ("admm",) if quick else METHODS:
        key = f"{data}, seed {seed}, {method}, killed at {KILLED_AT}"
        rows[method] = await finished.once(key, partial(recovered, method, data, seed, runs))
    return rows
