"""Every method recovered: 3 of 12 agents are killed in one round, and theta must be what it is without (promise P5).

Real processes. Each method runs twice with one seed, undisturbed and with SIGKILL to three sources in the middle of the same round,
or of the one after where an agent was too fast to be met there. rounds_lost: the most work that one agent did again, in rounds; a
round that closed without one of its agents counts whole. seconds_lost: see Seen.seconds_lost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Kill, Plan, Seen, run

METHODS = ("maml", "fomaml", "meta-sgd", "reptile", "per-fedavg", "lin", "admm", "fedavg")
AGENTS, SOURCES = 12, 9
VICTIMS = ("agent-1", "agent-4", "agent-7")
ROUNDS, KILL_ROUND = 12, 5
ITERATIONS = 20
SGD = ("server_optimizer=sgd", "server_rate=1.0")
SERVER = {
    "reptile": (*SGD, "weighting=uniform"),
    "per-fedavg": (*SGD, "weighting=uniform"),
    "lin": SGD,
    "admm": SGD,
    "fedavg": SGD,
}
"""The server's settings that make the method its paper's (docs/learning.md); elsewhere the defaults."""


def plan(method: str, data: str, seed: int, kills: bool) -> Plan:
    """One of the method's two runs."""
    server = (f"seed={seed}", f"rounds={ROUNDS}", f"sources_min={SOURCES}", f"targets_min={AGENTS - SOURCES}", *SERVER.get(method, ()))
    agent = (
        f"learning.learner={method}",
        f'learning.task.data="{data}"',
        f"learning.iterations_per_round={ITERATIONS}",
        "learning.batch=16",
        "learning.adapt_iterations=50",
        "checkpoint_every=5",
    )
    victims = tuple(Kill(name, "train", KILL_ROUND) for name in VICTIMS) if kills else ()
    return Plan(AGENTS, SOURCES, tuple(f"tree.main.{item}" for item in server), agent, victims)


def row(undisturbed: Seen, killed: Seen) -> dict[str, Any]:
    """What the kills changed and cost."""
    again = max(killed.iterations_again())
    return {
        "theta_equal": undisturbed.final["theta_digest"] == killed.final["theta_digest"],
        "rounds_lost": round(again / ITERATIONS + len(undisturbed.final["losses"]) - len(killed.final["losses"]), 2),
        "seconds_lost": round(killed.seconds_lost(), 3),
        "killed": [f"{life['name']} in round {life['round']}" for life in killed.lives],
        "iterations_again": killed.iterations_again(),
        "theta": killed.final["theta_digest"],
    }


async def recovered(method: str, data: str, seed: int, runs: Path) -> dict[str, Any]:
    """The method's row."""
    undisturbed = await run(runs / f"{method}-undisturbed", plan(method, data, seed, kills=False))
    return row(undisturbed, await run(runs / f"{method}-killed", plan(method, data, seed, kills=True)))


async def measure(data: str, seed: int, runs: Path, finished: Finished, quick: bool) -> dict[str, dict[str, Any]]:
    """A row for each method; quick: for ADMM alone, whose agents have most to lose."""
    rows = {}
    for method in ("admm",) if quick else METHODS:
        rows[method] = await finished.once(f"{data}, seed {seed}, {method}", partial(recovered, method, data, seed, runs))
    return rows
