"""Chaos: a real training run of real processes on several hosts, faults drawn from a seed, and FMRec's promises checked at the end.

    python scripts/chaos.py --seconds 60 --seed 1
    python scripts/chaos.py --seconds 60 --seed 1 --kill --stop          # no partitions
    make soak SEED=1                                                     # half an hour

Hosts are network namespaces on this machine, which only root may make; without them there are no partitions, and that is said. The faults
are printed before anything happens. Exit code 1 where a promise does not hold: then the seed, the story of what was done and the
command that replays it are printed; 2 for a usage error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import signal
import sys
from math import inf
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.chaos_run.cluster import MANAGERS, places  # noqa: E402
from scripts.chaos_run.plan import KINDS, Kind, draw_plan  # noqa: E402
from scripts.chaos_run.run import PARTS, ChaosRun, Options  # noqa: E402
from scripts.chaos_run.verdict import judge  # noqa: E402
from scripts.demo_report import hardware  # noqa: E402
from scripts.hosts import Network, OneMachine, Unable, enter  # noqa: E402
from scripts.local_cluster import ClusterError  # noqa: E402

HOSTS = 4
AGENTS_MIN = 4


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults strike (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults, and of the training run (%(default)s)")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults, on average (%(default)s)")
    parser.add_argument("--agents", type=int, default=16, help=f"on {HOSTS} hosts, beside two managers (%(default)s)")
    for kind, what in (("kill", "SIGKILL"), ("stop", "SIGSTOP, and SIGCONT after a while"), ("partition", "hosts do not hear each other")):
        parser.add_argument(f"--{kind}", action="store_true", help=f"{what}; without any of the three, all of them")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="where logs and state go (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def kinds_of(chosen: argparse.Namespace) -> list[Kind]:
    """Those that were asked for; all where none was."""
    return [kind for kind in KINDS if getattr(chosen, kind)] or list(KINDS)


def command_of(chosen: argparse.Namespace, kinds: list[Kind]) -> str:
    """What replays the run: the same faults at the same times. What the processes make of them is up to the machine."""
    flags = [] if len(kinds) == len(KINDS) else [f"--{kind}" for kind in kinds]
    given = f"--seconds {chosen.seconds:g} --seed {chosen.seed} --every {chosen.every:g} --agents {chosen.agents}"
    return " ".join(["python scripts/chaos.py", given, *flags])


def hosts_for(kinds: list[Kind]) -> tuple[Network | OneMachine, list[Kind], str]:
    """The hosts, the kinds of fault that are possible on them, and why not all, if so."""
    try:
        return Network(HOSTS), kinds, ""
    except Unable as error:
        return OneMachine(HOSTS), [kind for kind in kinds if kind != "partition"], f"no partitions: {error}"


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "-"
        if name not in ("broken", "story"):
            print(f"{name:26} {value}")
    print("\nevery promise holds" if not report["broken"] else "\nBROKEN\n  " + "\n  ".join(report["broken"]))


def run(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Make the hosts, draw the plan, run; the report."""

    def say(line: str) -> None:
        if not chosen.json:
            print(line, flush=True)

    network, kinds, unable = hosts_for(kinds_of(chosen))
    if not kinds:
        parser.error(unable)
    try:
        names = list(places(chosen.agents, network.hosts))
        if not (plan := draw_plan(chosen.seed, chosen.seconds, chosen.every, kinds, names, list(MANAGERS), network.hosts)):
            parser.error(f"no fault is drawn within {chosen.seconds:g} seconds: ask for more, or for more often")
        say("\n".join([command_of(chosen, kinds), hardware(), *([unable] if unable else []), *map(str, plan)]))
        for part in PARTS:
            shutil.rmtree(chosen.out / part, ignore_errors=True)
        if isinstance(network, Network):
            enter(network.switch)  # from where no fault of a host's hides another
        chaos = ChaosRun(Options(chosen.seed, chosen.agents, tuple(plan)), network, chosen.out, say)
        report = asyncio.run(both(chaos))
    finally:
        network.close()
    told = {"seed": chosen.seed, "seconds": chosen.seconds, "partitions": unable or "possible"}
    return told | report | {"story": chaos.story, "command": command_of(chosen, kinds)}


async def both(chaos: ChaosRun) -> dict[str, Any]:
    """The run with the faults and the one without; what follows."""
    seen = await chaos.disturbed()
    return judge(seen, await chaos.undisturbed(seen.rounds) if seen.rounds else {})


def main() -> int:
    """Parse, run, print; the exit code."""
    parser = arguments()
    chosen = parser.parse_args()
    if not 0 < chosen.seconds < inf or not 0 < chosen.every < inf or chosen.agents < AGENTS_MIN:
        parser.error(f"--seconds and --every are above 0 and finite, --agents is at least {AGENTS_MIN}")
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out is a folder: {error}")
    logging.disable(logging.WARNING)  # a daemon that does not answer is no news here
    # Also in the background of a shell. Both as SIGINT, which asyncio hands to the run at an await: what is begun comes into its books.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        report = run(chosen, parser)
    except ClusterError as error:
        print(f"error: {error}; the logs are in {chosen.out}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        print(json.dumps({name: value for name, value in report.items() if name != "story"}))
    else:
        show(report)
    if report["broken"]:
        told = ["", f"seed {chosen.seed}, and what was done:", *report["story"], "", f"to replay it: {report['command']}"]
        print("\n".join(told), file=sys.stderr)
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
