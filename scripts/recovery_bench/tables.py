"""What the benchmark of recovery shows: a row a size, what being ready costs, the floors, and what was aimed at."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 150
Figures = dict[str, Any]

UP_TO_10_MB = ("0.1", "1", "10.396")
PAIR = ("p50", "p99")
"""As bench_recovery.py tells them: p99 is the worst of fewer than a hundred trials."""


def judged(report: Figures) -> list[Figures]:
    """What was aimed at, and what was measured, of what was measured at all."""
    sizes, rows = report["sizes_mb"], []

    def aim(what: str, measured: float | None, bound: float, *, above: bool = False) -> None:
        if measured is not None:
            met = measured >= bound if above else measured < bound
            rows.append({"what": what, "measured": round(measured, 3), "above" if above else "below": bound, "met": met})

    for size in (size for size in UP_TO_10_MB if size in sizes):
        for name, bound in (("p50", 60.0), ("p99", 250.0)):
            aim(f"SIGKILL to the verified record, {size} MB, {name}, ms", sizes[size]["kill_ms"][name], bound)
    for size, found in sizes.items():
        for name, key in (("p50", "restart_ms"), ("p99", "restart_p99_ms")):
            aim(f"training again after SIGKILL, {size} MB, {name}, ms", found[key], 400.0)
    if "100" in sizes:
        aim("SIGKILL, 100 MB: from detection to the verified record, by the raw transfer", sizes["100"]["beyond_by_raw"], 2.0)
    for size, found in sizes.items():
        for name in PAIR:
            aim(f"SIGSTOP to the verified record, {size} MB, {name}, ms", found["stop_ms"][name], 1200.0)
        if size in ("10.396", "100"):
            aim(f"bulk transfer, {size} MB, share of the floor's speed", found["bulk_ratio"], 0.7, above=True)
            aim(f"bulk transfer with digests, {size} MB, share of the floor's speed", found["bulk_digest_ratio"], 0.5, above=True)
    if "10.396" in sizes:
        pause_ms, clock_ms = (sizes["10.396"][name] for name in ("pause_ms", "snapshot_ms"))
        aim(f"snapshot pause, 10.396 MB, ms, without waiting for a processor; {clock_ms:g} by the clock", pause_ms, 5.0)
    costs = (("checkpoint_overhead_pct", "checkpoints every 50 iterations, % of training time", 1.0),
             ("standby_kill_s", "standby after SIGKILL of the manager, s", 2.0),
             ("standby_stop_s", "standby after SIGSTOP of the manager, s", 4.0),
             ("standby_rounds_lost", "committed rounds lost", 1.0),
             ("further_agent_mb", "each further agent, MiB PSS", 12.0),
             ("further_agent_ms", "each further agent, ms to start", 50.0))  # fmt: skip
    for name, what, bound in costs:
        aim(what, report.get(name), bound)
    return rows


def show(report: Figures) -> None:
    """The tables."""
    console = Console(width=WIDTH, highlight=False)
    head = f"{report['agents']} agents and a manager over loopback, mode exact; {report['hardware']}; load before {report['load_before']}"
    console.print(f"\n{head}; {report['wall_s']} s in all\n")
    console.print(_recoveries(report["sizes_mb"]))
    stops = "; ".join(_stop_steps(size, found) for size, found in report["sizes_mb"].items())
    console.print(f"SIGSTOP by step, ms, medians: {stops}\n")
    console.print(_readiness(report["sizes_mb"]), "")
    floor = report["floor"]
    console.print(
        f"floor, ms: a killed process noticed by a plain socket {floor['notice_ms']}; fork and exit with torch imported {floor['fork_ms']}"
    )
    if report["checkpoint_overhead_pct"] is not None:
        made_of = "{checkpoint_cpu_ms} ms of processor time each, {iteration_cpu_ms} an iteration of batch {batch}"
        share = f"a checkpoint every 50 iterations: {report['checkpoint_overhead_pct']} % of training time"
        console.print(f"{share}; {made_of.format(**report['checkpoint'])}")
    if report["standby_kill_s"] is not None:
        console.print(
            f"a standby has announced a round {report['standby_kill_s']} s after SIGKILL of the manager, "
            f"{report['standby_stop_s']} s after SIGSTOP; committed rounds lost: {report['standby_rounds_lost']}"
        )
    if "memory_pss_mb" in report:
        parts = ", ".join(f"{role} {size:.0f}" for role, size in report["memory_pss_mb"].items())
        console.print(f"memory, MiB PSS: {parts}; {report['agents']} agents up in {report['started_s']} s")
    console.print("", _aims(report["aims"]))


def _recoveries(sizes: dict[str, Figures]) -> Table:
    columns = ("MB", "kills", "verified", "detect", "locate", "transfer", "kill p50", "p99", "stops", "stop p50", "p99")
    columns += ("resumed", "restart p50", "p99", "repeat")
    table = _table("from the signal to the verified record at the manager, and to training again; ms, medians", columns)
    for size, found in sizes.items():
        steps = (found["detect_ms"], found["locate_ms"], found["transfer_ms"], *(found["kill_ms"][name] for name in PAIR))
        stops = (str(found["stops"]), *(_shown(found["stop_ms"][name]) for name in PAIR))
        last = (found.get("resumed_ms"), found["restart_ms"], found["restart_p99_ms"], found["repeat_ms"])
        table.add_row(size, str(found["kills"]), str(found["verified"]), *map(_shown, steps), *stops, *map(_shown, last))
    return table


def _stop_steps(size: str, found: Figures) -> str:
    steps = (f"{name} {_shown(found.get(f'stop_{name}_ms'))}" for name in ("detect", "locate", "transfer"))
    return f"{size} MB: {', '.join(steps)}"


def _readiness(sizes: dict[str, Figures]) -> Table:
    columns = ("MB", "bytes", "pause", "by the clock", "durable", "raw", "new", "meanwhile", "in a row", "new")
    columns += ("moved", "of", "beyond / raw", "raw / bulk", "raw / with digests")
    title = "checkpoints and transfers; ms, medians; pause: without waiting for a processor; raw: alone, and meanwhile, beside the agents"
    table = _table(title, columns)
    for size, found in sizes.items():
        times = ("pause_ms", "snapshot_ms", "durable_ms", "raw_ms", "raw_new_ms")
        times += ("raw_meanwhile_ms", "raw_in_a_row_ms", "raw_first_ms", "moved_ms")
        ratios = ("beyond_by_raw", "bulk_ratio", "bulk_digest_ratio")
        shown = [[_shown(found.get(name)) for name in names] for names in (times, ratios)]
        table.add_row(size, f"{found['bytes']:,}", *shown[0], f"{found['moved']}/{found['kills']}", *shown[1])
    return table


def _aims(aims: list[Figures]) -> Table:
    table = _table("", ("aim", "measured", "bound", "met"))
    for row in aims:
        bound = f"< {row['below']:g}" if "below" in row else f">= {row['above']:g}"
        table.add_row(row["what"], f"{row['measured']:g}", bound, "yes" if row["met"] else "NO")
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
