"""What being ready costs: checkpoints while nothing happens, a standby's start, the memory and the start of an agent.

A checkpoint's cost is processor time of all processes, for on a machine without a core to spare that is what training pays: the same
cluster trains once with a checkpoint in FREQUENT iterations and once with none, and

    cost of one = FREQUENT (CPU an iteration with - without),    overhead = cost of one / (50 CPU an iteration without)

so that what is measured is 25 times what is told, and the noise a 25th: a machine that is 7 % slower in one of the runs makes 0.3 % of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

from scripts.local_cluster import LocalCluster
from scripts.recovery_bench.cluster import AGENTS, WATCH_S, WITHIN_S, Fleet

PAPER_BATCH = 256
CHECKPOINT_EVERY, FREQUENT, NEVER = 50, 2, 1_000_000
FURTHER = 12
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Figures = dict[str, Any]


async def checkpoint_overhead(folder: Path, size_mb: str, seconds: float) -> Figures:
    """checkpoint_overhead_pct, and what it is made of; with the paper's batch, each of two runs so many seconds long."""
    found = {}
    for name, every in (("with", FREQUENT), ("without", NEVER)):
        async with Fleet(folder / name, size_mb, training=AGENTS, checkpoint_every=every, batch=PAPER_BATCH, round_of=NEVER) as fleet:
            if every == FREQUENT:
                await fleet.durable()
            began = cpu_s(fleet.cluster)
            iterations, took_s = await fleet.iterated(seconds)
            found[name] = (cpu_s(fleet.cluster) - began) / max(1, iterations)
            found[f"{name} pace"] = AGENTS * took_s / max(1, iterations)
    cost_s = FREQUENT * (found["with"] - found["without"])
    return {
        "checkpoint_overhead_pct": round(100 * cost_s / (CHECKPOINT_EVERY * found["without"]), 2),
        "checkpoint_cpu_ms": round(1000 * cost_s, 2),
        "iteration_cpu_ms": round(1000 * found["without"], 2),
        "iteration_wall_ms": round(1000 * found["without pace"], 2),
        "batch": PAPER_BATCH,
    }


def cpu_s(cluster: LocalCluster) -> float:
    """Processor seconds of all processes of the cluster so far, in user and kernel."""
    total = 0
    for pid in cluster.processes():
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        total += int(user) + int(system)
    return total / TICKS_PER_S


async def standby(folder: Path, size_mb: str, trials: int) -> Figures:
    """The longest time from SIGKILL and from SIGSTOP of the manager until its standby has announced a round; all committed rounds lost."""
    report: Figures = {"standby_kill_s": 0.0, "standby_stop_s": 0.0, "standby_rounds_lost": 0}
    for trial in range(trials):
        for how in ("kill", "stop"):
            async with Fleet(folder / f"{how}-{trial}", size_mb, training=AGENTS, round_of=10, standby=True) as fleet:
                took_s, lost = await _taken_over(fleet.cluster, how)
                report[f"standby_{how}_s"] = max(report[f"standby_{how}_s"], round(took_s, 3))
                report["standby_rounds_lost"] += lost
    return report


async def _taken_over(cluster: LocalCluster, how: str) -> tuple[float, int]:
    await cluster.standby_watches(WITHIN_S)
    await cluster.until(lambda status: status["round"] >= 3, WITHIN_S)
    began = time.monotonic()
    if how == "kill":
        cluster.kill_manager()
    else:
        cluster.hang_manager()
    cluster.asked = cluster.other_address
    await cluster.until(lambda status: status["stage"] == "train", WITHIN_S, WATCH_S)
    took_s = time.monotonic() - began
    committed = re.findall(r" committed round=\d+ version=(\d+)", cluster.log("manager.log"))
    resumed = re.findall(r" resumed round=\d+ version=(\d+)", cluster.log("standby.log"))
    return took_s, max(0, int(committed[-1]) - int(resumed[-1]))


async def weight(folder: Path) -> Figures:
    """Memory of 12 agents with the default model and their manager, by role; what each of twelve more adds to it, and to the start."""
    memory_mb, started_s = await _weighed(folder / "12", AGENTS)
    larger_mb, later_s = await _weighed(folder / "24", AGENTS + FURTHER)
    return {
        "memory_pss_mb": {role: round(size, 1) for role, size in memory_mb.items()},
        "started_s": round(started_s, 2),
        "further_agent_mb": round((sum(larger_mb.values()) - sum(memory_mb.values())) / FURTHER, 1),
        "further_agent_ms": round(1000 * (later_s - started_s) / FURTHER, 1),
    }


async def _weighed(folder: Path, agents: int) -> tuple[dict[str, float], float]:
    sets = ["tree.main.rounds=1000000", f"tree.main.sources_min={agents}", "tree.main.server_rate=0.001"]
    cluster = LocalCluster(folder, agents=agents, sources=agents, manager_set=sets, abrupt=True)
    try:
        cluster.start_manager()
        await cluster.until(lambda status: status["stage"] == "waiting", WITHIN_S)
        began = time.monotonic()
        cluster.start_agents()
        await cluster.until(lambda status: status["counts"]["alive"] == agents, WITHIN_S)
        started_s = time.monotonic() - began
        await cluster.until(lambda status: status["round"] >= 3, WITHIN_S)
        return cluster.pss_mb(), started_s
    finally:
        await asyncio.to_thread(cluster.stop)
