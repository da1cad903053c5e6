"""Draws the curves that scripts/simulate.py --curve has written: docs/overlay_hops.png and docs/overlay_churn.png."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs"
FREEPASTRY = {100: 1.72, 250: 2.01, 450: 2.19}
"""Mean hops of FreePastry 2.1, L = 12."""
Points = list[dict[str, Any]]


def draw_hops(points: Points) -> plt.Figure:
    """Mean hops and delay stretch against N."""
    nodes = [point["nodes"] for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(nodes, [point["hops_mean"] for point in points], "o-", label="FMRec, simulated")
    left.plot(nodes, [log(count, 16) for count in nodes], "--", color="grey", label="log16 N")
    left.plot(list(FREEPASTRY), list(FREEPASTRY.values()), "s", label="FreePastry 2.1")
    left.set(xscale="log", xlabel="nodes", ylabel="mean hops", ylim=(0, None))
    left.legend()
    right.plot(nodes, [point["stretch"] for point in points], "o-")
    right.axhline(1.0, linestyle="--", color="grey")
    right.set(xscale="log", xlabel="nodes", ylabel="delay stretch", ylim=(0, None))
    return figure


def draw_churn(points: Points) -> plt.Figure:
    """Loss and traffic against the mean session."""
    minutes = [float(point["faults"].partition("session_mean_s=")[2].split(",")[0]) / 60 for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(minutes, [point["lost"] / point["routed"] for point in points], "o-")
    left.set(xscale="log", xlabel="mean session, minutes", ylabel="look-ups lost, share", ylim=(0, None))
    kinds = ("control", "tree", "routing")
    for kind in kinds:
        right.plot(minutes, [point[f"{kind}_msgs_per_s_per_node"] for point in points], "o-", label=kind)
    right.set(xscale="log", xlabel="mean session, minutes", ylabel="messages a second and node", ylim=(0, None))
    right.legend()
    for axis in (left, right):
        axis.set_xticks(minutes, [f"{value:g}" for value in minutes])
        axis.minorticks_off()
    return figure


DRAWINGS: dict[str, Callable[[Points], plt.Figure]] = {"hops": draw_hops, "churn": draw_churn}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="what --curve wrote (docs/overlay_hops.json, docs/overlay_churn.json)")
    chosen = parser.parse_args()
    found = chosen.results or [path for curve in DRAWINGS if (path := DOCS / f"overlay_{curve}.json").exists()]
    if not found:
        print("error: there are no results; make them with scripts/simulate.py --curve hops", file=sys.stderr)
        return 1
    for path in found:
        curve = json.loads(path.read_text())
        figure = DRAWINGS[curve["curve"]](curve["points"])
        figure.tight_layout()
        picture = path.with_suffix(".png")
        figure.savefig(picture, dpi=120)
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
