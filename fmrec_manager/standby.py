"""The standby of one tree: when it is to take the place of the root that it watches. It does not fight with one that lives.

1. Each `interval_s` it asks the ring who roots the tree. The root itself answers: it lives, and all is well.
2. Another node answers: the ring has buried the root. It must say so twice, `settle_s` apart: a ring in repair may err for a moment.
3. Nobody answers, or nobody but ourselves: it is we who are cut off, or alone, which looks the same. No verdict follows from that; agents
   that come back find us, and are a ring then.
4. The ring's word is not enough, for there may be two rings. It fetches the tree's record, which names the electors, and sounds them. One
   that hears the root says no. More than half of those who have a say must agree (ballot.py): so on the smaller side of a cut, where
   the root may live on the other, a standby stays one.
5. A tree of which it finds no record and has seen no root is none of its business: somebody is about to start it. Where it has seen the
   root, which had committed nothing yet, and everyone who could hold a record says that there is none, it begins in its place. Where
   something was committed, nobody here has it: on the smaller side of a cut, say. To begin anew would be to lose it. Nor where it has
   heard of a root's term alone: nobody has said what that one has committed.
6. Its term is later than any that it has heard of, whatever its clock says.

    stage       what ends it                                                                              next
    watching    another node answers in the root's place, twice                                           looking
    looking     the record is found, or is certainly none; not certain: watching                          sounding
    sounding    carried: taking; the root answers the ring again, or patience_s passes: watching          taking
    taking      the root's decisions are root.py's from here, until another has taken its place               watching
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fmrec_manager.ballot import Ballot, electors_of
from protocol.identifiers import Peer, TreeId
from protocol.overlay.effects import ElectorAnswered, RootAnswered
from protocol.wire.values import MemberInfo

Stage = Literal["watching", "looking", "sounding", "taking"]


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds; electors_max: how many are asked."""

    interval_s: float
    settle_s: float
    patience_s: float
    electors_max: int


@dataclass(frozen=True, slots=True)
class AskForRoot:
    """Ask the ring who roots the tree. Ends in `Standby.answered`, or never."""


@dataclass(frozen=True, slots=True)
class LookForRecord:
    """Fetch the tree's own record. Ends in `Standby.found`."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Put this term to the electors. Each answer ends in `Standby.heard`."""

    term: int
    electors: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Root the tree, with this term."""

    term: int
    reason: str


LOOKING = "looking for the root"

StandbyOrder = AskForRoot | LookForRecord | Sound | TakeOver


class Standby:
    """The decisions of one tree's standby. Every method takes the time and returns orders; see the module's rules."""

    def __init__(self, tree: TreeId, patience: Patience) -> None:
        self.tree = tree
        self.stage: Stage = "watching"
        self.reason = LOOKING
        self.root: Peer | None = None
        """As last heard."""
        self.term = 0
        """The latest that was heard of."""
        self.version = 0
        """The newest version that the ring has told of."""
        self.ballot: Ballot | None = None
        self._patience = patience
        self._word = ""
        """Of the ring."""
        self._ask_at = 0.0
        self._answered_at: float | None = None
        """When the ring last answered; before that, when it was first asked."""
        self._absent_since: float | None = None
        self._give_up_at: float | None = None

    def roots_it(self) -> None:
        """It need not be watched: its root is in this process already."""
        self.stage, self.reason = "taking", "rooted here"

    def superseded(self, term: int) -> None:
        """The root in this process has another after it, or had, with this term: watch that one."""
        self._watch_on(LOOKING)
        self.root, self._absent_since, self._answered_at = None, None, None
        self.term, self._ask_at = max(self.term, term), 0.0

    def next_deadline(self) -> float | None:
        """When `tick` is wanted."""
        if self.stage == "taking":
            return None
        return self._ask_at if self._give_up_at is None else min(self._ask_at, self._give_up_at)

    def tick(self, now: float) -> list[StandbyOrder]:
        orders: list[StandbyOrder] = []
        if self.stage == "taking":
            return orders
        if self._give_up_at is not None and now >= self._give_up_at:
            self._watch_on(f"{self.reason}; watching on")
        if self._answered_at is None:
            self._answered_at = now
        if self.stage == "watching" and now > self._answered_at + self._patience.patience_s:
            self.reason = "nobody in the ring answers: cut off, or alone"
        if now >= self._ask_at:
            self._ask_at = now + self._patience.interval_s
            orders.append(AskForRoot())
        return orders

    def answered(self, answer: RootAnswered, now: float, *, alone: bool) -> list[StandbyOrder]:
        """The ring's word. alone: is nobody in it but nodes of this process? Then it is none (rule 3)."""
        if alone:
            return []
        self.term, self._answered_at = max(self.term, answer.term), now
        self.version = max(self.version, answer.version)
        if self.stage == "taking":
            return []
        if answer.rooted:
            self.root = answer.peer
            self._watch_on(f"the root at {answer.peer.address} lives")
            self._absent_since = None
            return []
        if self._absent_since is None:
            self._absent_since = now
        if self.stage != "watching" or now < self._absent_since + self._patience.settle_s:
            return []
        where = f"the root at {self.root.address} is gone" if self.root is not None else "nobody roots it"
        self._word = f"{where}, says {answer.peer.id.short}"
        self.stage, self.reason = "looking", f"{self._word}: looking for its record"
        self._give_up_at = now + self._patience.patience_s
        return [LookForRecord()]

    def found(self, members: Iterable[MemberInfo], term: int, certain: bool, now: float, clock: int) -> list[StandbyOrder]:
        """The look for the record has ended. members: those on record; term: of who wrote it, 0 where none was found; certain:
        none was found, and everyone who might hold one was heard. clock: Unix milliseconds, for the term."""
        if self.stage != "looking":
            return []
        self.term = max(self.term, term)
        if not term and not certain:
            self._watch_on("the record of the tree was not found yet: somebody who may hold it has not answered")
            return []
        if not term and self.version:
            self._watch_on(f"version {self.version} of the tree's record was committed, and nobody here has any: start who holds it")
            return []
        if not term and self.root is None:
            remedy = "start who holds it; where nothing was ever committed, a manager without --standby, or name another tree"
            gone = f"a root of term {self.term} was here, and nobody here has its record: {remedy}"
            self._watch_on(gone if self.term else "no manager has begun this tree yet")
            return []
        self.ballot = Ballot(0, {peer.id: peer for peer in electors_of(members, self.tree, self._patience.electors_max)}, binding=False)
        self.term = max(self.term + 1, clock)
        self.stage, self._give_up_at = "sounding", now + self._patience.patience_s
        return [Sound(self.term, tuple(self.ballot.electors.values())), *self._judge()]

    def heard(self, answer: ElectorAnswered, now: float) -> list[StandbyOrder]:
        """One elector's word."""
        if self.ballot is None or self.stage != "sounding":
            return []
        self.ballot.heard(answer)
        return self._judge()

    def _judge(self) -> list[StandbyOrder]:
        assert self.ballot is not None
        verdict, why = self.ballot.judge()
        if verdict == "wait":
            self.reason = why
            return []
        if verdict == "carried" and self.ballot.term <= self.term:
            self.stage, self.reason = "taking", f"{self._word}; {why}"
            return [TakeOver(self.term, self.reason)]
        # Even where only a few have promised a later one: they would neither work for our root, nor let it speak.
        self.term = max(self.term, self.ballot.term)
        self._watch_on(why if verdict == "lost" else f"term {self.term} was promised to another root: asking for a later one")
        return []

    def _watch_on(self, reason: str) -> None:
        self.stage, self.reason, self.ballot, self._give_up_at = "watching", reason, None, None
