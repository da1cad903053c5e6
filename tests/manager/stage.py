"""A root on a stage: the tests say what its tree hears, and read the orders that it gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from fmrec_manager.orders import Aggregate, Announce, Ask, Commit, Order, Recover, Say
from fmrec_manager.plan import Plan, Resumed
from fmrec_manager.root import Root
from fmrec_manager.round import Terms
from protocol.identifiers import NodeId, Peer, agent_id, tree_id
from protocol.overlay.effects import ElectorAnswered, RetrievalEnded
from protocol.wire.messages import Phase, RecoveryMode
from protocol.wire.values import Departed, MemberInfo, RecordSummary

SOURCES = ("a", "b", "c")
MODES: tuple[RecoveryMode, ...] = ("exact", "substitute", "drop")
TREE = tree_id("main", "t")
TERMS = Terms("exact", deadline_s=30.0, exact_wait_s=600.0, quorum=1.0, staleness_max=2, staleness_discount=0.5)
PLAN = Plan(
    rounds=2, sources_min=3, targets_min=0, adapt=True, terms=TERMS, orphan_max_s=3.0, ask_timeout_s=2.0, silence_max_s=0.8,
    electors_max=12, answer_max_s=0.5,
)  # fmt: skip
TRANSFER_S = 0.5
FIGURES = {"loss": 0.25, "rmse_pp": 7.0}


def plan(mode: RecoveryMode = "exact", **changes: Any) -> Plan:
    terms = {key: changes.pop(key) for key in list(changes) if hasattr(TERMS, key)}
    return replace(PLAN, terms=replace(TERMS, mode=mode, **terms), **changes)


def named(name: str) -> NodeId:
    return agent_id("c", name)


def info(name: str, incarnation: int = 1) -> MemberInfo:
    """A member; names that begin with t are targets."""
    return MemberInfo(Peer(named(name), "127.0.0.1", 7710, incarnation), name, "target" if name.startswith("t") else "source", 1)


def record(name: str, number: int, version: int = 1, *, complete: bool = True) -> RecordSummary:
    digest = sha256(f"{name}/{number}/{version}/{complete}".encode()).digest()
    return RecordSummary(named(name), TREE, version, 1, number, 100, complete, 1000, digest)


def resumed(number: int, *names: str, version: int = 4) -> Resumed:
    """What the record of an earlier life of the manager says."""
    return Resumed(version, 1, number, (0.9,) * number, tuple(info(name) for name in names))


@dataclass
class Stage:
    """`now` only grows. Every order is kept, and what the daemon would do itself is done: sealing is instant, all else is told."""

    root: Root
    now: float = 0.0
    orders: list[Order] = field(default_factory=list)
    durable: set[int] = field(default_factory=set)
    votes: dict[int, dict[NodeId, str]] = field(default_factory=lambda: defaultdict(dict))
    """What each elector that was asked about a version has said last."""
    loyal: bool = True
    """Do electors agree to whatever they are asked, at once?"""

    def took(self, orders: Iterable[Order]) -> list[Order]:
        """Keep the orders, check promise P6 on each, and seal what is to be committed."""
        given = list(orders)
        for order in given:
            if isinstance(order, Announce) and order.phase in ("train", "adapt", "done"):
                assert self.root.version in self.durable, f"{order} before version {self.root.version} is durable"
                assert self.agreed(self.root.version), f"{order} before the electors agree to version {self.root.version}"
                assert order.round == self.root.next_round
        self.orders += given
        for order in given:
            if isinstance(order, Commit):
                given += self.took(self.root.sealed(order.version, TRANSFER_S, self.now))
            elif isinstance(order, Ask):
                for elector in order.electors:
                    self.votes[order.version].setdefault(elector.id, "silent")
                for elector in order.electors if self.loyal else ():
                    given += self.elector(elector.id, "granted", order.version)
        return given

    def elector(self, who: NodeId, answer: Any, question: int, **facts: Any) -> list[Order]:
        """One elector's word on the version that was put to it; facts: what else it says; without, it remembers the version before."""
        self.votes[question][who] = answer
        facts = {"version": max(question, self.root.version) - 1, "remembers": True} | facts
        return self.took(self.root.elector_answered(ElectorAnswered(question, who, answer, **facts), question, self.now))

    def agreed(self, version: int) -> bool:
        """Have more than half of those asked, who live, said yes?"""
        answers = [answer for answer in self.votes[version].values() if answer != "gone"]
        return not answers or 2 * answers.count("granted") > len(answers)

    # --- what is heard ---

    def joins(self, *names: str, incarnation: int = 1) -> list[Order]:
        return self.took(self.root.members_changed([info(name, incarnation) for name in names], [], self.now))

    def goes(self, *names: str, cause: Any = "died", incarnation: int = 1, reason: str = "connection refused") -> list[Order]:
        gone = [Departed(named(name), incarnation, cause, reason, 0, 100) for name in names]
        return self.took(self.root.members_changed([], gone, self.now))

    def uploads(self, name: str, number: int, phase: Phase = "train", version: int = 1, **facts: Any) -> str | None:
        refused, orders = self.root.uploaded(record(name, number, version, **facts), phase, FIGURES, self.now)
        self.took(orders)
        return refused

    def retrieved(self, request: int, found: RecordSummary | None, figures: Mapping[str, float] = FIGURES) -> list[Order]:
        reason = "" if found is not None else "no live node holds a record of it"
        return self.took(self.root.retrieved(RetrievalEnded(request, found, (), 0.01, 0.02, 1, reason), figures, self.now))

    def never_found(self, request: int) -> list[Order]:
        """Every look for it finds nothing, and it looks as often as it does."""
        given = self.retrieved(request, None)
        while any(r.number == request and r.outcome == "running" for r in self.root.recoveries):
            self.until_due()
            given += self.retrieved(request, None)
        return given

    def located(self, found: Resumed | None = None, certain: bool = True) -> list[Order]:
        """What was found is brought to the leaf set at once, as it mostly is there already."""
        given = self.took(self.root.located(found, certain, self.now))
        return given + self.is_durable() if found is not None and self.root.stage == "committing" else given

    def aggregated(self) -> list[Order]:
        assert self.root.stage == "aggregating"
        return self.took(self.root.aggregated(0.5, self.now))

    def is_durable(self, version: int | None = None) -> list[Order]:
        version = self.root.version if version is None else version
        self.durable.add(version)
        return self.took(self.root.durable(version, self.now))

    def until_due(self) -> list[Order]:
        """To the next deadline."""
        due = self.root.next_deadline(self.now)
        assert due is not None, f"nobody will ever tick: {self.root.stage}, {self.root.reason}"
        self.now = max(self.now, due)
        return self.took(self.root.tick(self.now))

    def after(self, seconds: float) -> list[Order]:
        """Time passes, every deadline in it is kept."""
        end, given = self.now + seconds, []
        while (due := self.root.next_deadline(self.now)) is not None and due <= end:
            given += self.until_due()
        self.now = end
        return given

    # --- whole passages ---

    def begins(self, *names: str) -> None:
        """First start, to the opening of round 0."""
        self.took(self.root.start(self.now))
        self.located()
        self.joins(*names)
        self.located()
        asked = self.last(Announce).asked
        assert self.uploads(next(name for name in names if named(name) == asked), 0, "init") is None
        self.is_durable()

    def closes(self, number: int, *names: str) -> None:
        """All of these upload; the round is folded in and committed."""
        for name in names:
            assert self.uploads(name, number, version=number + 2) is None
        self.aggregated()
        self.is_durable()

    # --- what was ordered ---

    def last(self, kind: type[Any]) -> Any:
        return [order for order in self.orders if isinstance(order, kind)][-1]

    def story(self) -> list[str]:
        """The announcements and foldings, in order."""
        told = []
        for order in self.orders:
            if isinstance(order, Announce):
                told.append(f"{order.phase} {order.round}")
            elif isinstance(order, Aggregate):
                told.append(f"aggregate {order.round} of {len(order.slots)}")
        return told

    def said(self, fact: str) -> list[Mapping[str, object]]:
        return [order.details for order in self.orders if isinstance(order, Say) and order.fact == fact]

    def recovers(self) -> list[NodeId]:
        return [order.agent for order in self.orders if isinstance(order, Recover)]


def stage(mode: RecoveryMode = "exact", **changes: Any) -> Stage:
    return Stage(Root(TREE, plan(mode, **changes)))
