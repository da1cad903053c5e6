"""Fig. 1 of the paper: RMSE against the number of nodes that lost their meta knowledge.

Twelve targets adapt one theta for 400 iterations, with a checkpoint every 50. A node that loses its meta knowledge does so at
iteration 390:

    undisturbed   nobody does
    unprotected   what it had is gone, and its model is a new, random one: the paper's failure
    anew          the same, but it is there again at once and has the ten iterations that were left
    fmrec         a new life restores the checkpoint of iteration 350 and does the rest

Each point is the mean RMSE over all twelve lots, losing nodes or not, and that for the nodes of one random order a seed. The curves
are computed in one process, by the Learner contract and the manager's Aggregator. Some points are run again with real processes and
SIGKILL; their theta and each target's RMSE must equal the former bit for bit. There, `unprotected` is recovery = "drop" and no
restart; and nodes are killed in the middle of their adaptation, so that a fast one is met before its end: when they lose what they
know changes nothing in either curve.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import torch

from fmrec_agent.learning.learner import Job
from fmrec_agent.learning.loading import load_learner, load_task
from fmrec_agent.learning.options import LearningOptions
from fmrec_agent.learning.task import TargetTask
from fmrec_manager.report import digest_of
from scripts.federation import Stage, train, worked
from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Kill, Plan, run

SOURCES = 9
ROUNDS, SERVER_RATE = 30, 0.02
ITERATIONS, KILLED_AT, EVERY = 400, 390, 50
MIDDLE = 200
ON_PROCESSES = (("fmrec", 3), ("fmrec", 6), ("unprotected", 6))
"""Curve and number of nodes of the points that are run with real processes, of the first seed."""


@dataclass(frozen=True, slots=True)
class Fate:
    """One target's RMSE x 100, by what happens to it."""

    undisturbed: float
    unprotected: float
    anew: float
    fmrec: float


@dataclass(frozen=True, slots=True)
class Federation:
    """One seed's: theta's digest, each target's fates, and the order in which targets lose what they know."""

    theta_digest: str
    fates: list[Fate]
    order: list[int]

    def curve(self, name: str) -> list[float]:
        """The mean over the targets where none, one, ... all of them lost what they knew."""
        whole = [fate.undisturbed for fate in self.fates]
        hit = [getattr(fate, name) for fate in self.fates]
        lost = [set(self.order[:number]) for number in range(len(self.order) + 1)]
        return [mean(hit[index] if index in those else whole[index] for index in range(len(whole))) for those in lost]


def fate(options: LearningOptions, theta: Any, index: int, seed: int, rounds: int) -> Fate:
    """Of the index-th target, which adapts after so many rounds: what it draws depends on their number, too."""
    name = f"agent-{SOURCES + index}"

    def learner(options: LearningOptions) -> Any:
        return load_learner(options, name=name, role="target", index=index)

    job = Job("adapt", rounds, seed)
    first = learner(options)
    first.begin(job, theta)
    checkpoint = None
    for done in range(ITERATIONS):
        if done and done % EVERY == 0 and done <= KILLED_AT:
            checkpoint, at = first.state(), done
        first.step()
    assert checkpoint is not None
    second = learner(options)
    second.restore(*checkpoint)
    for _ in range(ITERATIONS - at):
        second.step()
    task = load_task(options, role="target", index=index)
    assert isinstance(task, TargetTask)
    fresh = task.initial_parameters(1000 * seed + index + 1)
    left = learner(options.model_copy(update={"adapt_iterations": ITERATIONS - KILLED_AT}))
    return Fate(
        undisturbed=first.finish().metrics["rmse_pp"],
        unprotected=task.evaluate(fresh)[1]["rmse_pp"],
        anew=worked(left, job, {key: value.numpy() for key, value in fresh.items()}).metrics["rmse_pp"],
        fmrec=second.finish().metrics["rmse_pp"],
    )


async def federation(data: str, seed: int, targets: int, rounds: int) -> dict[str, Any]:
    """One seed, in this process: a Federation as a dict."""
    torch.set_num_threads(1)
    options = LearningOptions.model_validate({"adapt_iterations": ITERATIONS, "task": {"name": "parking", "data": data}})
    trained = train(options, sources=SOURCES, stages=(Stage(rounds, SERVER_RATE),), optimizer="adam", seed=seed)
    fates = [fate(options, trained.theta, index, seed, rounds) for index in range(targets)]
    return asdict(Federation(digest_of(dict(trained.theta)).hex(), fates, Random(seed).sample(range(targets), targets)))


def plan(data: str, seed: int, curve: str, lost: list[int], targets: int, rounds: int) -> Plan:
    """The same on real processes, where these targets are killed."""
    manager = (
        f"seed={seed}",
        f"rounds={rounds}",
        f"server_rate={SERVER_RATE}",
        f"sources_min={SOURCES}",
        f"targets_min={targets}",
        f"recovery={'exact' if curve == 'fmrec' else 'drop'}",
        "round_deadline_s=500",
    )
    agent = (f'learning.task.data="{data}"', f"learning.adapt_iterations={ITERATIONS}", f"checkpoint_every={EVERY}")
    durable = MIDDLE // EVERY if curve == "fmrec" else 0
    kills = tuple(Kill(f"agent-{SOURCES + index}", "adapt", done=MIDDLE, durable=durable) for index in lost)
    return Plan(SOURCES + targets, SOURCES, tuple(f"tree.main.{item}" for item in manager), agent, kills, restart=curve == "fmrec")


async def point(data: str, seed: int, rounds: int, here: Federation, curve: str, number: int, runs: Path) -> dict[str, Any]:
    """A point of real processes, beside the same point computed here."""
    lost = here.order[:number]
    seen = await run(runs / f"{curve}-{number}", plan(data, seed, curve, lost, len(here.fates), rounds))
    there = [seen.rmse_pp.get(f"agent-{SOURCES + index}", one.unprotected) for index, one in enumerate(here.fates)]
    expected = [getattr(one, curve) if index in lost else one.undisturbed for index, one in enumerate(here.fates)]
    return {
        "curve": curve,
        "nodes": number,
        "rmse_pp": mean(there),
        "theta_equal": seen.final["theta_digest"] == here.theta_digest,
        "rmse_equal": there == expected,
        "killed_at": [life["job"]["done"] for life in seen.lives],
    }


async def measure(data: str, seeds: list[int], runs: Path, finished: Finished, quick: bool) -> dict[str, Any]:
    """The curves by name, with the least and the most of any seed; and the points of real processes."""
    targets, rounds = (2, 1) if quick else (12, ROUNDS)
    by_seed = []
    for seed in seeds:
        one = partial(federation, data, seed, targets, rounds)
        kept = await finished.once(f"{data}, seed {seed}, {targets} targets, {rounds} rounds", one)
        by_seed.append(Federation(kept["theta_digest"], [Fate(**one) for one in kept["fates"]], kept["order"]))
    report: dict[str, Any] = {"nodes": list(range(targets + 1)), "seeds": seeds, "rmse_pp": {}, "on_processes": []}
    for name in ("undisturbed", "unprotected", "anew", "fmrec"):
        curves = list(zip(*(one.curve(name) for one in by_seed), strict=True))
        report["rmse_pp"][name] = {"mean": [mean(c) for c in curves], "min": [min(c) for c in curves], "max": [max(c) for c in curves]}
    report["fmrec_equals_undisturbed"] = all(one.fmrec == one.undisturbed for each in by_seed for one in each.fates)
    for curve, number in (("fmrec", 1),) if quick else ON_PROCESSES:
        there = partial(point, data, seeds[0], rounds, by_seed[0], curve, number, runs)
        key = f"{data}, seed {seeds[0]}, {targets} targets, {rounds} rounds, {curve} at {number} on processes"
        report["on_processes"].append(await finished.once(key, there))
    return report
