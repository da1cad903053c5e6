"""What the demo shows at its end: a table on the terminal and a picture."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

COLOURS = {"undisturbed": "#1b9e77", "unprotected": "#d95f02", "protected": "#386cb0"}
STYLES = {"undisturbed": "-", "unprotected": "-", "protected": "--"}
DPI = 110
WIDTH = 130


def hardware() -> str:
    """Cores, memory and CPU model of this machine, in words."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        total_kb = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        return f"{os.cpu_count()} cores, {total_kb / 1024**2:.0f} GiB memory, {model}"
    except (OSError, StopIteration):
        return f"{os.cpu_count()} cores, {model}"


def show(report: dict[str, Any]) -> None:
    """The table of the three runs, and one row a recovery."""
    console = Console(width=WIDTH, highlight=False)
    runs = report["runs"]
    console.print(f"\n{report['data']}, seed {report['seed']}; {report['hardware']}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in runs:
        table.add_column(name, justify="right")
    console.print()
    rows: list[tuple[str, list[str]]] = [
        ("recovery mode", [run["recovery"] for run in runs.values()]),
        ("rounds", [str(run["rounds"]) for run in runs.values()]),
        ("query loss", [f"{run['query_loss']:.6f}" for run in runs.values()]),
        ("theta (SHA-256)", [run["theta_digest"][:12] for run in runs.values()]),
        ("wall time, s", [f"{run['wall_s']:.2f}" for run in runs.values()]),
        ("of which the targets' adaptation, s", [f"{run['adaptation_s']:.2f}" for run in runs.values()]),
        ("iterations done again", [str(run["iterations_repeated"]) for run in runs.values()]),
        ("memory of all processes, MiB PSS", [f"{sum(run['memory_pss_mb'].values()):.0f}" for run in runs.values()]),
    ]
    targets = sorted({target for run in runs.values() for target in run["target_rmse_pp"]}, key=lambda name: (len(name), name))
    for target in targets:
        persistence = next(run["persistence_rmse_pp"][target] for run in runs.values() if target in run["persistence_rmse_pp"])
        shown = [f"{run['target_rmse_pp'][target]:.3f}" if target in run["target_rmse_pp"] else "lost" for run in runs.values()]
        rows.append((f"RMSE of {target}, pp (persistence {persistence:.2f})", shown))
    rows.append(("RMSE, mean over targets, pp", [f"{mean(run['target_rmse_pp'].values()):.3f}" for run in runs.values()]))
    for label, values in rows:
        table.add_row(label, *values)
    console.print(table)
    _show_recoveries(console, runs)
    same = runs["protected"]["theta_digest"] == runs["undisturbed"]["theta_digest"]
    verdict = "equal, bit for bit, to" if same else "NOT equal to"
    console.print(f"\ntheta of the protected run is {verdict} the undisturbed one's")


def _show_recoveries(console: Console, runs: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("killed", "in", "noticed ms", "located ms", "moved ms", "total ms", "bytes", "version", "behind", "from"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("killed", "in", "from") else "right")
    protected = runs["protected"]
    kills = {kill["agent"]: kill for kill in protected["kills"]}
    for recovery in protected["recoveries"]:
        kill = kills.get(recovery["agent"])
        where = f"{kill['phase']}, round {kill['round']}, iteration {kill['iteration']}" if kill else "-"
        noticed = "-" if recovery["detect_ms"] is None else f"{recovery['detect_ms']:.1f}"
        table.add_row(
            recovery["agent"],
            where,
            noticed,
            f"{recovery['locate_ms']:.1f}",
            f"{recovery['transfer_ms']:.1f}",
            f"{recovery['total_ms']:.1f}",
            str(recovery["bytes"] or "-"),
            str(recovery["version"] or "-"),
            str(recovery["iterations_behind"] if recovery["iterations_behind"] is not None else "-"),
            recovery["holder"] or recovery["outcome"],
        )
    console.print("\nrecoveries of the protected run (from SIGKILL to the verified record at the manager)")
    console.print(table)


def draw(report: dict[str, Any], path: Path) -> None:
    """Query RMSE and progress over time for the three runs, kills marked, and the targets' RMSE."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, (loss, progress, targets) = plt.subplots(1, 3, figsize=(16, 4.8), gridspec_kw={"width_ratios": (5, 5, 4)})
    for name, run in report["runs"].items():
        seen = [point for point in run["timeline"] if point["loss"] is not None]
        style = {"color": COLOURS[name], "linestyle": STYLES[name], "linewidth": 1.8, "label": f"{name} ({run['recovery']})"}
        loss.plot([point["t_s"] for point in seen], [100 * point["loss"] ** 0.5 for point in seen], **style)
        progress.plot([point["t_s"] for point in run["timeline"]], [point["iterations"] for point in run["timeline"]], **style)
        for kill in run["kills"]:
            for axes in (loss, progress):
                axes.axvline(kill["t_s"], color=COLOURS[name], linestyle=":", linewidth=1, alpha=0.8)
            at = progress.get_xaxis_transform()
            progress.text(kill["t_s"], 1.01, "✕", color=COLOURS[name], transform=at, ha="center", fontsize=10)
            loss.text(kill["t_s"], 1.01, "✕", color=COLOURS[name], transform=loss.get_xaxis_transform(), ha="center", fontsize=10)
    loss.set(xlabel="seconds since the first round", ylabel="query RMSE of the sources, percentage points", yscale="log")
    loss.yaxis.set_major_formatter(ScalarFormatter())
    loss.yaxis.set_minor_formatter(ScalarFormatter())
    loss.set_title("Meta-training (✕ = SIGKILL)", pad=18)
    progress.set(xlabel="seconds since the first round", ylabel="iterations in the memory of all agents")
    progress.set_title("Progress held by the agents", pad=18)
    loss.legend(frameon=False, fontsize=9)
    _draw_targets(targets, report["runs"])
    for axes in (loss, progress, targets):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['data']}, seed {report['seed']}", fontsize=10, color="#444444", y=0.995)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _draw_targets(axes: Any, runs: dict[str, Any]) -> None:
    names = sorted({target for run in runs.values() for target in run["target_rmse_pp"]}, key=lambda name: (len(name), name))
    width = 0.8 / len(runs)
    for index, (name, run) in enumerate(runs.items()):
        at = [place + (index - (len(runs) - 1) / 2) * width for place in range(len(names))]
        axes.bar(at, [run["target_rmse_pp"].get(target, 0.0) for target in names], width, color=COLOURS[name], label=name)
    persistence = next(iter(runs.values()))["persistence_rmse_pp"]
    for place, target in enumerate(names):
        if target in persistence:
            axes.plot([place - 0.45, place + 0.45], [persistence[target]] * 2, color="black", linewidth=1.5)
    axes.plot([], [], color="black", linewidth=1.5, label="persistence")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_ylabel("RMSE, percentage points of capacity")
    axes.set_title("Targets after adaptation", pad=18)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
