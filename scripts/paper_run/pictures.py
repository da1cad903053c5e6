"""The two figures, from fig1.json and fig4.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"undisturbed": "#1b9e77", "unprotected": "#d95f02", "anew": "#e6ab02", "fmrec": "#386cb0"}
FIG1_LABELS = {
    "unprotected": "unprotected: a random model is left",
    "anew": "unprotected, random model trained in the time left",
    "undisturbed": "undisturbed",
    "fmrec": "FMRec",
}
FIG1_STYLES = {"unprotected": "o-", "anew": "s-", "undisturbed": "-", "fmrec": "x--"}
FIG4_LABELS = {
    "baseline_failure": ("Baseline, failure", "o-", COLOURS["unprotected"]),
    "baseline": ("Baseline", "-", COLOURS["undisturbed"]),
    "fmrec": ("FMRec, failure", "x--", COLOURS["fmrec"]),
}
FIG4_CLOCKS = {"s": ("over_baseline", "time of adaptation, s"), "cpu_s": ("cpu_over_baseline", "the target's CPU time, s")}
DPI = 120


def draw_fig1(report: dict[str, Any], label: str, picture: Path) -> None:
    """RMSE against the nodes that lost their meta knowledge; the bands are the seeds' least and most."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, words in FIG1_LABELS.items():
        curve = report["rmse_pp"][name]
        width = 4 if name == "undisturbed" else 1.6
        axis.plot(report["nodes"], curve["mean"], FIG1_STYLES[name], color=COLOURS[name], label=words, linewidth=width)
        axis.fill_between(report["nodes"], curve["min"], curve["max"], color=COLOURS[name], alpha=0.15, linewidth=0)
    for number, point in enumerate(report["on_processes"]):
        words = f"real processes, SIGKILL; seed {report['seeds'][0]} alone" if number == 0 else None
        axis.plot(point["nodes"], point["rmse_pp"], "D", color="black", fillstyle="none", markersize=9, label=words)
    axis.set(xlabel=f"nodes of {report['nodes'][-1]} that lost their meta knowledge", ylabel="mean RMSE, percentage points", ylim=(0, None))
    axis.set_title(label, fontsize=10)
    axis.set_xticks(report["nodes"])
    axis.legend(loc="upper left")
    _save(figure, picture)


def draw_fig4(report: dict[str, Any], label: str, picture: Path) -> None:
    """Time of adaptation, by the wall clock and by the target's CPU, against the meta knowledge accumulated when it was lost: the
    baseline's median, and that times what the others took by their own baselines."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5))
    megabytes = [point["mb"] for point in report["points"]]
    for axis, (unit, (over, words)) in zip(axes, FIG4_CLOCKS.items(), strict=True):
        for variant, (name, style, colour) in FIG4_LABELS.items():
            width = 4 if variant == "baseline" else 1.6
            times = [report[f"baseline_{unit}"] * point.get(f"{variant}_{over}", 1.0) for point in report["points"]]
            axis.plot(megabytes, times, style, color=colour, label=name, linewidth=width)
        axis.set(xlabel="meta knowledge accumulated when it was lost, MB", ylabel=words, ylim=(0, None))
    figure.suptitle(label, fontsize=10)
    axes[0].legend(loc="lower right")
    _save(figure, picture)


def _save(figure: plt.Figure, picture: Path) -> None:
    figure.tight_layout()
    figure.savefig(picture, dpi=DPI)
    plt.close(figure)
