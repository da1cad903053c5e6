"""Draws what scripts/bench_recovery.py --json has printed: docs/recovery.png from docs/recovery.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "recovery.json"
STEPS = (("detect", "#386cb0"), ("locate", "#7fc97f"), ("transfer", "#fdc086"))
Figures = dict[str, Any]


def draw(report: Figures) -> plt.Figure:
    """Left: the way from SIGKILL to the verified record, by step. Right: a recovery against doing the work again, over the size."""
    sizes: dict[str, Figures] = report["sizes_mb"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    at = range(len(sizes))
    below = [0.0] * len(sizes)
    for step, colour in STEPS:
        heights = [found[f"{step}_ms"] for found in sizes.values()]
        left.bar(at, heights, 0.55, bottom=below, color=colour, label=step)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, found in zip(at, sizes.values(), strict=True):
        trials = [trial["total_ms"] for trial in found["trials"]["SIGKILL"]]
        left.plot([place] * len(trials), trials, ".", color="black", markersize=3, alpha=0.5, label=None if place else "one kill, in all")
        floor = [found["raw_meanwhile_ms"]] * 2
        left.plot([place - 0.28, place + 0.28], floor, color="red", label=None if place else "the same bytes, raw")
    left.set_xticks(at, [f"{size} MB" for size in sizes])
    left.set(ylabel="ms since SIGKILL", title="To the verified record at the manager: median of each step")
    left.legend(frameon=False, fontsize=8)
    megabytes = [found["bytes"] / 1e6 for found in sizes.values()]
    lines = {
        "doing the lost iterations again": ("repeat_ms", "s--", "#d95f02"),
        "restarted and training again": ("restart_ms", "o-", "#1b9e77"),
        "checkpoint durable": ("durable_ms", "^-", "#386cb0"),
        "checkpoint's pause of training": ("pause_ms", "v-", "#7570b3"),
        "the same bytes, raw, alone": ("raw_ms", ":", "red"),
    }
    for label, (name, style, colour) in lines.items():
        right.plot(megabytes, [found[name] for found in sizes.values()], style, color=colour, label=label)
    right.set(xscale="log", yscale="log", xlabel="meta knowledge of an agent, MB", ylabel="ms, median")
    right.set_title("A recovery and its alternative")
    right.set_ylim(bottom=right.get_ylim()[0] / 30)  # room for the legend
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['agents']} agents and a manager; {report['hardware']}", fontsize=9, color="#444444")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="what --json printed (docs/recovery.json)")
    chosen = parser.parse_args()
    if not chosen.results.exists():
        print(f"error: there is no {chosen.results}: make it with scripts/bench_recovery.py --json", file=sys.stderr)
        return 1
    figure = draw(json.loads(chosen.results.read_text()))
    figure.tight_layout()
    picture = chosen.results.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
