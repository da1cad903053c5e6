"""The overlay in virtual time: the machines that production runs, by the thousand, under faults drawn from a seed.

    make simulate SEED=1 NODES=1000 FAULTS=drawn
    python scripts/simulate.py --nodes 1000 --routed 10000000 --seeds 1-8 --jobs 2
    python scripts/simulate.py --curve hops
    python scripts/simulate.py --rounds 12 --nodes 1000 --faults wild

Nodes join, faults strike while messages are routed, then everything is healed and must come right. FAULTS is a list of presets and
fields: none, calm, messages, crashes, churn-60, burst-50, partition, wild, ..., drawn (from the seed), or silent_share=0.5.
With --rounds, agents keep records and the root runs rounds (P1, P2, P5, P6) in the --mode given, without routed messages.
Exit code 1 where something is wrong: the seed, the story of the nodes that were part of it, and the command that replays it are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from protocol.parameters import PlacementPolicy  # noqa: E402
from scripts.simulation import report, round_report  # noqa: E402
from scripts.simulation.report import header  # noqa: E402
from scripts.simulation.rounds import RoundOptions, simulate_rounds  # noqa: E402
from scripts.simulation.run import Options, simulate  # noqa: E402

HOPS_NODES = (100, 250, 450, 1000, 2500, 5000, 10000)
CHURN_MINUTES = (5, 15, 60, 138)
MODES = ("exact", "substitute", "drop")
ALONE = ("exact", 1.0, 0, 1, "local", 0.0)
"""What has a meaning with rounds alone, as it is without."""


def hops_curve(base: Options) -> list[Options]:
    """Healthy rings without a tree: hops and stretch against N."""
    routed = 10_000 if base.routed is None else base.routed
    return [replace(base, nodes=nodes, faults="none", routed=routed, tree=False) for nodes in HOPS_NODES]


def churn_curve(base: Options) -> list[Options]:
    """Loss and traffic against the mean session."""
    return [replace(base, faults=f"churn-{minutes}") for minutes in CHURN_MINUTES]


CURVES = {"hops": hops_curve, "churn": churn_curve}


def seeds_of(words: str) -> list[int]:
    """"3", "1-8" or "1,5,9"; ValueError for anything else."""
    seeds: list[int] = []
    for part in words.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(words)
    return seeds


def run_one(options: Options | RoundOptions) -> dict[str, Any]:
    """One run, as plain values."""
    return simulate_rounds(options) if isinstance(options, RoundOptions) else simulate(options)


def run_all(runs: Sequence[Options | RoundOptions], jobs: int) -> Iterator[dict[str, Any]]:
    """The results in the order of the runs, as they come."""
    if jobs == 1 or len(runs) == 1:
        yield from map(run_one, runs)
        return
    with ProcessPoolExecutor(min(jobs, len(runs)), max_tasks_per_child=1) as pool:
        yield from pool.map(run_one, runs)


def arguments() -> argparse.ArgumentParser:
    quiet = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", "--seeds", dest="seeds", default=str(quiet.seed), help="3, 1-8 or 1,5,9: one run each (%(default)s)")
    parser.add_argument("--nodes", type=int, default=quiet.nodes, help="(%(default)s)")
    parser.add_argument("--faults", default=quiet.faults, help="presets and fields, separated by commas (%(default)s)")
    parser.add_argument("--preset", default=quiet.preset, choices=("loopback", "lan", "wan"), help="parameters and delays (%(default)s)")
    parser.add_argument("--seconds", type=float, default=quiet.seconds, help="virtual, of the phase with faults (%(default)s)")
    parser.add_argument("--routed", type=int, help="messages routed in that phase, over all seeds (10 for each node)")
    parser.add_argument("--rounds", type=int, default=0, help="records and so many rounds, instead of routed messages")
    parser.add_argument("--mode", default="exact", choices=MODES, help="with --rounds: the tree's recovery (%(default)s)")
    parser.add_argument("--selected", type=float, default=1.0, help="with --rounds: share of the agents that train in one (%(default)g)")
    parser.add_argument("--standbys", type=int, default=0, help="with --rounds: of the nodes, how many watch the manager (%(default)s)")
    parser.add_argument("--zones", type=int, default=1, help="with --rounds: the agents are in so many, in turn (%(default)s)")
    parser.add_argument("--placement", default="local", choices=get_args(PlacementPolicy), help="with --rounds: of replicas (%(default)s)")
    parser.add_argument(
        "--forget-after", type=float, default=0.0, help="with --rounds: seconds until records of who is gone are forgotten (the preset's)"
    )
    parser.add_argument("--no-tree", action="store_true", help="no tree: the ring alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes, where there are several runs (%(default)s)")
    parser.add_argument("--curve", choices=tuple(CURVES), help="one run for each point of a curve, written to --output")
    parser.add_argument("--output", type=Path, help="where a curve goes (docs/overlay_CURVE.json)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def chosen_runs(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Sequence[Options | RoundOptions]:
    """One set of options for each run; a usage error where one is wrong."""
    try:
        seeds = seeds_of(chosen.seeds)
    except ValueError:
        parser.error(f"--seeds is 3, 1-8 or 1,5,9, not {chosen.seeds!r}")
    if chosen.nodes < 1 or chosen.jobs < 1 or chosen.seconds <= 0 or (chosen.routed is not None and chosen.routed < 0):
        parser.error("--nodes and --jobs are at least 1, --seconds is above 0, --routed is not negative")
    if chosen.rounds < 0 or (chosen.rounds and (chosen.curve or chosen.no_tree or chosen.routed is not None or chosen.nodes < 2)):
        parser.error("--rounds is not negative, needs an agent beside the manager, and goes without --curve, --no-tree and --routed")
    if not 0 < chosen.selected <= 1 or not 0 <= chosen.standbys <= max(0, chosen.nodes - 2):
        parser.error("--selected is above 0 and at most 1, --standbys is not negative and leaves a manager and an agent")
    if not 1 <= chosen.zones <= max(1, chosen.nodes - 1 - chosen.standbys):
        parser.error("--zones is at least 1, and at most the number of agents")
    alone = (chosen.mode, chosen.selected, chosen.standbys, chosen.zones, chosen.placement, chosen.forget_after)
    if not chosen.rounds and alone != ALONE:
        parser.error("--mode, --selected, --standbys, --zones, --placement and --forget-after go with --rounds")
    routed = None if chosen.routed is None else -(-chosen.routed // len(seeds))
    base = Options(seeds[0], chosen.nodes, chosen.faults, chosen.preset, chosen.seconds, routed, not chosen.no_tree)
    runs: list[Options | RoundOptions] = [replace(base, seed=seed) for seed in seeds]
    if chosen.curve:
        runs = [point for seed in seeds for point in CURVES[chosen.curve](replace(base, seed=seed))]
    elif chosen.rounds:
        first = RoundOptions(
            seeds[0], chosen.nodes, chosen.faults, chosen.preset, chosen.seconds, chosen.rounds, chosen.mode, chosen.selected,
            chosen.standbys, chosen.zones, chosen.placement, chosen.forget_after,
        )  # fmt: skip
        runs = [replace(first, seed=seed) for seed in seeds]
    try:
        for run in runs:
            run.drawn_faults()
            if isinstance(run, RoundOptions):
                run.parameters()
    except ValueError as error:
        parser.error(str(error))
    return runs


def main() -> int:
    """Parse, run, print; the exit code."""
    parser = arguments()
    chosen = parser.parse_args()
    runs, words = chosen_runs(parser, chosen), round_report if chosen.rounds else report
    began = time.perf_counter()
    for run in () if chosen.json else runs:
        print(header(asdict(run), str(run.drawn_faults())), flush=True)
    results = []
    for options, result in zip(runs, run_all(runs, chosen.jobs), strict=True):
        results.append(result)
        if not chosen.json:
            if len(runs) > 1:
                print(f"\n{options.command()}")
            print(words.text(result), flush=True)
    total = results[0] if len(runs) == 1 else words.summed(results, chosen.seeds)
    total["wall_s"] = round(time.perf_counter() - began, 2)
    if chosen.curve:
        output = chosen.output or ROOT / "docs" / f"overlay_{chosen.curve}.json"
        points = [{name: value for name, value in result.items() if name != "story"} for result in results]
        output.write_text(json.dumps({"curve": chosen.curve, "points": points}, indent=1) + "\n")
    if chosen.json:
        print(json.dumps({name: value for name, value in total.items() if name != "story"}))
    elif len(runs) > 1:
        shown = {name: value for name, value in total.items() if name not in ("trace_digest", "failures")}
        print("\ntogether: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
    if total["failures"] and chosen.json:
        print("\n".join(result["story"] for result in results if result["failures"]), file=sys.stderr)
    return 1 if total["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
