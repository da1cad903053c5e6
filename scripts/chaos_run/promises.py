"""What was seen of a run from outside, judged: pure functions over plain values (DESIGN 2).

    P1  each committed round was aggregated from one contribution an agent, and committed once
    P2  a later life of an agent goes on from a version that is no older than the last that an earlier life called durable, as that said
        itself, or its launcher at its death
    P4  after the last fault the tree covers everybody again, without a cycle, within a bound; the ring is whole
    P5  theta of every round that was committed or seen equals the undisturbed run's, bit for bit
    P6  versions and rounds only grow, over all managers: no committed round is done again, none is missing
    P8  rounds go on after the last fault; and nothing is left over: processes, descriptors, memory

P3 is judged where every message can be seen, in the simulator; P7 by the tests that send malformed ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

AGGREGATES = re.compile(r"aggregates round=(\d+) contributions=(\d+)(?: owners=(\w+))?")
COMMITTED = re.compile(r"(committed|goes_on) round=(\d+) version=(\d+).* theta=(\w+)")
DIED = re.compile(r"(\S+) \(pid (\d+)\) .*, version (\d+) durable;")
THETA_DIGITS = 16
"""Of a digest, as a manager's log has it."""
TROUBLE = re.compile(r"Traceback|this is a mistake in FMRec|died \d+ times within a minute| ERROR ")
GROWTH_MAX_PCT, LIVES_MIN = 10.0, 3
"""What the median process of a role may grow from the second quarter of its life to the last, and of how many this can be said. A tenth
within a minute and a half would double a process in a quarter of an hour; the one run so far that left files aside told of 2 %."""
SLOPE_MAX_MB, LEAKS_MIN, LONG_S = 2.0, 2, 600.0
"""What any process may grow by in a minute after its youth. More is held against its role where two lives of that role do it, or one of
ten minutes: a single short life may have its reasons."""
SPARE_DESCRIPTORS = 4
"""What a process may hold beyond what any of its role did before the first fault, when the ring was young."""
SPAN_MIN_S = 120.0
"""Growth is told of processes that were seen for so long. In the first quarter of that they grow to their size, on a busy machine, too."""


@dataclass(slots=True)
class Life:
    """One life of an agent as it was seen: what it began from, and what it has called durable. Versions are 0 for none."""

    incarnation: int
    began_from: int = 0
    worked: bool = False
    """Has it made a version of its own? Until then it may still be looking for what an earlier life knew."""
    durable: int = 0
    last_s: float = 0.0
    pid: int = 0

    def see(self, status: Mapping[str, Any], now_s: float) -> None:
        """A status document of this life."""
        self.last_s, self.pid = now_s, status["pid"]
        self.durable = max(self.durable, status["durable_version"])
        if self.worked:
            return  # what it finds now comes too late
        if status["resumed_from"] is not None:
            self.began_from = status["resumed_from"]["version"]
        self.worked = status["version"] > self.began_from


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time. connections: of its descriptors, the sockets whose connection is established; others: all the rest; what:
    these by kind, in words. pss_mb: of its memory without files, whose pages cost it more when others that share them die."""

    name: str
    pid: int
    at_s: float
    connections: int
    others: int
    pss_mb: float
    what: str = ""


@dataclass(frozen=True, slots=True)
class Growth:
    """One process that was seen for span_s: its PSS in the second quarter of that and in the last, whose middles are apart_s apart."""

    name: str
    span_s: float
    second_mb: float
    last_mb: float
    apart_s: float

    @property
    def pct(self) -> float:
        return 100 * (self.last_mb / self.second_mb - 1)

    @property
    def mb_a_minute(self) -> float:
        return (self.last_mb - self.second_mb) / (self.apart_s / 60)


@dataclass(frozen=True, slots=True)
class Commit:
    """A line of a manager's log. again: a version written anew by a manager that took over or started again."""

    manager: str
    round: int
    version: int
    again: bool
    theta: str


Thetas = Mapping[int, Collection[str]]
"""The digests of the theta that each round was opened with, as any manager ever said."""


# --- rounds -----------------------------------------------------------------------------------------------------------


def commits(logs: Mapping[str, str]) -> list[Commit]:
    """What the managers say they have committed, by version."""
    found = [
        Commit(manager, int(match[2]), int(match[3]), match[1] == "goes_on", match[4])
        for manager, log in logs.items()
        for match in COMMITTED.finditer(log)
    ]
    return sorted(found, key=lambda commit: commit.version)


def rounds_again(told: Sequence[Commit]) -> list[str]:
    """Rounds and versions that were committed twice (P1, P6)."""
    versions = Counter(commit.version for commit in told)
    rounds = Counter(commit.round for commit in told if not commit.again)
    twice = [f"version {version} was committed {count} times" for version, count in versions.items() if count > 1]
    return twice + [f"round {number} was committed {count} times" for number, count in rounds.items() if count > 1]


def rounds_lost(told: Sequence[Commit]) -> list[str]:
    """Where a later version is of an earlier round, or a round is passed over (P6)."""
    steps = [(before, after) for before, after in pairwise(told) if not 0 <= after.round - before.round <= 1]
    return [
        f"version {after.version} is of round {after.round} ({after.manager}), and version {before.version} was of round {before.round}"
        for before, after in steps
    ]


def contributions_again(logs: Iterable[str], agents: int, owners: str) -> list[str]:
    """Aggregates of other contributions than one of each agent: all have one, in mode exact (P1). owners: the digest of all agents."""
    found = [(int(match[1]), int(match[2]), match[3]) for log in logs for match in AGGREGATES.finditer(log)]
    wrong = [f"round {n} was aggregated from {count} contributions of {agents} agents" for n, count, _ in found if count != agents]
    others = [n for n, count, told in found if count == agents and told != owners]
    return wrong + [f"round {n} was aggregated from one agent twice, or from a stranger" for n in others]


def aggregated_by_nobody(told: Sequence[Commit], logs: Iterable[str]) -> list[str]:
    """Committed rounds of whose making no manager told: nothing could be said of their contributions (P1)."""
    made = {int(match[1]) + 1 for log in logs for match in AGGREGATES.finditer(log)}
    return [f"nobody told how round {n} was made" for n in sorted({commit.round for commit in told if not commit.again} - made - {0})]


def thetas_of(told: Iterable[Commit], seen: Thetas) -> dict[int, set[str]]:
    """By round: what was committed, whether somebody looked just then or not, and what was seen."""
    thetas = {number: set(digests) for number, digests in seen.items()}
    for commit in told:
        thetas.setdefault(commit.round, set()).add(commit.theta)
    return thetas


def thetas_differ(seen: Thetas, undisturbed: Thetas) -> list[str]:
    """Rounds that began from a theta that the undisturbed run did not have, or from two (P5)."""
    wrong = [n for n, digests in sorted(seen.items()) if len(digests) > 1 or not set(digests) <= set(undisturbed.get(n, digests))]
    return [f"theta of round {number}: {', '.join(sorted(d[:12] for d in seen[number]))}" for number in wrong]


# --- records ----------------------------------------------------------------------------------------------------------


def deaths(logs: Iterable[str]) -> dict[str, dict[int, int]]:
    """By agent and pid: which version was durable when that life ended, as its launcher says."""
    found: dict[str, dict[int, int]] = {}
    for log in logs:
        for match in DIED.finditer(log):
            found.setdefault(match[1], {})[int(match[2])] = int(match[3])
    return found


def durable_lost(lives: Mapping[str, Iterable[Life]], died: Mapping[str, Mapping[int, int]]) -> list[str]:
    """Agents whose later life began from an older version than an earlier one had called durable (P2). died: deaths()."""
    lost = []
    for name, told in sorted(lives.items()):
        durable = 0
        ends = died.get(name, {})
        for life in sorted(told, key=lambda life: life.incarnation):
            if life.worked and life.began_from < durable:
                lost.append(f"{name} began from version {life.began_from} at {life.last_s:.1f} s, and version {durable} was durable")
            durable = max(durable, life.durable, ends.get(life.pid, 0))
    return lost


# --- the tree and the ring --------------------------------------------------------------------------------------------


def unhealed(tree: Mapping[str, Any] | None, agents: Mapping[str, Mapping[str, Any] | None], neighbours: int) -> str | None:
    """Why the tree or the ring is not whole, None where it is (P4). neighbours: that everybody must have."""
    if tree is None:
        return "no manager roots the tree"
    alive = {member["name"] for member in tree["members"] if member["state"] == "alive"}
    if missing := sorted(agents.keys() - alive):
        return f"the manager misses {', '.join(missing)}"
    answered = {name: agent for name, agent in agents.items() if agent is not None}
    if missing := sorted(agents.keys() - answered.keys()):
        return f"no answer from {', '.join(missing)}"
    few = sorted(name for name, agent in answered.items() if not agent["in_ring"] or agent["neighbours"] < neighbours)
    if few:
        return f"fewer than {neighbours} neighbours: {', '.join(few)}"
    parents = {agent["address"]: agent["parent"].partition("@")[2] if agent["parent"] else None for agent in answered.values()}
    for name, agent in answered.items():
        if (wrong := _no_way_up(agent["address"], parents)) is not None:
            return f"{name} {wrong}"
    return None


class Steady:
    """A reason why not, gone only when for_s seconds have passed without any: a dead one may not have been missed yet."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self.since_s: float | None = None
        """When the time without a reason began."""

    def look(self, why_not: str | None, now_s: float) -> str | None:
        """The reason as of now."""
        if why_not is not None:
            self.since_s = None
            return why_not
        self.since_s = now_s if self.since_s is None else self.since_s
        steady_s = now_s - self.since_s
        return None if steady_s >= self._for_s else f"whole for {steady_s:.1f} s only"


def _no_way_up(address: str, parents: Mapping[str, str | None]) -> str | None:
    """Why the way up from this agent does not end outside of the agents, at the manager."""
    passed = {address}
    while address in parents:
        above = parents[address]
        if above is None:
            return "hangs in the tree without a parent"
        if above in passed:
            return "is below itself in the tree"
        passed.add(above)
        address = above
    return None


# --- what is left over ------------------------------------------------------------------------------------------------


def role_of(name: str) -> str:
    """manager, launcher or agent."""
    word = name.partition("-")[0]
    return word if word in ("manager", "launcher") else "agent"


def descriptors_left(ends: Iterable[Sample], warm: Iterable[Sample], pools: Mapping[str, int]) -> list[str]:
    """Processes that at the end hold more connections than the pool of their role may, and any of their role did before the first fault;
    or more of anything else than those, and SPARE_DESCRIPTORS."""
    most: dict[str, tuple[int, int]] = {}
    for sample in warm:
        connections, others = most.get(role_of(sample.name), (0, 0))
        most[role_of(sample.name)] = max(connections, sample.connections), max(others, sample.others)
    found = []
    for sample in ends:
        connections, others = most[role_of(sample.name)]
        connections_max = max(connections, pools[role_of(sample.name)])
        limits = ("connections", sample.connections, connections_max), ("other descriptors", sample.others, others + SPARE_DESCRIPTORS)
        for what, count, limit in limits:
            if count > limit:
                kinds = f" ({sample.what})" if sample.what else ""
                found.append(f"{sample.name} (pid {sample.pid}) holds {count} {what}, where {limit} are the most{kinds}")
    return found


def least_since(samples: Iterable[Sample], since_s: float) -> list[Sample]:
    """Of each process that lived to the end, the least that it held in any look since then: what is under way comes and goes."""
    last_pid: dict[str, int] = {}
    looks: dict[tuple[str, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.at_s):
        last_pid[sample.name] = sample.pid
        if sample.at_s >= since_s:
            looks.setdefault((sample.name, sample.pid), []).append(sample)
    found = []
    for (name, pid), seen in looks.items():
        if last_pid[name] == pid:
            least = min(seen, key=lambda sample: sample.others)
            found.append(replace(seen[-1], connections=min(s.connections for s in seen), others=least.others, what=least.what))
    return found


def growths(samples: Iterable[Sample]) -> list[Growth]:
    """How each process grew from the second quarter of the time in which it was seen to the last.

    Of those that were seen for SPAN_MIN_S; each quarter is its median: whether a sibling that shares pages lives just then does not count.
    """
    lives: dict[tuple[str, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.at_s):
        lives.setdefault((sample.name, sample.pid), []).append(sample)
    grown = []
    for (name, _), seen in sorted(lives.items()):
        began_s, span_s = seen[0].at_s, seen[-1].at_s - seen[0].at_s
        if span_s < SPAN_MIN_S:
            continue
        second = [sample for sample in seen if 0.25 <= (sample.at_s - began_s) / span_s < 0.5]
        last = [sample for sample in seen if (sample.at_s - began_s) / span_s >= 0.75]
        if second:
            apart_s = median(s.at_s for s in last) - median(s.at_s for s in second)
            grown.append(Growth(name, span_s, median(s.pss_mb for s in second), median(s.pss_mb for s in last), apart_s))
    return grown


def growth_pct(grown: Iterable[Growth]) -> dict[str, tuple[float, int]]:
    """By role, what the median process grew by, in % of its PSS, and of how many processes that is."""
    by_role: dict[str, list[float]] = {}
    for life in grown:
        by_role.setdefault(role_of(life.name), []).append(life.pct)
    return {role: (round(median(values), 2), len(values)) for role, values in sorted(by_role.items())}


def memory_grown(grown: Sequence[Growth]) -> list[str]:
    """Roles whose median process goes on growing, and those of which some do, be they few (P8)."""
    found = [
        f"the median {role} of {lives} that were seen for {SPAN_MIN_S:.0f} s grew by {pct} %, where {GROWTH_MAX_PCT:g} are the most"
        for role, (pct, lives) in growth_pct(grown).items()
        if pct > GROWTH_MAX_PCT and lives >= LIVES_MIN
    ]
    leaking: dict[str, list[Growth]] = {}
    for life in grown:
        if life.mb_a_minute > SLOPE_MAX_MB:
            leaking.setdefault(role_of(life.name), []).append(life)
    for role, lives in leaking.items():
        if len(lives) >= LEAKS_MIN or any(life.span_s >= LONG_S for life in lives):
            told = ", ".join(f"{life.name} by {life.mb_a_minute:.1f}" for life in sorted(lives, key=lambda life: -life.mb_a_minute))
            found.append(f"{role}s grow, MB a minute, where {SLOPE_MAX_MB:g} are the most: {told}")
    return found


def troubles(logs: Mapping[str, str]) -> list[str]:
    """Lines that no fault of the world excuses: a traceback, an error, an agent given up."""
    return [f"{name}: {line}" for name, log in logs.items() for line in log.splitlines() if TROUBLE.search(line)]
