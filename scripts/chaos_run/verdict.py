"""The verdict on a run: every promise that can be checked from outside, and the figures of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.chaos_run import promises
from scripts.chaos_run.promises import Life, Sample, Thetas

MANAGER_NODES = 3
"""Of two processes: one has taken over and is the standby that it was and the tree's root, the other was started again as a standby."""
NODES_MAX = {"agent": 1, "manager": 2, "launcher": 0}
"""By role, of one process."""
ROUNDS_SAID = 5
LINKS_USED = 2
"""With each peer at most, once all is calm: what each side sends on. The pool parts with the others."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was seen of a run.

    owners: the digest of all agents' ids. faults: their kinds. stuck: why it did not go on, if so. manager_logs: as they were before all
    left. warm: samples before the first fault. calm_s: when everybody was back, in the time of the samples. strays: processes that nobody
    knows; late: those that did not leave in order.
    """

    agents: int
    owners: str
    faults: tuple[str, ...]
    healed_s: float | None
    stuck: str | None
    manager_logs: Mapping[str, str]
    logs: Mapping[str, str]
    lives: Mapping[str, tuple[Life, ...]]
    thetas: Thetas
    warm: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    calm_s: float
    strays: tuple[int, ...]
    late: tuple[str, ...]
    odd_ends: tuple[str, ...]

    @property
    def all_thetas(self) -> Thetas:
        """Of every round: what was committed, and what was seen."""
        return promises.thetas_of(promises.commits(self.manager_logs), self.thetas)

    @property
    def rounds(self) -> int:
        """The last that was opened, whether somebody looked then or not."""
        return max(self.all_thetas, default=0)


def judge(seen: Seen, undisturbed: Thetas) -> dict[str, Any]:
    """The figures, and under `broken` each promise that does not hold, in a sentence that begins with its number."""
    stuck = [seen.stuck] if seen.stuck is not None else []
    told = promises.commits(seen.manager_logs)
    logs = seen.manager_logs.values()
    twice = promises.rounds_again(told) + promises.contributions_again(logs, seen.agents, seen.owners)
    twice += promises.aggregated_by_nobody(told, logs)
    back = promises.rounds_lost(told)
    lost = promises.durable_lost(seen.lives, promises.deaths(seen.logs.values()))
    thetas = seen.all_thetas
    differ = promises.thetas_differ(thetas, undisturbed)
    if unseen := sorted(thetas.keys() - undisturbed.keys()):
        some = ", ".join(map(str, unseen[:ROUNDS_SAID])) + (", ..." if len(unseen) > ROUNDS_SAID else "")
        differ.append(f"not shown: theta of {len(unseen)} of {len(thetas)} rounds is not compared, the undisturbed run had none: {some}")
    if not seen.faults:
        stuck.append("no fault struck: nothing is shown")
    peers = seen.agents + MANAGER_NODES - 1  # of each node
    pools = {role: LINKS_USED * nodes * peers for role, nodes in NODES_MAX.items()}
    kept = promises.descriptors_left(promises.least_since(seen.samples, seen.calm_s), seen.warm, pools)
    troubles = promises.troubles(seen.logs) + list(seen.odd_ends)
    strays = [f"process {pid} is nobody's" for pid in seen.strays] + [f"{name} did not leave in order" for name in seen.late]
    grown = promises.growths(seen.samples)
    growth = promises.growth_pct(grown)
    found = {"P1": twice, "P2": lost, "P5": differ, "P6": back, "P8": [*kept, *strays, *promises.memory_grown(grown), *troubles]}
    return {
        "agents": seen.agents,
        "faults": len(seen.faults),
        "faults_by_kind": dict(sorted(Counter(seen.faults).items())),
        "lives": sum(len(lives) for lives in seen.lives.values()),
        "takeovers": sum(log.count("this standby takes over") for log in logs),
        "healed_s": seen.healed_s,
        "rounds": seen.rounds,
        "rounds_lost": len(back),
        "durable_lost": len(lost),
        "double_contributions": len(twice),
        "theta_equal": not differ,
        "thetas_compared": len(thetas.keys() & undisturbed.keys()),
        "leaked_processes": len(strays),
        "leaked_fds": len(kept),
        "memory_growth_pct": max((pct for pct, _ in growth.values()), default=None),
        "memory_slope_mb_a_minute": max((round(life.mb_a_minute, 2) for life in grown), default=None),
        "memory_growth_by_role_pct": {role: pct for role, (pct, _) in growth.items()},
        "troubles": len(troubles),
        "broken": stuck + [f"{number}: {sentence}" for number, sentences in found.items() for sentence in sentences],
    }
