"""One round: who is expected, who has contributed, and when it may be closed.

`judge` is a pure function of the facts; every verdict has a reason. A slot is filled once (promise P1): by the agent's upload, by a replica
that holds the finished contribution, or, in mode substitute, by an older one at a discount; whichever comes first for the round
itself, while a substitute yields to the real one until the round closes.

    mode        a dead agent's slot                                   at the deadline
    exact       its replica for this round, else its restart          waits, up to exact_wait_s; then the tree halts
    substitute  its newest replica, discounted by rounds behind       closes with a quorum; the late one's replica stands in
    drop        given up                                              closes with a quorum

Whatever the mode, a round of training with fewer contributions than its aggregation needs (aggregation_rule.py) is not closed: the tree
halts and says so, for a weaker aggregate would let through what the rule was chosen to keep out. It goes on when the late ones come, or
more agents do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from protocol.identifiers import NodeId
from protocol.wire.messages import Phase, RecoveryMode
from protocol.wire.values import RecordSummary

Standing = Literal["alive", "suspect", "dead", "left"]
Verdict = Literal["wait", "recover", "close", "halt"]
Way = Literal["upload", "replica", "substitute"]
TOLD_MAX = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """One agent's contribution to one round. factor: 1 for this round's own, less for a substitute."""

    record: RecordSummary
    factor: float
    way: Way


@dataclass(frozen=True, slots=True)
class Terms:
    """What a round asks for; times in seconds from its opening."""

    mode: RecoveryMode
    deadline_s: float
    exact_wait_s: float
    quorum: float
    staleness_max: int
    staleness_discount: float
    learn_quantile: float = 0.9
    learn_factor: float = 0.0
    """0: the deadline is fixed; else it is learnt (arrivals.py), with deadline_s as the longest."""
    deadline_min_s: float = 0.0
    """The shortest that is learnt: noticing a silent agent and looking up its record must end within a round."""
    contributions_min: int = 1
    """Fewer than this are never aggregated in a round of training: what `rule` promises does not hold for them."""
    rule: str = "the weighted mean"


@dataclass(slots=True)
class Round:
    """One round under way. `missing` maps those given up or found to have nothing, to why."""

    number: int
    phase: Literal["train", "adapt"]
    opened: float
    expected: tuple[NodeId, ...]
    slots: dict[NodeId, Slot] = field(default_factory=dict)
    missing: dict[NodeId, str] = field(default_factory=dict)
    recovering: set[NodeId] = field(default_factory=set)
    """Whose record is being retrieved."""
    tried: set[NodeId] = field(default_factory=set)
    """Whose record was retrieved, in its present life, and did not fill the slot."""
    allowed_s: float = inf
    """What was learnt of how long a round takes; inf for nothing."""

    def late_at(self, terms: Terms) -> float:
        """When the deadline passes."""
        return self.opened + min(terms.deadline_s, self.allowed_s)

    def offer(self, agent: NodeId, slot: Slot) -> str | None:
        """Fill the agent's slot. Why not, where it is refused (state is then unchanged)."""
        if agent not in self.expected:
            return f"agent {agent.short} is not expected in round {self.number}"
        held = self.slots.get(agent)
        if held is not None and (held.way != "substitute" or slot.way == "substitute"):
            return f"round {self.number} has a contribution of {agent.short} already, by {held.way}"
        self.slots[agent] = slot
        self.missing.pop(agent, None)
        return None

    def substitute(self, record: RecordSummary, terms: Terms) -> str | None:
        """A retrieved record stands in where it may. Why not, where it may not."""
        if (unfit := why_unfit(record, self.number, self.phase, terms)) is not None:
            return unfit
        behind = self.number - record.round
        return self.offer(record.owner, Slot(record, terms.staleness_discount**behind, "substitute" if behind else "replica"))

    def open_slots(self) -> list[NodeId]:
        """Expected, not contributed, not given up."""
        return [agent for agent in self.expected if agent not in self.slots and agent not in self.missing]


def why_unfit(record: RecordSummary, number: int, phase: Phase, terms: Terms) -> str | None:
    """Why a retrieved record may not stand in for a contribution to this round; None where it may: one of the round itself in any mode
    but drop, an older one only in mode substitute."""
    if not record.complete:
        return f"its newest record (version {record.version}) holds no finished contribution"
    behind = number - record.round
    if behind == 0:
        return None
    if terms.mode != "substitute" or phase != "train":
        return f"its newest contribution is {behind} rounds behind"
    if not 0 < behind <= terms.staleness_max:
        return f"its newest contribution is {behind} rounds behind, more than staleness_max ({terms.staleness_max})"
    return None


def judge(now: float, work: Round, standing: Mapping[NodeId, Standing], terms: Terms) -> tuple[Verdict, str, tuple[NodeId, ...]]:
    """What to do about the round now: (verdict, reason, whom it is about)."""
    verdict, reason, whom = _judge(now, work, standing, terms)
    needed = terms.contributions_min
    if verdict == "close" and work.phase == "train" and len(work.slots) < needed:
        return "halt", f"{terms.rule} needs {needed} contributions, and there are {len(work.slots)}: start more agents", ()
    return verdict, reason, whom


def _judge(now: float, work: Round, standing: Mapping[NodeId, Standing], terms: Terms) -> tuple[Verdict, str, tuple[NodeId, ...]]:
    waiting = [agent for agent in work.open_slots() if standing.get(agent) != "left"]
    if not waiting:
        if work.slots:
            return "close", f"{len(work.slots)} of {len(work.expected)} contributed", ()
        return "halt", "; ".join(["nobody is left to contribute", *_given_up(work)]), ()
    late = now >= work.late_at(terms)
    gone = [agent for agent in waiting if standing.get(agent, "dead") == "dead"]
    lost = [agent for agent in (waiting if late else gone) if agent not in work.recovering and agent not in work.tried]
    if terms.mode == "drop":
        return _judge_drop(work, waiting, gone, late, terms)
    if lost:
        return "recover", "missed the deadline" if late else "died", tuple(lost)
    if terms.mode == "substitute" and late and not work.recovering & set(waiting):
        return _at_quorum(work, terms)
    if now >= work.opened + terms.exact_wait_s:
        names = ", ".join(agent.short for agent in waiting)
        return "halt", f"waited {terms.exact_wait_s:.0f} s for {names}: restart it under its name", tuple(waiting)
    return "wait", f"{len(waiting)} of {len(work.expected)} are awaited", tuple(waiting)


def _given_up(work: Round) -> list[str]:
    """Why they were given up, and who: the first TOLD_MAX reasons, and so many agents of each."""
    whose: dict[str, list[str]] = {}
    for agent, why in work.missing.items():
        whose.setdefault(why, []).append(agent.short)
    told = [(why, ", ".join(agents[:TOLD_MAX]), len(agents) - TOLD_MAX) for why, agents in whose.items()]
    return [f"{names}{f' and {more} others' if more > 0 else ''}: {why}" for why, names, more in told[:TOLD_MAX]]


def _judge_drop(
    work: Round, waiting: list[NodeId], gone: list[NodeId], late: bool, terms: Terms
) -> tuple[Verdict, str, tuple[NodeId, ...]]:
    """Without recovery: training goes on without the dead at once, a target's adaptation is awaited until the deadline."""
    if late:
        return _at_quorum(work, terms)
    if work.phase == "train" and len(gone) == len(waiting) and work.slots:
        return "close", f"{len(gone)} died and are given up", ()
    return "wait", f"{len(waiting)} of {len(work.expected)} are awaited", tuple(waiting)


def _at_quorum(work: Round, terms: Terms) -> tuple[Verdict, str, tuple[NodeId, ...]]:
    needed = max(1, round(terms.quorum * len(work.expected)))
    if len(work.slots) >= needed or (terms.mode == "drop" and work.slots):
        return "close", f"the deadline has passed with {len(work.slots)} of {len(work.expected)}", ()
    return "halt", f"the deadline has passed with {len(work.slots)} of {needed} needed", ()


def next_deadline(work: Round, now: float, terms: Terms) -> float | None:
    """When judging again may give another verdict though nothing happens."""
    return min((when for when in (work.late_at(terms), work.opened + terms.exact_wait_s) if when > now), default=None)
