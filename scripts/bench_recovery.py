"""How long a recovery takes with 0.1 to 100 MB of meta knowledge, what being ready for one costs, and the floors, on this machine.

Twelve agents and a manager, real processes over loopback, in mode exact, train without end (scripts/recovery_bench/forecaster.py). Again
and again one is killed or hung at any moment of a job; recovery_bench/cluster.py says what detect, locate, transfer, kill, stop,
resumed and restart are. Beside that, for each size:

    pause       what a checkpoint takes from training: the snapshot, without the time in which other processes had the processors; snapshot:
                with it, by the clock
    moved       the transfer, of those recoveries that needed one: some replicas are the manager's own
    durable     from the snapshot until the write quorum holds it
    raw         the floor: the same bytes through a bare BufferedProtocol, alone, into the same memory each time; raw_new: into a new buffer
                each time; raw_in_a_row: as raw, beside the twelve agents; raw_meanwhile: these, each after a rest, as the transfer of a
                recovery is; raw_first: the first of all, into memory that the process has not touched before, which a virtual machine may
                have to get from its host
    repeat      the alternative: doing the lost iterations again. A job is the paper's 400, and who dies at any moment of it without a
                record has lost 200 on average

and once: what checkpoints cost (recovery_bench/costs.py), how soon a standby manager takes over, what an agent weighs.
Ends by itself, in about ten minutes; 1 where an aim is missed. With --json, one object on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from protocol.aio.bulk import BulkError  # noqa: E402
from scripts.bulk_bench.measures import transfers  # noqa: E402
from scripts.demo_report import hardware  # noqa: E402
from scripts.local_cluster import ClusterError  # noqa: E402
from scripts.recovery_bench import costs, floors, tables  # noqa: E402
from scripts.recovery_bench.cluster import AGENTS, ROUND, Figures, Fleet, importable  # noqa: E402

LOST_ON_AVERAGE = ROUND / 2
PERCENTILE_OF = 100
"""Trials, at the least, of which a 99th percentile below the worst of them can be told."""
PACE_S = 3.0
MAIN_SIZE = "10.396"


@dataclass(frozen=True, slots=True)
class Case:
    """One size. training: of the twelve, for a large record's copies need memory and processors. kills, stops: trials."""

    training: int
    checkpoint_every: int
    kills: int
    stops: int


CASES = {"0.1": Case(9, 50, 20, 4), "1": Case(9, 50, 20, 4), "10.396": Case(9, 50, 20, 4), "100": Case(3, 20, 12, 2)}
STEPS = ("detect", "locate", "transfer")
QUICK = {"0.1": Case(3, 50, 2, 1)}
QUICK_PACE_S = 0.5


async def measured(folder: Path, size_mb: str, case: Case, pace_s: float) -> Figures:
    """All trials with records of one size."""
    async with Fleet(folder / size_mb, size_mb, training=case.training, checkpoint_every=case.checkpoint_every) as fleet:
        await fleet.durable()
        iterations, took_s = await fleet.iterated(pace_s)
        iteration_s = case.training * took_s / max(1, iterations)
        period_s = case.checkpoint_every * iteration_s
        ready = await fleet.agents()
        kills, stops = [], []
        for _ in range(case.kills):
            kills.append(await fleet.trial(signal.SIGKILL, period_s))
            ready += await fleet.agents()
        for _ in range(case.stops):
            stops.append(await fleet.trial(signal.SIGSTOP, period_s))
        size = int(median(trial["bytes"] for trial in kills))
        raw = await asyncio.to_thread(floors.raw_meanwhile, size)
    moved = [trial for trial in kills if trial["transfer_ms"]]  # of the others the manager is one of the holders itself
    beyond_ms = median(trial["total_ms"] - trial["detect_ms"] for trial in moved) if moved else 0.0
    figures = {f"{name}_ms": _median(kills, f"{name}_ms") for name in (*STEPS, "resumed", "restart")}
    figures |= {f"stop_{name}_ms": _median(stops, f"{name}_ms") if stops else None for name in STEPS}
    snapshots = {(agent["name"], agent["durable_version"]): agent for agent in ready if agent["durable_ms"] and agent["snapshot_pause_ms"]}
    return {
        "bytes": size,
        "kills": len(kills),
        "stops": len(stops),
        "verified": sum(trial["outcome"] == "verified" for trial in [*kills, *stops]),
        "waited_s": round(sum(trial["waited_s"] for trial in [*kills, *stops]), 1),
        "durable_ms": _median(list(snapshots.values()), "durable_ms"),
        "pause_ms": _median(list(snapshots.values()), "snapshot_pause_ms"),
        "snapshot_ms": _median(list(snapshots.values()), "snapshot_ms"),
        "kill_ms": spread(kills, "total_ms"),
        "stop_ms": spread(stops, "total_ms"),
        **figures,
        "restart_p99_ms": spread(kills, "restart_ms")["p99"],
        "repeat_ms": round(1000 * LOST_ON_AVERAGE * iteration_s, 1),
        **raw,
        "moved": len(moved),
        "moved_ms": _median(moved, "transfer_ms") if moved else None,
        "beyond_by_raw": round(beyond_ms / raw["raw_meanwhile_ms"], 2) if moved else None,
        "trials": {"SIGKILL": kills, "SIGSTOP": stops},
    }


def _median(trials: list[Figures], name: str) -> float:
    return round(median(trial[name] for trial in trials), 3)


def spread(trials: list[Figures], name: str) -> dict[str, float | None]:
    """Median and 99th percentile; of fewer than a hundred trials the latter is the worst. None of no trial."""
    found = [trial[name] for trial in trials]
    if not found:
        return {"p50": None, "p99": None}
    p99 = max(found) if len(found) < PERCENTILE_OF else quantiles(found, n=100, method="inclusive")[98]
    return {"p50": round(median(found), 3), "p99": round(p99, 3)}


def bench(cases: dict[str, Case], folder: Path, *, quick: bool) -> Figures:
    """The report."""
    began = time.monotonic()
    report: Figures = {"hardware": hardware(), "load_before": round(os.getloadavg()[0], 2), "agents": AGENTS, "sizes_mb": {}}
    alone = transfers(tuple(cases), trials=3 if quick else 15)
    report["floor"] = floors.process_floor()
    with importable(ROOT):
        for size_mb, case in cases.items():
            moved = {name: alone[size_mb][name] for name in ("raw_ms", "raw_new_ms", "bulk_ratio", "bulk_digest_ratio")}
            report["sizes_mb"][size_mb] = asyncio.run(measured(folder, size_mb, case, QUICK_PACE_S if quick else PACE_S)) | moved
        report |= dict.fromkeys(("checkpoint_overhead_pct", "standby_kill_s", "standby_stop_s"))
        if not quick:
            report["checkpoint"] = asyncio.run(costs.checkpoint_overhead(folder / "checkpoints", MAIN_SIZE, 20.0))
            report["checkpoint_overhead_pct"] = report["checkpoint"].pop("checkpoint_overhead_pct")
            report |= asyncio.run(costs.standby(folder / "standby", MAIN_SIZE, 2))
            report |= asyncio.run(costs.weight(folder / "weight"))
    return report | {"wall_s": round(time.monotonic() - began, 1), "aims": tables.judged(report)}


def _show_again(path: Path) -> int:
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        print(f"error: {path} cannot be shown: {error}", file=sys.stderr)
        return 1
    if not isinstance(report, dict) or not {"hardware", "sizes_mb", "floor", "aims"} <= report.keys():
        print(f"error: {path} cannot be shown: it is not what scripts/bench_recovery.py --json has printed", file=sys.stderr)
        return 1
    tables.show(report)
    return 0


def main() -> int:
    """The command line; 1 where an aim is missed. --quick and --show judge nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=[*CASES], help="MB; this size alone, may be given again (all four)")
    parser.add_argument("--quick", action="store_true", help="a short one: 0.1 MB, two kills and a stop, nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what --json has printed before")
    chosen = parser.parse_args()
    if chosen.show:
        return _show_again(chosen.show)
    cases = QUICK if chosen.quick else {size: case for size, case in CASES.items() if size in (chosen.size or CASES)}
    logging.disable(logging.WARNING)  # a daemon that is not up yet is no news here
    try:
        with tempfile.TemporaryDirectory(prefix="fmrec-bench-") as folder:
            report = bench(cases, Path(folder), quick=chosen.quick)
    except ClusterError as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except BulkError as error:
        print(f"error: a transfer of the floor's failed: {error}; run it again where less else runs", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        print(json.dumps(report))
    else:
        tables.show(report)
    return 0 if chosen.quick or all(aim["met"] for aim in report["aims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
