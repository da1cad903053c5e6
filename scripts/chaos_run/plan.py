"""The faults of a run, drawn from its seed before anything happens: the same seed and options give the same plan on every machine.

Faults come as a Poisson process, one each `every_s` seconds on average. Each has a kind, drawn among those that are asked for:

    kill         SIGKILL to one process; whoever started it starts it again
    stop         SIGSTOP, and SIGCONT after a drawn time
    partition    hosts that do not hear each other for a drawn time: one cut off, two halves, or one deaf to another

A victim is a manager with a chance of MANAGER_SHARE, else any agent. Partitions do not overlap, for one would heal what another cut; where
one would, another kind is drawn, or nothing happens where no other is asked for. Times are seconds from the beginning of the faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal["kill", "stop", "partition"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "partition")
MANAGER_SHARE = 0.15
STOP_MIN_S, STOP_MAX_S = 0.1, 5.0
"""On both sides of the silence that is death (about 1.3 s with the preset loopback)."""
PARTITION_MIN_S, PARTITION_MAX_S = 0.5, 6.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. victim: a process's name; of a partition, what it is in words. cuts: (host, source): the host does not hear the source."""

    at_s: float
    kind: Kind
    victim: str
    lasts_s: float = 0.0
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def ends_s(self) -> float:
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.2f} s" if self.lasts_s else ""
        return f"{self.at_s:7.2f} s  {self.kind:9} {self.victim}{lasts}"


def draw_plan(
    seed: int, seconds: float, every_s: float, kinds: Sequence[Kind], agents: Sequence[str], managers: Sequence[str], hosts: Sequence[int]
) -> list[Fault]:
    """The faults of `seconds` seconds, in the order of their times. ValueError where there is nothing to draw from."""
    if not kinds or not agents or not managers:
        raise ValueError("a plan needs a kind of fault, an agent and a manager")
    if "partition" in kinds and len(hosts) < 2:
        raise ValueError("a partition needs two hosts")
    rng = Random(f"chaos {seed}")
    found: list[Fault] = []
    at_s, parted_until_s = 0.0, 0.0
    while (at_s := at_s + rng.expovariate(1 / every_s)) < seconds:
        possible = [kind for kind in kinds if kind != "partition" or at_s > parted_until_s]
        if not possible:
            continue
        kind = rng.choice(possible)
        if kind == "partition":
            found.append(_partition(rng, at_s, hosts))
            parted_until_s = found[-1].ends_s
            continue
        victim = rng.choice(managers if rng.random() < MANAGER_SHARE else agents)
        # Short ones as often as long ones of ten times the length.
        lasts_s = STOP_MIN_S * (STOP_MAX_S / STOP_MIN_S) ** rng.random() if kind == "stop" else 0.0
        found.append(Fault(at_s, kind, victim, lasts_s))
    return found


def _partition(rng: Random, at_s: float, hosts: Sequence[int]) -> Fault:
    lasts_s = rng.uniform(PARTITION_MIN_S, PARTITION_MAX_S)
    shape = rng.choice(("cut off", "halves", "deaf"))
    if shape == "deaf":
        host, source = rng.sample(list(hosts), 2)
        return Fault(at_s, "partition", f"host {host} does not hear host {source}", lasts_s, ((host, source),))
    smaller = 1 if shape == "cut off" else len(hosts) // 2
    here = sorted(rng.sample(list(hosts), smaller))
    there = [host for host in hosts if host not in here]
    cuts = tuple(cut for one in here for other in there for cut in ((one, other), (other, one)))
    words = [" and ".join(map(str, side)) for side in (here, there)]
    return Fault(at_s, "partition", f"hosts {words[0]} from hosts {words[1]}", lasts_s, cuts)
