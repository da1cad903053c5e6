"""How long a recovery takes and what the cluster weighs, beside the floor measured in the same run, on this machine.

Twelve agents and a manager over loopback, in mode exact, trained without end. Again and again an agent is killed (SIGKILL) or hung
(SIGSTOP) in the middle of a round, and timed:

    detect      from the signal to the manager's verdict
    locate      until it is known who holds the newest record
    transfer    until its bytes are at the manager, the digest checked
    total       from the signal to the verified record
    again       from the signal to the first iteration of the agent's next life beyond its record

The floor is what no design here could beat: plain sockets that move as many bytes over loopback, a plain socket that notices a
killed process, and a fork with its exit in a process that has torch imported. Ends by itself, in less than two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.demo_report import hardware
from scripts.local_cluster import HOST, ClusterError, LocalCluster, Status, send

AGENTS, SOURCES = 12, 9
FURTHER = 12
"""Agents that the second, larger cluster has more: what each of them costs is the difference."""
HIDDEN = {"default": 4, "0.1 MB": 40, "1 MB": 128}
WITHIN_S = 30.0
WATCH_S = 0.01
FLOOR_TRIALS = 50
STEPS = ("detect_ms", "locate_ms", "transfer_ms", "total_ms", "again_ms")
AIMS = {
    "SIGKILL to verified record, ms": ("SIGKILL", "total_ms", 300.0),
    "SIGKILL to the manager's verdict, ms": ("SIGKILL", "detect_ms", 100.0),
    "SIGSTOP to verified record, ms": ("SIGSTOP", "total_ms", 2000.0),
}
MEMORY_AIM_MB, FURTHER_AIM_MB, FURTHER_AIM_MS = 1024.0, 12.0, 50.0

Figures = dict[str, Any]


# --- the cluster ------------------------------------------------------------------------------------------------------


class Bench:
    """One cluster of one model, and the trials on it."""

    def __init__(self, folder: Path, hidden: int, agents: int = AGENTS) -> None:
        self.sources = SOURCES * agents // AGENTS
        self.cluster = LocalCluster(
            folder,
            agents=agents,
            sources=self.sources,
            manager_set=[
                "tree.main.rounds=1000000",
                f"tree.main.sources_min={self.sources}",
                f"tree.main.targets_min={agents - self.sources}",
                "tree.main.server_rate=0.001",
            ],
            agent_set=[f"learning.task.hidden={hidden}"],
            abrupt=True,
        )
        self._victims = cycle(range(self.sources))
        self.started_s = 0.0
        """From the start of the launcher until the manager knew every agent."""

    async def __aenter__(self) -> Bench:
        self.cluster.start_manager()
        await self.cluster.until(lambda status: status["stage"] == "waiting", WITHIN_S)
        began = time.monotonic()
        self.cluster.start_agents()
        await self.cluster.until(lambda status: status["counts"]["alive"] == self.cluster.agents, WITHIN_S)
        self.started_s = time.monotonic() - began
        await self.cluster.until(lambda status: status["round"] >= 3, WITHIN_S)
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(self.cluster.tails())
        await asyncio.to_thread(self.cluster.stop)

    async def trial(self, number: signal.Signals) -> Figures:
        """One agent, killed or hung in the middle of its job, until it trains again."""
        before = await self._at_work(next(self._victims))
        when = time.time()
        os.kill(before["pid"], number)
        again = asyncio.create_task(self._again(before, when)) if number == signal.SIGKILL else None
        recovery = await self._recovered(before)
        if number == signal.SIGSTOP:
            send(before["pid"], signal.SIGCONT)
        detect_ms = 1000 * (recovery["noticed_unix_s"] - when)
        figures = {
            "signal": number.name,
            "agent": before["name"],
            "cause": recovery["cause"],
            "outcome": recovery["outcome"],
            "bytes": recovery["bytes"],
            "detect_ms": detect_ms,
            "locate_ms": recovery["locate_ms"],
            "transfer_ms": recovery["transfer_ms"],
            "total_ms": detect_ms + recovery["total_ms"],
            "again_ms": await again if again is not None else None,
        }
        await self.cluster.until(lambda status: status["counts"]["alive"] == self.cluster.agents, WITHIN_S)
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}

    async def _at_work(self, index: int) -> Status:
        """The agent's status in the middle of a job, with a durable record."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            agent = await self.cluster.agent(index)
            if agent and agent["durable_version"] > 0 and 0 < agent["job"]["done"] < agent["job"]["total"]:
                return agent
            await asyncio.sleep(WATCH_S / 5)
        raise ClusterError(f"agent-{index} was not met in the middle of a job within {WITHIN_S:.0f} s")

    async def _recovered(self, before: Status) -> Figures:
        def ended(status: Status) -> Figures | None:
            lives = ((r["agent"], r["incarnation"], r) for r in reversed(status["recoveries"]) if r["outcome"] != "running")
            return next((r for agent, life, r in lives if (agent, life) == (before["name"], before["incarnation"])), None)

        return ended(await self.cluster.until(lambda status: ended(status) is not None, WITHIN_S, WATCH_S)) or {}

    async def _again(self, before: Status, when: float) -> float:
        """Milliseconds until the next life has done an iteration that its record did not hold."""
        index = int(before["name"].rsplit("-", 1)[1])
        while time.time() < when + WITHIN_S:
            agent = await self.cluster.agent(index)
            resumed = agent["resumed_from"] if agent and agent["incarnation"] > before["incarnation"] else None
            if agent and resumed is not None and agent["iteration"] > resumed["iteration"]:
                return 1000 * (time.time() - when)
            await asyncio.sleep(WATCH_S)
        raise ClusterError(f"{before['name']} did not train again within {WITHIN_S:.0f} s")


async def bench(kills: int, stops: int, models: list[str], folder: Path) -> Figures:
    """All trials; the report."""
    report: Figures = {"hardware": hardware(), "load_before": round(os.getloadavg()[0], 2), "agents": AGENTS, "cases": []}
    for model in models:
        async with Bench(folder / f"hidden-{HIDDEN[model]}", HIDDEN[model]) as run:
            memory, started_s = run.cluster.pss_mb(), run.started_s
            if model == "default":
                report["memory_pss_mb"], report["started_s"] = memory, started_s
            for number, count in ((signal.SIGKILL, kills if model == "default" else max(2, kills // 2)), (signal.SIGSTOP, stops)):
                if count and (number == signal.SIGKILL or model == "default"):
                    report["cases"].append(summary(model, [await run.trial(number) for _ in range(count)]))
    async with Bench(folder / "larger", HIDDEN["default"], AGENTS + FURTHER) as run:
        total = sum(run.cluster.pss_mb().values())
        report["further_agent_mb"] = (total - sum(report["memory_pss_mb"].values())) / FURTHER
        report["further_agent_ms"] = 1000 * (run.started_s - report["started_s"]) / FURTHER
    report["floor"] = {"transfer_ms": {}, **process_floor()}
    for case in report["cases"]:
        floor = report["floor"]["transfer_ms"].setdefault(str(case["bytes"]), transfer_floor_ms(case["bytes"]))
        case["transfer_by_floor"] = round(case["median"]["transfer_ms"] / floor, 1)
        if case["signal"] == "SIGKILL":
            case["detect_by_floor"] = round(case["median"]["detect_ms"] / report["floor"]["notice_ms"], 1)
            case["again_by_floor"] = round(case["median"]["again_ms"] / report["floor"]["fork_ms"], 1)
    report["aims"] = judged(report)
    return report


def summary(model: str, trials: list[Figures]) -> Figures:
    """Median and maximum of each step, of the trials of one model and one signal."""
    case: Figures = {"model": model, "signal": trials[0]["signal"], "bytes": int(median(trial["bytes"] or 0 for trial in trials))}
    for name, measure in (("median", median), ("max", max)):
        values = {step: [trial[step] for trial in trials if trial[step] is not None] for step in STEPS}
        case[name] = {step: round(measure(found), 3) for step, found in values.items() if found}
    case["verified"] = sum(trial["outcome"] == "verified" for trial in trials)
    return case | {"trials": trials}


def judged(report: Figures) -> list[Figures]:
    """What was aimed at, and what was measured."""
    default = {case["signal"]: case["median"] for case in report["cases"] if case["model"] == "default"}
    rows = [(name, default[number][step], aim) for name, (number, step, aim) in AIMS.items() if number in default]
    rows += [
        ("12 agents and the manager, MiB PSS", sum(report["memory_pss_mb"].values()), MEMORY_AIM_MB),
        ("each further agent, MiB PSS", report["further_agent_mb"], FURTHER_AIM_MB),
        ("each further agent, ms to start", report["further_agent_ms"], FURTHER_AIM_MS),
    ]
    return [{"what": name, "measured": round(value, 1), "below": aim, "met": value < aim} for name, value, aim in rows]


# --- the floor --------------------------------------------------------------------------------------------------------


@contextmanager
def served(data: bytes) -> Iterator[tuple[str, int]]:
    """A process that answers each connection's first byte with `data`, over plain blocking sockets."""
    with socket.create_server((HOST, 0)) as server:
        pid = os.fork()
        if pid == 0:
            while True:
                link, _ = server.accept()
                with link:
                    if link.recv(1):
                        link.sendall(data)
        try:
            yield server.getsockname()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def transfer_floor_ms(size: int) -> float:
    """Median of connecting, asking and receiving so many bytes from another process on this machine."""
    buffer, found = bytearray(size), []
    with served(bytes(size)) as address:
        for _ in range(FLOOR_TRIALS):
            began = time.perf_counter()
            with socket.create_connection(address) as link:
                link.sendall(b"?")
                view = memoryview(buffer)
                while view:
                    view = view[link.recv_into(view) :]
            found.append(1000 * (time.perf_counter() - began))
    return round(median(found), 4)


def process_floor() -> Figures:
    """fork_ms: a fork and its exit; notice_ms: from SIGKILL to the end of a plain socket. In a process that has torch imported."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--process-floor"], capture_output=True, text=True, check=True, timeout=60
    )
    return dict(json.loads(done.stdout))


def measure_process_floor() -> Figures:
    """The work of process_floor(), in its process."""
    import torch

    torch.set_num_threads(1)
    forks, notices = [], []
    for _ in range(FLOOR_TRIALS):
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forks.append(1000 * (time.perf_counter() - began))
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            theirs.send(b"!")
            signal.pause()
        theirs.close()
        ours.recv(1)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        ours.recv(1)
        notices.append(1000 * (time.perf_counter() - began))
        os.waitpid(pid, 0)
        ours.close()
    return {"fork_ms": round(median(forks), 3), "notice_ms": round(median(notices), 3)}


# --- what is shown ----------------------------------------------------------------------------------------------------


def show(report: Figures) -> None:
    """The tables."""
    console = Console(width=130, highlight=False)
    console.print(f"\n{AGENTS} agents and a manager over loopback, mode exact; {report['hardware']}; load before {report['load_before']}\n")
    table = Table(box=None, pad_edge=False, title="from the signal, ms: median (max)", title_justify="left")
    for column in ("model", "signal", "trials", "verified", "bytes", *(step.removesuffix("_ms") for step in STEPS)):
        table.add_column(column, justify="left" if column in ("model", "signal") else "right", no_wrap=True)
    for case in report["cases"]:
        steps = [f"{case['median'][step]:.1f} ({case['max'][step]:.1f})" if step in case["median"] else "-" for step in STEPS]
        counts = (str(len(case["trials"])), str(case["verified"]), f"{case['bytes']:,}")
        table.add_row(case["model"], case["signal"], *counts, *steps)
    console.print(table)
    floor = Table(box=None, pad_edge=False, title="\nthe floor, ms, and ours as a multiple of it", title_justify="left")
    for column in ("", "floor", "ours"):
        floor.add_column(column, justify="right" if column else "left")
    measured = report["floor"]
    for case in report["cases"]:
        if case["signal"] == "SIGKILL":
            moved = measured["transfer_ms"][str(case["bytes"])]
            what = f"{case['model']}: {case['bytes']:,} bytes through a plain socket"
            floor.add_row(what, f"{moved:.2f}", f"x {case['transfer_by_floor']}")
            if case["model"] == "default":
                floor.add_row("a killed process noticed by a plain socket", f"{measured['notice_ms']:.2f}", f"x {case['detect_by_floor']}")
                floor.add_row("fork and exit with torch imported: again", f"{measured['fork_ms']:.2f}", f"x {case['again_by_floor']}")
    console.print(floor)
    memory = report["memory_pss_mb"]
    parts = ", ".join(f"{role} {size:.0f}" for role, size in memory.items())
    console.print(f"\nmemory, MiB PSS: {parts}, all {sum(memory.values()):.0f}; {AGENTS} agents up in {report['started_s']:.2f} s\n")
    aims = Table(box=None, pad_edge=False)
    for column in ("aim", "measured", "below", "met"):
        aims.add_column(column, justify="left" if column == "aim" else "right")
    for row in report["aims"]:
        aims.add_row(row["what"], f"{row['measured']:g}", f"{row['below']:g}", "yes" if row["met"] else "NO")
    console.print(aims)


def main() -> int:
    """Parse, run, show; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="SIGKILL trials of the default model; half as many of the larger ones")
    parser.add_argument("--stops", type=int, default=4, help="SIGSTOP trials")
    parser.add_argument("--quick", action="store_true", help="a short one: 3 kills, 1 stop, the default model alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--process-floor", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.process_floor:
        print(json.dumps(measure_process_floor()))
        return 0
    kills, stops, models = (3, 1, ["default"]) if chosen.quick else (chosen.kills, chosen.stops, list(HIDDEN))
    if kills < 1 or stops < 0:
        parser.error("--kills must be at least 1 and --stops at least 0")
    logging.disable(logging.WARNING)  # a daemon that is not up yet is no news here
    try:
        with tempfile.TemporaryDirectory(prefix="fmrec-bench-") as folder:
            report = asyncio.run(bench(kills, stops, models, Path(folder)))
    except ClusterError as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
