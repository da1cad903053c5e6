"""Fig. 4 of the paper: the time of adaptation against the meta knowledge that had been accumulated when it was lost.

Real processes. One target adapts an LSTM in batches of (256, 6, 1) at rate 0.02; its state (parameters and Adam's two moments) is
3 x 108 396 float32 values, so that the eight checkpoints of 400 iterations, one every 50, accumulate 10.4 MB, as in the paper. Ten
iterations follow, so that the agent still lives when the eighth is durable. The agent is killed by SIGKILL after so many iterations:

    baseline           no checkpoints, no failure
    baseline_failure   no checkpoints; killed: it begins anew (recovery = "drop")
    checkpoints        FMRec, no failure: what checkpointing alone costs
    fmrec              FMRec; killed as soon as that iteration's checkpoint is durable (recovery = "exact")

The time is that from the manager's order to adapt until the target's result is there. To kill the agent in its moment it is asked again and
again how far it is, which costs it time: so it is asked in every run, from beginning to end.

On a machine that does other things too the time drifts by more than what FMRec costs. So each run with a failure stands beside a baseline
of its own, FMRec's after it in one repeat and before it in the next; the two are compared with each other, and of these ratios medians are
taken, over the repeats, and for FMRec over all points as well: what it costs does not depend on when the agent is killed. Each baseline
beside the one before it shows what equal runs differ by. Where that is more than what is to be told, a second figure tells it still: how
much longer a run took than its iterations at the pace of that same run, FMRec's with a failure less the baseline's. That is the least that
the failure adds: what slows the iterations themselves is not in it; of checkpoints, that is in the run without a failure.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
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
UNITS = {"s": "wall_s", "cpu_s": "cpu_s"}
"""As in the report, and as in a run."""
AIM = 1.02
"""At most so many times the baseline's time, in the median."""

Runs = dict[tuple[str, int], list[dict[str, Any]]]
"""By variant and iteration of the kill, one a repeat; baselines by the iteration of the runs that they stand beside."""


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
        "beside_iterations_s": round(seen.beside_iterations_s, 3),
        "record_bytes": recoveries[0]["bytes"] if recoveries else None,
        "iterations_again": sum(seen.iterations_again()),
        "theta": seen.final["theta_digest"],
        "rmse_pp": seen.rmse_pp[TARGET],
    }


async def measure(data: str, seed: int, runs: Path, finished: Finished, quick: bool, repeats: int) -> dict[str, Any]:
    """The curves. quick: a small model, one point."""
    # Run small, an adaptation still lasts half a second: a kill has to meet it.
    points, hidden = ((EVERY,), 96) if quick else (KILLED_AT, HIDDEN)
    took: Runs = {}
    for repeat in range(repeats):
        for variant, at in order_of(points, repeat):
            one = partial(timed, data, seed, runs, variant, at, points[-1], hidden)
            key = f"{data}, seed {seed}, hidden {hidden}, {variant} at {at}, {repeat}, in turns"
            took.setdefault((variant, at), []).append(await finished.once(key, one))
    return {**report(points, took), "hidden": hidden}


def order_of(points: tuple[int, ...], repeat: int) -> list[tuple[str, int]]:
    """(variant, killed_at) of each run of this repeat. What drifts favours the first of a pair in one repeat, the second in the next."""
    pair = ("baseline", "fmrec") if repeat % 2 == 0 else ("fmrec", "baseline")
    order = [(variant, at) for at in points for variant in (*pair, "baseline_failure")]
    order.insert(order.index(("baseline", points[0])) + 1 - repeat % 2, ("checkpoints", points[0]))
    return order


def report(points: tuple[int, ...], took: Runs) -> dict[str, Any]:
    """The medians by point and of all, and every run. *_s: wall time; *_cpu_s: the target's CPU time, which another program on the
    machine lengthens less. fmrec_adds_*: what the failure adds beside the iterations, by the pace of the same run. aim: what is asked of
    FMRec's wall time over all points."""
    rows = [
        {
            "iterations": at,
            "mb": round(took["fmrec", at][0]["record_bytes"] * (at // EVERY) / MB, 3),
            "baseline_s": round(median(_every(took, "baseline", (at,), "s")), 3),
            **_beside(took, "baseline_failure", (at,)),
            **_beside(took, "fmrec", (at,)),
            "fmrec_iterations_again": median(one["iterations_again"] for one in took["fmrec", at]),
        }
        for at in points
    ]
    results = {(one["theta"], one["rmse_pp"]) for (variant, _), ones in took.items() if variant != "baseline_failure" for one in ones}
    fmrec = _beside(took, "fmrec", points)
    measured = fmrec["fmrec_over_baseline"]
    return {
        "points": rows,
        **{f"baseline_{unit}": round(median(_every(took, "baseline", points, unit)), 3) for unit in UNITS},
        **_beside(took, "checkpoints", points[:1]),
        **fmrec,
        **_adds(took, points),
        "aim": {"what": "fmrec_over_baseline", "measured": measured, "at_most": AIM, "met": measured <= AIM},
        **{f"baseline_{unit}_over_the_one_before": _spread(took, points, unit) for unit in UNITS},
        "result_equal": len(results) == 1,
        "checkpoint_every": EVERY,
        "iterations": points[-1] + AFTER,
        "repeats": len(took["fmrec", points[0]]),
        "runs": [{"variant": variant, "killed_at": at, **one} for (variant, at), ones in took.items() for one in ones],
    }


def _every(took: Runs, variant: str, points: tuple[int, ...], unit: str) -> list[float]:
    """Of all runs of the variant at these points, in the order in which they were made."""
    return [one[UNITS[unit]] for repeat in zip(*(took[variant, at] for at in points), strict=True) for one in repeat]


def _beside(took: Runs, variant: str, points: tuple[int, ...]) -> dict[str, float]:
    """The medians of the variant at these points, and of each run by its own baseline."""
    figures = {}
    for unit in UNITS:
        own, baseline = (_every(took, name, points, unit) for name in (variant, "baseline"))
        over = median(one / other for one, other in zip(own, baseline, strict=True))
        figures[f"{variant}_{unit}"] = round(median(own), 3)
        figures[f"{variant}_{'' if unit == 's' else 'cpu_'}over_baseline"] = round(over, 4)
    return figures


def _adds(took: Runs, points: tuple[int, ...]) -> dict[str, float]:
    """What a failure adds to FMRec's time beside the iterations, and what share of the baseline's time that is."""
    own, baseline = (median(one["beside_iterations_s"] for at in points for one in took[name, at]) for name in ("fmrec", "baseline"))
    whole_s = median(_every(took, "baseline", points, "s"))
    return {"fmrec_adds_s": round(own - baseline, 3), "fmrec_adds_over_baseline": round((own - baseline) / whole_s, 4)}


def _spread(took: Runs, points: tuple[int, ...], unit: str) -> list[float]:
    """The first and third quartile of what a baseline took, by what the one before took; of two runs, that of the one."""
    every = _every(took, "baseline", points, unit)
    ratios = [late / early for early, late in pairwise(every)]
    if len(ratios) < 2:
        return [round(ratio, 4) for ratio in ratios]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]
