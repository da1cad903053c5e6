"""What the benchmark of the overlay shows: ours beside others' figures, the blows, the floor, and what was aimed at."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 150
Figures = dict[str, Any]

OTHERS = ("FreePastry 2.1, L = 12", "kademlia 2.2 (pip)", "hivemind 1.1 DHT", "py-libp2p 0.8")
STEADY = {
    "join, mean": ("0.31 s at N = 100", "12 ms (100 servers, one loop, UDP)", "392 ms", "254 ms connect"),
    "hops, mean / p99": ("1.72/3 at 100; 2.01/3 at 250; 2.19/3 at 450", "-", "-", "-"),
    "look-up round trip": ("p50 0.7 ms, p99 61 ms (about 3 with TCP_NODELAY)", "get p50 0.4, p99 5.9 ms", "get 29 ms", "-"),
    "look-up after 10 % die": ("50 of 1105 lost", "p99 5.0 s", "22 ms median, 102 max", "-"),
    "fan-out of one tree node": ("27 at 100 nodes, 195 at 450: no cap", "-", "-", "-"),
    "memory a node": ("2.3 MB RSS (one JVM)", "0.03 MB", "93 MB", "0.35 MB"),
}
"""Measured by others' own means on a machine of 2 cores and 24 GiB over loopback."""
BLOWS = {
    "kill": "multicasts lost for 28 s; 50 of 1105 look-ups lost",
    "stop": "no delivery for 65 s, flapping until 199 s; 78 of 1980 look-ups lost",
}
"""FreePastry with Scribe, 100 nodes, 10 of them, the root among them."""
AIMS = (
    ("join, mean, ms", ("join_ms_mean",), 50.0),
    ("warm look-up, p50, ms", ("rtt_warm_ms", "p50"), 0.7),
    ("warm look-up, p99, ms", ("rtt_warm_ms", "p99"), 5.0),
    ("right again after SIGKILL, s", ("after_kill_s",), 2.0),
    ("right again after SIGSTOP, s", ("after_stop_s",), 5.0),
    ("memory a node beyond the first, MB", ("memory_mb_per_node",), 1.0),
    ("idle processor time a node, % of a core", ("idle_cpu_pct_per_node",), 0.2),
)
"""For 100 nodes with the preset lan."""


def judged(report: Figures) -> list[Figures]:
    """What was aimed at, and what was measured."""
    rows = []
    for what, path, below in AIMS:
        measured: Any = report
        for name in path:
            measured = measured[name]
        rows.append({"what": what, "measured": measured, "below": below, "met": measured is not None and measured < below})
    return rows


def show(report: Figures) -> None:
    """The tables."""
    console = Console(width=WIDTH, highlight=False)
    head = f"{report['nodes']} nodes in {report['processes']} processes over loopback, preset {report['preset']}, seed {report['seed']}"
    console.print(f"\n{head}; {report['hardware']}; load before {report['load_before']}; {report['wall_s']} s in all\n")
    console.print(_steady(report))
    console.print(_blows(report))
    floor = report["floor"]
    echo = floor["echo_ms"]
    console.print(
        f"\nfloor: {floor['message_bytes']} bytes from process to process and back: p50 {echo['p50']:.3f}, p99 {echo['p99']:.3f} ms;"
        f" the warm look-up is {floor.get('ratio_p50')} and {floor.get('ratio_p99')} times that, with {report['hops_mean']:.2f} hops"
        " there and one back\n"
        f"look-ups in all {report['look_ups']}: wrong roots {report['wrong_roots']}, lost {report['lost']}; "
        f"declared dead by mistake: {report['false_deaths']}\n"
    )
    if (report["nodes"], report["preset"]) == (100, "lan"):
        console.print(_aims(report))


def _steady(report: Figures) -> Table:
    warm, cold, after = report["rtt_warm_ms"], report["rtt_cold_ms"], report["kill"]["rtt_after_ms"]
    ours = {
        "join, mean": f"{report['join_ms_mean']:.1f} ms",
        "hops, mean / p99": f"{report['hops_mean']:.2f}/{report['hops_p99']}",
        "look-up round trip": f"warm {_spread(warm)}; cold {_spread(cold)}",
        "look-up after 10 % die": _spread(after),
        "fan-out of one tree node": f"{report['fan_out_max']} to members",
        "memory a node": f"{report['memory_mb_per_node']:.2f} MB PSS beyond the first",
    }
    table = Table(box=None, pad_edge=False, title="overlay, steady state", title_justify="left")
    for column in ("", "FMRec", *OTHERS):
        table.add_column(column)
    for row, others in STEADY.items():
        table.add_row(row, ours[row], *others)
    table.add_row("multicast to a member", _spread(report["multicast_ms"]), *["-"] * len(OTHERS))
    table.add_row("idle, of a core a node", f"{report['idle_cpu_pct_per_node']:.3f} %", *["-"] * len(OTHERS))
    return table


def _blows(report: Figures) -> Table:
    table = Table(box=None, pad_edge=False, title="\n10 % gone, the root among them: s from the signal", title_justify="left")
    table.add_column("")
    for column in ("all right", "detected", "look-ups", "new root in", "multicast", "asked", "wrong", "lost", "unanswered"):
        table.add_column(column, justify="right")
    table.add_column("FreePastry + Scribe")
    for name, others in BLOWS.items():
        blow = report[name]
        times = (report[f"after_{name}_s"], *(blow.get(key) for key in ("detected_s", "look_ups_right_s", "root_active_s", "multicast_s")))
        counts = (str(blow[key]) for key in ("look_ups", "wrong_roots", "lost", "unanswered"))
        table.add_row(blow["signal"], *("never" if time is None else f"{time:.2f}" for time in times), *counts, others)
    kill, stop = report["kill"], report["stop"]
    joined = "not in time" if kill["joins_s"] is None else f"in {kill['joins_s']:.2f} s"
    back = "not found again" if stop["back_s"] is None else f"found again {stop['back_s']:.2f} s after SIGCONT"
    left = "has left" if stop["old_root_quit"] else "has NOT left"
    joins = f"{kill['joins']} joins right after the kill: {joined} (FreePastry: 91 s, 4 s when healthy)"
    table.caption = f"{joins}; the stopped are {back}, the old root {left}"
    table.caption_justify = "left"
    return table


def _aims(report: Figures) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("aim (100 nodes, preset lan)", "measured", "below", "met"):
        table.add_column(column, justify="right" if table.columns else "left")
    for row in judged(report):
        measured = "never" if row["measured"] is None else f"{row['measured']:g}"
        table.add_row(row["what"], measured, f"{row['below']:g}", "yes" if row["met"] else "NO")
    return table


def _spread(figures: dict[str, float | None]) -> str:
    if figures["p50"] is None:
        return "-"
    return f"p50 {figures['p50']:.2f}, p99 {figures['p99']:.2f} ms"
