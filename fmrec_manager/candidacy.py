"""A root's candidacy: its term, and then each version that it writes, put to the electors until they have carried it.

1. The term comes first: before a root writes anything the electors have promised it, and told of the newest version that they agreed to.
   What was found and is older (`behind`) is not the one to go on from.
2. A question goes to all who have not answered it, again and again, and to whoever agreed and is said to be gone: each question replaces
   the one before. How the answers are counted is the ballot's (ballot.py).
3. A version that is carried names the electors of the next one; until then those that it was put to are asked as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from fmrec_manager.ballot import Ballot, Groups, Verdict, electors_of, groups_of
from fmrec_manager.orders import Ask, Order, Say
from protocol.identifiers import NodeId, TreeId
from protocol.overlay.effects import ElectorAnswered
from protocol.wire.values import Departed, MemberInfo

AGAIN_S = 5.0
"""Between two complaints that a version is not agreed on, or (root.py) not durable."""


class Candidacy:
    """One life of a root before its electors, `most` of them. Orders are returned; what a verdict means is the root's affair."""

    def __init__(self, tree: TreeId, most: int) -> None:
        self.ballot: Ballot | None = None
        """The question that is open."""
        self.put_to: Groups = ()
        """Whom the next version is put to (ballot.py, rule 1)."""
        self.promised = False
        """Have the electors promised our term?"""
        self.base = (0, 0)
        """The (term, version) that was found, and that this life goes on from."""
        self.floor = (0, 0)
        """The latest (term, version) that electors know of: nothing older is gone on from."""
        self._tree = tree
        self._most = most
        self._complain_at = 0.0

    @property
    def latest(self) -> int:
        """The latest term that any elector who was asked has promised."""
        return self.ballot.term if self.ballot is not None else 0

    @property
    def behind(self) -> bool:
        """Is what was found older than what was committed?"""
        return self.base < self.floor

    def resumes(self, put_to: Groups, members: Iterable[MemberInfo]) -> None:
        """From a record that was put to these and names those: both are asked."""
        self.put_to = groups_of(*put_to, self._electors_of(members))

    def _electors_of(self, members: Iterable[MemberInfo]) -> tuple[NodeId, ...]:
        return tuple(peer.id for peer in electors_of(members, self._tree, self._most))

    # --- asking -------------------------------------------------------------------------------------------------------

    def put(self, version: int, staying: tuple[MemberInfo, ...], now: float) -> list[Order]:
        """This version to those electors who have not left, where each was last heard; version 0: our term alone."""
        self.put_to = self.put_to or groups_of(self._electors_of(staying))
        where = {info.peer.id: info.peer for info in staying}
        self.ballot = Ballot(version, {i: where[i] for group in self.put_to for i in group if i in where}, self.put_to)
        self._complain_at = now + AGAIN_S
        return self._ask(self.ballot)

    def ask_again(self, reason: str, now: float) -> list[Order]:
        """All who have not agreed; and now and then it is said how it stands."""
        assert self.ballot is not None, "a question is open"
        orders = self._ask(self.ballot)
        if now >= self._complain_at:
            self._complain_at = now + AGAIN_S
            orders.append(Say("not_agreed", {"version": self.ballot.version, "reason": reason}))
        return orders

    def _ask(self, ballot: Ballot) -> list[Order]:
        ballot.asks += 1
        asked = ballot.silent()
        return [Ask(ballot.version, asked)] if asked else []

    def members_changed(self, joined: Iterable[MemberInfo], departed: Iterable[Departed]) -> list[Order]:
        """Who has agreed and may not have: all that are silent with them (rule 2)."""
        ballot = self.ballot
        if ballot is None:
            return []
        silent = set(ballot.silent())
        for gone in departed:
            if gone.cause in ("died", "left"):
                ballot.departed(gone.id)
        for info in joined:
            ballot.lives(info.peer)
        asked = ballot.silent()
        return [Ask(ballot.version, asked)] if not silent.issuperset(asked) else []

    # --- their answer -------------------------------------------------------------------------------------------------

    def heard(self, answer: ElectorAnswered, version: int) -> bool:
        """One elector's word on our term and this version. Is that the question that is open?"""
        if self.ballot is None or version != self.ballot.version:
            return False
        self.ballot.heard(answer)
        return True

    def judge(self) -> tuple[Verdict, str]:
        """How it stands."""
        assert self.ballot is not None, "a question is open"
        return self.ballot.judge()

    def carried(self, on_record: Iterable[MemberInfo]) -> bool:
        """The open question is answered in our favour. Is there a version to write or to announce (the newest that they agreed to is not
        newer than what was found)? on_record: the members that the version names, where it was one."""
        ballot, self.ballot = self.ballot, None
        assert ballot is not None, "a question is open"
        if ballot.version:
            self.put_to = groups_of(self._electors_of(on_record))
            return True
        self.floor = max(self.floor, ballot.newest)
        self.promised = not self.behind
        return self.promised
