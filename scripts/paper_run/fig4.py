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

from pathlib import Path
from statistics import median
from typing import Any

from scripts.paper_run.runs import Kill, Plan, Seen, run

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
    return Plan(AGENTS, SOURCES, tuple(f"tree.main.{item}" for item in manager), agent, kills.get(variant, ()))


async def measure(data: str, seed: int, runs: Path, quick: bool, repeats: int) -> dict[str, Any]:
    """The curves. quick: a small model, one point."""
    points, hidden = ((EVERY,), 8) if quick else (KILLED_AT, HIDDEN)
    took: dict[str, list[list[float]]] = {name: [] for name in ("baseline", "checkpoints", "baseline_failure", "fmrec")}
    found: dict[int, Seen] = {}
    thetas = set()

    async def timed(variant: str, killed_at: int) -> tuple[float, Seen]:
        seen = await run(runs / f"{variant}-{killed_at}", plan(data, seed, variant, killed_at, points[-1], hidden))
        if variant != "baseline_failure":
            thetas.add((seen.final["theta_digest"], seen.rmse_pp[TARGET]))
        print(f"  {variant:16} killed at {killed_at:4}: {seen.adaptation_s:7.2f} s, done again {seen.iterations_again()}", flush=True)
        return seen.adaptation_s, seen

    for _ in range(repeats):
        for variant in ("baseline", "checkpoints"):
            took[variant].append([(await timed(variant, 0))[0]])
        took["baseline_failure"].append([])
        took["fmrec"].append([])
        for killed_at in points:
            took["baseline_failure"][-1].append((await timed("baseline_failure", killed_at))[0])
            seconds, found[killed_at] = await timed("fmrec", killed_at)
            took["fmrec"][-1].append(seconds)
        took["baseline"][-1].append((await timed("baseline", 0))[0])
    return report(points, took, found, len(thetas) == 1, hidden)


def report(
    points: tuple[int, ...], took: dict[str, list[list[float]]], found: dict[int, Seen], equal: bool, hidden: int
) -> dict[str, Any]:
    """The medians, each point's iterations and megabytes, and every time that was taken."""
    baseline = median(seconds for repeat in took["baseline"] for seconds in repeat)
    checkpoints = median(seconds for repeat in took["checkpoints"] for seconds in repeat)
    rows = []
    for place, killed_at in enumerate(points):
        failure, fmrec = (median(repeat[place] for repeat in took[name]) for name in ("baseline_failure", "fmrec"))
        (recovery,) = found[killed_at].final["recoveries"]
        rows.append(
            {
                "iterations": killed_at,
                "mb": round(recovery["bytes"] * (killed_at // EVERY) / MB, 3),
                "baseline_s": round(baseline, 3),
                "baseline_failure_s": round(failure, 3),
                "fmrec_s": round(fmrec, 3),
                "baseline_failure_over_baseline": round(failure / baseline, 3),
                "fmrec_over_baseline": round(fmrec / baseline, 4),
                "iterations_again": found[killed_at].iterations_again(),
            }
        )
    return {
        "points": rows,
        "baseline_s": round(baseline, 3),
        "checkpoints_s": round(checkpoints, 3),
        "checkpoints_over_baseline": round(checkpoints / baseline, 4),
        "result_equal": equal,
        "hidden": hidden,
        "checkpoint_every": EVERY,
        "iterations": points[-1] + AFTER,
        "repeats": len(took["fmrec"]),
        "all_s": took,
    }
