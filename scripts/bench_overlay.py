"""The overlay over real TCP on this machine: joins, look-ups, multicast, memory and idle cost of N nodes, and the loss of 10 % of them.

N nodes, each with a listener of its own, in a few processes; no agents, no learning. Two rings, one after the other:

    join        from the order to enter the ring until the node is active; nodes enter one after another
    look-up     a datagram routed to a random key and one direct message back to the asker. Cold: the first of its pair of asker and
                key, its answer over a connection that it had to make; warm: the same pairs again
    multicast   from the root's order until each member has it
    idle        processor time of all processes while all nodes are in one tree and nothing is asked, for each node
    memory      proportional set size of all processes with all nodes (after all of the above) less that with one node each
    after kill  SIGKILL for 10 %, the root among them; the root starts again elsewhere; ten nodes join. From the signal until all look-ups
                are right and a multicast from the new root has reached every living member
    after stop  the same with SIGSTOP, in the second ring, without joins; then SIGCONT

The floor, in the same run: a round trip of a message of the same size between two bare processes. Ends by itself, in about a minute for 100
nodes. Figures of others: see docs/overlay.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol.aio.process import FAILED, FINE, INTERRUPTED, run
from protocol.identifiers import NodeId
from protocol.parameters import PRESETS
from protocol.wire.codec import encode
from protocol.wire.framing import frame
from protocol.wire.messages import Datagram, Route
from scripts.demo_report import hardware
from scripts.overlay_bench.fleet import BenchError, Fleet
from scripts.overlay_bench.floor import echo_ms
from scripts.overlay_bench.ledger import spread
from scripts.overlay_bench.node_process import PAYLOAD_BYTES
from scripts.overlay_bench.ring import JOINERS, Ring, Size
from scripts.overlay_bench.tables import show

NODES_MIN, PROCESSES_MIN = 8, 2
Figures = dict[str, Any]


async def bench(size: Size, folder: Path, facts: Path | None) -> Figures:
    """Both rings and the floor; the report."""
    began_s = time.monotonic()
    report: Figures = {
        "nodes": size.nodes,
        "processes": size.processes,
        "preset": size.preset,
        "seed": size.seed,
        "hardware": hardware(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    rings: dict[str, Ring] = {}
    try:
        async with Fleet(folder, size.preset) as fleet:
            first = rings["kill"] = Ring(fleet, size)
            await first.up()
            report |= await first.steady()
            report["kill"] = await first.struck(signal.SIGKILL, JOINERS)
        async with Fleet(folder, size.preset) as fleet:
            second = rings["stop"] = Ring(fleet, size)
            await second.up()
            await second.plant()
            report["stop"] = await second.struck(signal.SIGSTOP, 0)
            false_deaths = [ring.ledger.false_deaths() for ring in (first, second)]
            report["stop"] |= await second.woken()
    finally:
        if facts is not None:
            write_facts(facts, rings)
    look_ups = [(ring, look_up) for ring in (first, second) for look_up in ring.ledger.look_ups.values()]
    report |= {
        "look_ups": len(look_ups),
        "wrong_roots": sum(ring.ledger.wrong(look_up) for ring, look_up in look_ups),
        "lost": sum(look_up.lost for _, look_up in look_ups),
        "after_kill_s": report["kill"].pop("after_s"),
        "after_stop_s": report["stop"].pop("after_s"),
        "false_deaths": sum(false_deaths),
        "facts": dict(sorted(Counter(fact for ring in (first, second) for _, _, fact, _ in ring.facts).items())),
    }
    report["floor"] = await floor(report)
    return report | {"wall_s": round(time.monotonic() - began_s, 1)}


def write_facts(path: Path, rings: dict[str, Ring]) -> None:
    """One line for each fact that a node has told of: in which ring, seconds after the blow, who (a victim has a star), what."""
    with path.open("w") as out:
        for name, ring in rings.items():
            victims = {node.id.short for node in ring.victims}
            for at_s, node, fact, said in sorted(ring.facts):
                out.write(f"{name} {at_s - ring.blow_s:+9.3f} {node}{'*' if node in victims else ' '} {fact} {said}\n")


async def floor(report: Figures) -> Figures:
    """A bare round trip of a message as long as a routed question, and the warm look-up as a multiple of it."""
    message_bytes = len(frame(encode(Route(NodeId(1 << 127), Datagram(bytes(PAYLOAD_BYTES)), 1, 1))))
    found = spread(await echo_ms(message_bytes))
    warm = report["rtt_warm_ms"]
    ratios = {f"ratio_{name}": round(warm[name] / found[name], 1) for name in ("p50", "p99") if warm[name] and found[name]}
    return {"message_bytes": message_bytes, "echo_ms": found, **ratios}


def main() -> int:
    """Parse, run, show; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4, help="all nodes in so many, one of which holds those to be killed")
    parser.add_argument("--preset", choices=PRESETS, default="lan")
    parser.add_argument("--look-ups", type=int, default=1000, help="pairs of asker and key, each looked up three times")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds without any question")
    parser.add_argument("--seed", type=int, default=1, help="of keys, askers and the order of joins")
    parser.add_argument("--facts", type=Path, help="write to this file whom each node suspected, buried and found again, and why")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    chosen = parser.parse_args()
    if chosen.nodes < NODES_MIN or chosen.processes < PROCESSES_MIN or chosen.nodes < 2 * chosen.processes:
        parser.error(f"--nodes must be at least {NODES_MIN} and twice --processes, --processes at least {PROCESSES_MIN}")
    if chosen.look_ups < 1 or chosen.idle <= 0:
        parser.error("--look-ups must be at least 1 and --idle above 0")
    size = Size(chosen.nodes, chosen.processes, chosen.preset, chosen.look_ups, chosen.idle, chosen.seed)

    async def program(stop: asyncio.Event) -> int:
        with tempfile.TemporaryDirectory(prefix="fmrec-bench-") as folder:
            work = asyncio.create_task(bench(size, Path(folder), chosen.facts))
            asked = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    return INTERRUPTED
                report = work.result()
            except BenchError as error:
                print(f"error: {error}", file=sys.stderr)
                return FAILED
            finally:
                for task in (work, asked):
                    task.cancel()
                await asyncio.gather(work, asked, return_exceptions=True)
        if chosen.json:
            print(json.dumps(report))
        else:
            show(report)
        return FINE

    return run(program)


if __name__ == "__main__":
    sys.exit(main())
