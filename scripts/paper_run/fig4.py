"""Fig. 4 of the paper: the time of adaptation against the meta knowledge that had been accumulated when it was lost.

Real processes. One target adapts an LSTM in batches of (256, 6, 1) at rate 0.02; its state (parameters and Adam's two moments) is
3 x 108 396 float32 values, so that the eight checkpoints of 400 iterations, one every 50, accumulate 10.4 MB, as in the paper. Ten
iterations follow, so that the agent still lives when the eighth is durable. The agent is killed by SIGKILL after so many iterations:

    baseline           no checkpoints, no failure
    baseline_failure   no checkpoints; killed: it begins anew (recovery = "drop")
    checkpoints        FMRec, no failure: what checkpointing alone costs
    fmrec              FMRec; killed as soon as that iteration's checkpoint is durable (recovery = "exact")

The time is that from the manager's order to adapt until the target's result is there. The variants are interleaved, and medians are
taken.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.paper_run.finished import Finished
from scripts.paper_run.runs import Kill, Plan, run

AGENTS, SOURCES = 6, 5
TARGET = "agent-5"
EVERY = 50
AFTER = 10
HIDDEN = 163
KILLED_AT = (100, 200, 300, 400)
MB = 1e6


def plan(data: str, seed: int, variant: str, killed_at: int, last: int, hidden: int) -> Plan:
    """One run; `last` is the last checkpoint's iteration."""
    protected = variant in ("checkpoints", "fmrec")
    manager = (
        f"seed={seed}",
        "rounds=1",
        f"sources_min={SOURCES}",
        f"targets_min={AGENTS - SOURCES}",
        f"recovery={'exact' if protected else 'drop'}",
        "round_deadline_s=500",
    )
    agent = (
        f'learning.task.data="{data}"',
        f"learning.task.hidden={hidden}",
        "learning.iterations_per_round=1",
        f"learning.adapt_iterations={last + AFTER}",
        f"checkpoint_every={EVERY if protected else 2 * (last + AFTER)}",
    )
    kills = {
        "baseline_failure": (Kill(TARGET, "adapt", done=killed_at),),
        "fmrec": (Kill(TARGET, "adapt", done=killed_at, durable=killed_at // EVERY),),
    }
    return Plan(AGENTS, SOURCES, tuple(f"tree.main.{item}" for item in manager), agent, kills.get(variant, ()), timed=TARGET)


async def timed(data: str, seed: int, runs: Path, variant: str, killed_at: int, last: int, hidden: int) -> dict[str, Any]:
    """One run's figures."""
    seen = await run(runs / f"{variant}-{killed_at}", plan(data, seed, variant, killed_at, last, hidden))
    recoveries = seen.final["recoveries"]
    return {
        "wall_s": round(seen.adaptation_s, 3),
        "cpu_s": round(seen.cpu_s, 2),
        "record_bytes": recoveries[0]["bytes"] if recoveries else None,
        "iterations_again": sum(seen.iterations_again()),
        "theta": seen.final["theta_digest"],
        "rmse_pp": seen.rmse_pp[TARGET],
    }


async def measure(data: str, seed: int, runs: Path, finished: Finished, quick: bool, repeats: int) -> dict[str, Any]:
    """The curves. quick: a small model, one point."""
    points, hidden = ((EVERY,), 8) if quick else (KILLED_AT, HIDDEN)
    took: dict[tuple[str, int], list[dict[str, Any]]] = {}
    order = [("baseline", 0), ("checkpoints", 0), *((variant, at) for at in points for variant in ("fmrec", "baseline_failure"))]
    for repeat in range(repeats):
        for variant, at in order:
            one = partial(timed, data, seed, runs, variant, at, points[-1], hidden)
            key = f"{data}, seed {seed}, hidden {hidden}, {variant} at {at}, {repeat}"
            took.setdefault((variant, at), []).append(await finished.once(key, one))
    return {**report(points, took), "hidden": hidden}


def report(points: tuple[int, ...], took: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
    """The medians by point, and every run. *_over_baseline: wall time; *_cpu_over_baseline: the target's CPU time, which another
    program on the machine lengthens less."""

    def middle(variant: str, at: int, unit: str) -> float:
        return median(one[unit] for one in took[variant, at])

    def beside(variant: str, at: int) -> dict[str, float]:
        return {
            f"{variant}_s": round(middle(variant, at, "wall_s"), 3),
            f"{variant}_cpu_s": round(middle(variant, at, "cpu_s"), 3),
            f"{variant}_over_baseline": round(middle(variant, at, "wall_s") / middle("baseline", 0, "wall_s"), 4),
            f"{variant}_cpu_over_baseline": round(middle(variant, at, "cpu_s") / middle("baseline", 0, "cpu_s"), 4),
        }

    rows = [
        {
            "iterations": at,
            "mb": round(took["fmrec", at][0]["record_bytes"] * (at // EVERY) / MB, 3),
            **beside("baseline", 0),
            **beside("baseline_failure", at),
            **beside("fmrec", at),
            "fmrec_iterations_again": middle("fmrec", at, "iterations_again"),
        }
        for at in points
    ]
    results = {(one["theta"], one["rmse_pp"]) for (variant, _), ones in took.items() if variant != "baseline_failure" for one in ones}
    return {
        "points": rows,
        **beside("baseline", 0),
        **beside("checkpoints", 0),
        "result_equal": len(results) == 1,
        "checkpoint_every": EVERY,
        "iterations": points[-1] + AFTER,
        "repeats": len(took["baseline", 0]),
        "runs": [{"variant": variant, "killed_at": at, **one} for (variant, at), ones in took.items() for one in ones],
    }
