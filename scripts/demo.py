"""The demo: three runs with one seed, through the two real commands, and SIGKILL in two of them.

    undisturbed   nothing fails
    unprotected   agents are killed; recovery = "drop": what a killed agent knew is gone
    protected     the same kills; recovery = "exact": what it knew is fetched from its neighbours

The runs differ in the recovery mode and the kills alone. Ends with a table, report.json and a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.demo_report import draw, hardware, show
from scripts.local_cluster import ClusterError, LocalCluster

AGENTS, SOURCES = 12, 9
SOURCE_KILLS = {"agent-1": 15, "agent-4": 30, "agent-7": 45}
"""The round in which each source is killed, in the middle of its iterations."""
TARGET_KILL = ("agent-10", 350)
"""The target, and the iteration of its 400 at which it is killed."""
RUNS = {"undisturbed": ("exact", False), "unprotected": ("drop", True), "protected": ("exact", True)}
WATCH_S = 0.05


class Run:
    """One of the three runs: drives it, kills, and keeps what was seen."""

    def __init__(self, name: str, folder: Path, data: str, seed: int, rounds: int) -> None:
        self.name = name
        self.recovery, self._with_kills = RUNS[name]
        self.kills: list[dict[str, Any]] = []
        self.timeline: list[dict[str, Any]] = []
        self._began = 0.0
        self.cluster = LocalCluster(
            folder,
            agents=AGENTS,
            sources=SOURCES,
            manager_set=[
                f"tree.main.seed={seed}",
                f"tree.main.rounds={rounds}",
                f"tree.main.recovery={self.recovery}",
                f"tree.main.sources_min={SOURCES}",
                f"tree.main.targets_min={AGENTS - SOURCES}",
                "tree.main.server_rate=0.05",
            ],
            agent_set=[f'learning.task.data="{data}"'],
        )

    async def go(self) -> dict[str, Any]:
        """The whole run; its part of the report."""
        launched = time.monotonic()
        async with self.cluster as cluster:
            await cluster.until(lambda status: status["phase"] in ("train", "adapt", "done"), within_s=60)
            self._began = time.time()
            watching = asyncio.create_task(self._watch())
            killing = [asyncio.create_task(self._kill_source(*kill)) for kill in SOURCE_KILLS.items()] if self._with_kills else []
            if self._with_kills:
                killing.append(asyncio.create_task(self._kill_target(*TARGET_KILL)))
            await cluster.until(lambda status: status["phase"] == "done", within_s=180, every_s=0.1)
            final = await cluster.until(lambda status: all(r["outcome"] != "running" for r in status["recoveries"]), within_s=10)
            await asyncio.gather(*killing)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            for kill in self.kills:
                await self._look_back(kill)
            memory = cluster.pss_mb()
        return self._report(final, memory, time.monotonic() - launched)

    async def _watch(self) -> None:
        while True:
            status = await self.cluster.status()
            if status is not None:
                self.timeline.append(
                    {
                        "t_s": round(time.time() - self._began, 3),
                        "round": status["round"],
                        "loss": status["loss"],
                        "iterations": status["iterations"],
                        "phase": status["phase"],
                        "elapsed_s": status["elapsed_s"],
                    }
                )
            await asyncio.sleep(WATCH_S)

    # --- kills --------------------------------------------------------------------------------------------------------

    async def _kill_source(self, name: str, in_round: int) -> None:
        """In the middle of its iterations of that round, or, where it was too fast to be met there, of a later one."""
        while True:
            agent = await self.cluster.agent(index_of(name))
            if agent and agent["round"] >= in_round and 0 < agent["job"]["done"] < agent["job"]["total"]:
                await self._kill(name, agent)
                return
            await asyncio.sleep(0.002 if agent and agent["round"] >= in_round - 1 else WATCH_S)

    async def _kill_target(self, name: str, iteration: int) -> None:
        while True:
            agent = await self.cluster.agent(index_of(name))
            if agent and agent["phase"] == "adapt" and agent["job"]["done"] >= iteration:
                await self._kill(name, agent)
                return
            await asyncio.sleep(0.002 if agent and agent["phase"] == "adapt" else WATCH_S)

    async def _kill(self, name: str, agent: dict[str, Any]) -> None:
        when = await self.cluster.signal_agent(name, signal.SIGKILL)
        self.kills.append(
            {
                "agent": name,
                "pid": agent["pid"],
                "incarnation": agent["incarnation"],
                "unix_s": when,
                "t_s": round(when - self._began, 3),
                "phase": agent["phase"],
                "round": agent["round"],
                "iteration": agent["iteration"],
                "job_done": agent["job"]["done"],
                "durable_version": agent["durable_version"],
            }
        )
        where = f"{agent['phase']}, round {agent['round']}, iteration {agent['iteration']}"
        print(f"  SIGKILL to {name} (pid {agent['pid']}) in {where}", flush=True)

    async def _look_back(self, kill: dict[str, Any]) -> None:
        """Where the next life began."""
        agent = await self.cluster.agent(index_of(kill["agent"]))
        resumed = agent["resumed_from"] if agent else None
        kill["resumed_at_iteration"] = resumed["iteration"] if resumed else 0
        # Without a record the whole job is done again; what earlier jobs contributed is in theta already.
        kill["iterations_repeated"] = max(0, kill["iteration"] - resumed["iteration"]) if resumed else kill["job_done"]

    # --- report -------------------------------------------------------------------------------------------------------

    def _report(self, final: dict[str, Any], memory: dict[str, float], wall_s: float) -> dict[str, Any]:
        results = dict(sorted(final["results"].items(), key=lambda item: index_of(item[0])))
        return {
            "recovery": self.recovery,
            "wall_s": final["elapsed_s"],
            "adaptation_s": round(self._adaptation_s(final), 3),
            "wall_with_start_s": round(wall_s, 3),
            "rounds": final["round"],
            "query_loss": final["loss"],
            "theta_digest": final["theta_digest"],
            "target_rmse_pp": {name: result["rmse_pp"] for name, result in results.items()},
            "persistence_rmse_pp": {name: result["persistence_rmse_pp"] for name, result in results.items()},
            "iterations_repeated": sum(kill["iterations_repeated"] for kill in self.kills),
            "kills": self.kills,
            "recoveries": [self._recovery(recovery) for recovery in final["recoveries"]],
            "memory_pss_mb": {role: round(mb, 1) for role, mb in memory.items()},
            "timeline": self.timeline,
            "losses": final["losses"],
        }

    def _adaptation_s(self, final: dict[str, Any]) -> float:
        """From the first sight of the targets' phase to the end."""
        began = next((point["elapsed_s"] for point in self.timeline if point["phase"] in ("adapt", "done")), final["elapsed_s"])
        return float(final["elapsed_s"] - began)

    def _recovery(self, recovery: dict[str, Any]) -> dict[str, Any]:
        """What the manager measured, and what only the killer knows: when it killed, and how far the victim was."""
        kill = next((k for k in self.kills if (k["agent"], k["incarnation"]) == (recovery["agent"], recovery["incarnation"])), None)
        detect_ms = round(1000 * (recovery["noticed_unix_s"] - kill["unix_s"]), 3) if kill else None
        behind = recovery["iterations_behind"]
        if kill is not None and recovery["iteration"] is not None:
            behind = max(0, kill["iteration"] - recovery["iteration"])
        return {
            "agent": recovery["agent"],
            "cause": f"{recovery['cause']}: {recovery['reason']}",
            "detect_ms": detect_ms,
            "locate_ms": recovery["locate_ms"],
            "transfer_ms": recovery["transfer_ms"],
            "total_ms": round((detect_ms or 0.0) + recovery["total_ms"], 3),
            "bytes": recovery["bytes"],
            "version": recovery["version"],
            "iterations_behind": behind,
            "holder": recovery["holder"],
            "outcome": recovery["outcome"],
        }


def index_of(name: str) -> int:
    """The number in an agent's name."""
    return int(name.rsplit("-", 1)[1])


async def demo(data: str, seed: int, rounds: int, out: Path) -> dict[str, Any]:
    """All three runs; the report."""
    label = "synthetic parking (seeded generator)" if data == "synthetic" else f"parking data in {data}"
    report: dict[str, Any] = {"data": label, "seed": seed, "hardware": hardware(), "runs": {}}
    for name, (recovery, kills) in RUNS.items():
        print(f"{name}: {AGENTS} agents, {rounds} rounds, recovery {recovery}, {'with' if kills else 'no'} kills", flush=True)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        report["runs"][name] = await Run(name, folder, data, seed, rounds).go()
    return report


def main() -> int:
    """Parse, run, show; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="'synthetic', or a folder with counts.csv, lots.csv, occupancy_exceptions.csv")
    parser.add_argument("--seed", type=int, default=1, help="fixes theta_0, the data order and the synthetic lots")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of meta-training (at least 46: the last kill is in round 45)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the report, the picture and the logs go")
    chosen = parser.parse_args()
    if chosen.rounds <= max(SOURCE_KILLS.values()):
        parser.error(f"--rounds must exceed {max(SOURCE_KILLS.values())}, the round of the last kill")
    data = chosen.data
    if data != "synthetic":
        if not Path(data).is_dir():
            parser.error(f"the data folder {data} does not exist: name one with counts.csv, lots.csv and occupancy_exceptions.csv")
        data = str(Path(data).resolve())
    logging.disable(logging.WARNING)  # a daemon that is not up yet is no news here
    try:
        report = asyncio.run(demo(data, chosen.seed, chosen.rounds, chosen.out))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.data != "synthetic":
        report["data"] = f"parking data in {chosen.data}"
    picture = chosen.out / "demo.png"
    draw(report, picture)
    timelines = {name: {"timeline": run.pop("timeline"), "losses": run.pop("losses")} for name, run in report["runs"].items()}
    (chosen.out / "timeline.json").write_text(json.dumps(timelines))
    (chosen.out / "report.json").write_text(json.dumps(report, indent=1))
    show(report)
    print(f"report: {chosen.out / 'report.json'}   picture: {picture}   logs: {chosen.out}/*/")
    same = report["runs"]["protected"]["theta_digest"] == report["runs"]["undisturbed"]["theta_digest"]
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
