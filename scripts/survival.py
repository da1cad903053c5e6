"""Half of all agents die in the same instant: how many of the dead agents' records are left, against what chance alone would leave?

    python scripts/survival.py
    python scripts/survival.py --agents 24 --killed 12 --replicas 3,6 --trials 20 --json

Every agent's record is on k neighbours. A dead agent's record is lost when all of these died with it. Of the N - 1 other agents m - 1 died,
any of them with equal chance, so that is hypergeometric:

    P(lost | owner dead) = C(N - 1 - k, m - 1 - k) / C(N - 1, m - 1)

and m times that are lost in a trial on average. Each trial is a ring of its own, in virtual time, with its own seed. What is found must be
what is left: a record of which a copy lives and which a survivor does not find is a mistake of ours (exit code 1), not chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from math import comb, sqrt
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from protocol.identifiers import agent_id, tree_id  # noqa: E402
from protocol.overlay import effects as fx  # noqa: E402
from protocol.overlay import events as ev  # noqa: E402
from protocol.parameters import loopback  # noqa: E402
from protocol.wire.values import RecordSummary  # noqa: E402
from scripts.simulation.cluster import Cluster, Process  # noqa: E402
from scripts.simulation.terrain import TERRAINS  # noqa: E402

TREE = tree_id("survival", "parking")
RECORD_BYTES = 10_396_000
SETTLE_S = 30.0


def lost_share(agents: int, killed: int, replicas: int) -> float:
    """The chance that a dead agent's record is lost."""
    if killed - 1 < replicas:
        return 0.0
    return comb(agents - 1 - replicas, killed - 1 - replicas) / comb(agents - 1, killed - 1)


@dataclass(frozen=True, slots=True)
class Trial:
    """left: records of the dead of which a copy lives, by the global view; found: those that a survivor has retrieved."""

    dead: int
    left: int
    found: int


def build(seed: int, agents: int, replicas: int) -> Cluster:
    """A ring in which every agent's record is on its k neighbours."""
    parameters = replace(loopback(), replicas=replicas)
    cluster = Cluster(seed, parameters, TERRAINS["loopback"], check_every=997)
    first = cluster.start("agent-0", agent_id(f"survival-{seed}", "agent-0"))
    for index in range(1, agents):
        cluster.start(f"agent-{index}", agent_id(f"survival-{seed}", f"agent-{index}"), [first.peer.address])
        cluster.clock.run(0.02)
    if not cluster.clock.run_until(cluster.view.ring_is_right, SETTLE_S):
        raise RuntimeError(f"seed {seed}: the ring does not come right\n{cluster.story()}")
    for process in cluster.view.living:
        record = RecordSummary(process.peer.id, TREE, 1, 1, 1, 0, True, RECORD_BYTES, bytes(32))
        cluster.transfers.put(process, record)
        cluster.tell(process, ev.Replicate(record))

    def complete() -> bool:
        return all(len(process.node.replication.holders((process.peer.id, TREE))) == replicas for process in cluster.view.living)

    if not cluster.clock.run_until(complete, SETTLE_S):
        raise RuntimeError(f"seed {seed}: not every record has its {replicas} copies\n{cluster.story()}")
    return cluster


def trial(seed: int, agents: int, killed: int, replicas: int) -> Trial:
    """Kill so many in one instant, and look for what they had learnt."""
    cluster = build(seed, agents, replicas)
    victims = Random(seed).sample(list(cluster.view.living), killed)
    for victim in victims:
        cluster.kill(victim)
    keys = [(victim.peer.id, TREE) for victim in victims]
    left = sum(any(key in process.store for process in cluster.view.living) for key in keys)
    asker = cluster.view.living[0]
    for number, key in enumerate(keys):
        cluster.tell(asker, ev.Retrieve(number, *key))
    cluster.clock.run_until(lambda: len(ended(asker)) == killed, SETTLE_S)
    found = sum(effect.record is not None for effect in ended(asker))
    return Trial(killed, left, found)


def ended(process: Process) -> list[fx.RetrievalEnded]:
    return [effect for effect in process.outcome if isinstance(effect, fx.RetrievalEnded)]


def survive(agents: int, killed: int, replicas: int, trials: int, seed: int) -> dict[str, Any]:
    """So many trials, and what the law says of them."""
    outcomes = [trial(seed + number, agents, killed, replicas) for number in range(trials)]
    share, dead = lost_share(agents, killed, replicas), sum(outcome.dead for outcome in outcomes)
    lost = [outcome.dead - outcome.left for outcome in outcomes]
    return {
        "replicas": replicas,
        "trials": trials,
        "dead": dead,
        "survived": dead - sum(lost),
        "found": sum(outcome.found for outcome in outcomes),
        "lost": sum(lost),
        "trials_without_loss": lost.count(0),
        "lost_expected": round(share * dead, 2),
        "lost_deviation": round(sqrt(dead * share * (1 - share)), 2),
        "lost_share_expected": share,
        "no_loss_at_all_chance": round((1 - share) ** dead, 4),
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=24, help="(%(default)s)")
    parser.add_argument("--killed", type=int, default=12, help="in one instant (%(default)s)")
    parser.add_argument("--replicas", default="3,6", help="values of k (%(default)s)")
    parser.add_argument("--trials", type=int, default=20, help="for each k (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first trial (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def main() -> int:
    """Parse, run, print; the exit code."""
    parser = arguments()
    chosen = parser.parse_args()
    try:
        replicas = [int(word) for word in chosen.replicas.split(",")]
    except ValueError:
        parser.error(f"--replicas is 3 or 3,6, not {chosen.replicas!r}")
    if not all(2 <= k <= min(12, chosen.agents - 1) for k in replicas) or not 0 < chosen.killed < chosen.agents or chosen.trials < 1:
        parser.error("--replicas is between 2 and 12 and below --agents, --killed between 1 and that, --trials at least 1")
    results = []
    for k in replicas:
        result = survive(chosen.agents, chosen.killed, k, chosen.trials, chosen.seed)
        results.append(result)
        if not chosen.json:
            print(
                f"k = {k}: of {result['dead']} dead agents' records {result['survived']} survived, {result['found']} were found, "
                f"{result['lost']} were lost; the law expects {result['lost_expected']} +- {result['lost_deviation']} lost "
                f"(each with {result['lost_share_expected']:.4f}); "
                f"{result['trials_without_loss']} of {result['trials']} trials without loss, "
                f"chance of none in all {result['no_loss_at_all_chance']}",
                flush=True,
            )
    if chosen.json:
        print(json.dumps({"agents": chosen.agents, "killed": chosen.killed, "seed": chosen.seed, "results": results}))
    return 0 if all(result["found"] == result["survived"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
