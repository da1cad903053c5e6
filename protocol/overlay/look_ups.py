"""Answering look-ups: the live node closest to a record's owner asks its leaf set who holds which version, and answers for all of it.

It answers as soon as nobody is left to wait for, and in any case within `gather_timeout_s`. A suspect is waited for no longer than
`ack_timeout_min_s`: a killed one is found dead sooner than that, and a hung one would hold up every look-up until its verdict. Who was
not heard is counted in the answer, so that whoever must have the newest version knows when to ask again.

The slowest of many is slow: on a busy machine the last answer takes longer than all others together. What is durable has `write_quorum`
holders, so where fewer than that are unheard, one of them has been heard, and the answer is given: the newest durable version is in it, or
is held by the asker itself. Not so to a record's owner, which wants certainty; nor where replicas are also far away; nor while holders
are being replaced, that is within `mend_after_s` and a transfer after any but the owner has joined or left the leaf set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol.identifiers import NodeId, Peer
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import Effect, Notify, Send
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.placement import RecordKey
from protocol.parameters import OverlayParameters
from protocol.wire.messages import HoldingsQuery, HoldingsReply, LookUp, LookUpReply
from protocol.wire.values import Holding, RecordSummary


@dataclass(slots=True)
class Gathering:
    """A look-up that we answer: whom we wait for, and what was said. patient: suspects still have time.

    spared: so many need not be waited for, once anything was found.
    """

    asker: Peer
    number: int
    far: bool
    key: RecordKey
    waiting: set[NodeId]
    spared: int = 0
    holdings: dict[NodeId, Holding] = field(default_factory=dict)
    patient: bool = True


class LookUps:
    """The look-ups that one node answers. `held`: what it holds itself."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        leaf_set: LeafSet,
        is_suspect: Callable[[NodeId], bool],
        held: Mapping[RecordKey, RecordSummary],
        deadlines: Deadlines[tuple[str, int]],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._leaf_set = leaf_set
        self._is_suspect = is_suspect
        self._held = held
        self._deadlines = deadlines
        self._gatherings: dict[int, Gathering] = {}
        self._queries = 0
        self._members: frozenset[NodeId] = frozenset()
        self._moved: dict[NodeId, float] = {}
        """Who joined or left the leaf set of late, and when."""

    def leaf_set_changed(self, now: float) -> None:
        """Somebody has joined or left it."""
        members = frozenset(peer.id for peer in self._leaf_set)
        moved = {identifier: when for identifier, when in self._moved.items() if not self._is_over(when, now)}
        self._moved = moved | dict.fromkeys(members ^ self._members, now)
        self._members = members

    def _is_over(self, moved: float, now: float) -> bool:
        """Have the holders that this has cost been replaced?"""
        return now > moved + self._parameters.mend_after_s + self._parameters.verdict_max_s

    def _spared(self, look_up: LookUp, now: float) -> int:
        """How many neighbours may be unheard while what is durable has been found all the same."""
        if look_up.asker.id == look_up.owner or self._parameters.placement != "local":
            return 0
        moved = {identifier for identifier, when in self._moved.items() if not self._is_over(when, now)}
        moved |= self._members.symmetric_difference(peer.id for peer in self._leaf_set)
        return self._parameters.write_quorum - 1 if moved <= {look_up.owner} else 0

    def delivered(self, look_up: LookUp, now: float) -> list[Effect]:
        """We are the live node closest to the owner: ask the leaf set, and answer for it."""
        if len(self._gatherings) >= self._parameters.held_messages_max:
            return [Notify("look_up_dropped", {"asker": look_up.asker, "reason": "too many look-ups are being answered"})]
        self._queries += 1
        neighbours = [peer for peer in self._leaf_set.alternating() if peer.id != look_up.asker.id]
        waiting = {peer.id for peer in neighbours}
        key = (look_up.owner, look_up.tree)
        gathering = Gathering(look_up.asker, look_up.request, look_up.far, key, waiting, self._spared(look_up, now))
        mine = self._held.get(gathering.key)
        if mine is not None:
            gathering.holdings[self._me.id] = Holding(self._me, mine)
        self._gatherings[self._queries] = gathering
        self._deadlines.set(("gather", self._queries), now + self._parameters.gather_timeout_s)
        self._deadlines.set(("doubtful", self._queries), now + self._parameters.ack_timeout_min_s)
        query = HoldingsQuery(self._queries, look_up.owner, look_up.tree)
        return [Send(peer, query) for peer in neighbours] or self.answer(self._queries)

    def query_received(self, sender: Peer, query: HoldingsQuery) -> list[Effect]:
        return [Send(sender, HoldingsReply(query.request, self._held.get((query.owner, query.tree))))]

    def reply_received(self, sender: Peer, reply: HoldingsReply) -> list[Effect]:
        holding = Holding(sender, reply.record) if reply.record is not None else None
        return self._gathered(reply.request, sender.id, holding)

    def died(self, identifier: NodeId) -> list[Effect]:
        """Nobody waits for it."""
        effects: list[Effect] = []
        for query, gathering in list(self._gatherings.items()):
            gathering.spared = 0
            effects += self._gathered(query, identifier, None)
        return effects

    def _gathered(self, query: int, who: NodeId, holding: Holding | None) -> list[Effect]:
        gathering = self._gatherings.get(query)
        if gathering is None or who not in gathering.waiting:
            return []
        gathering.waiting.discard(who)
        if holding is not None and holding.record.key == gathering.key:
            gathering.holdings[who] = holding
        return self.answer(query) if self._is_done(gathering) else []

    def _is_done(self, gathering: Gathering) -> bool:
        if len(gathering.waiting) <= (gathering.spared if gathering.holdings else 0):
            return True
        return not gathering.patient and all(map(self._is_suspect, gathering.waiting))

    def doubtful(self, query: int) -> list[Effect]:
        """Suspects have had their time."""
        gathering = self._gatherings.get(query)
        if gathering is None:
            return []
        gathering.patient = False
        return self.answer(query) if self._is_done(gathering) else []

    def answer(self, query: int) -> list[Effect]:
        """With what was said so far, newest first."""
        gathering = self._gatherings.pop(query, None)
        if gathering is None:
            return []
        self._deadlines.drop(("gather", query))
        self._deadlines.drop(("doubtful", query))
        newest = sorted(gathering.holdings.values(), key=lambda holding: (holding.record.order, holding.holder.id), reverse=True)
        return [Send(gathering.asker, LookUpReply(gathering.number, tuple(newest), len(gathering.waiting), gathering.far))]

    def check_invariants(self) -> None:
        assert all(("gather", query) in self._deadlines for query in self._gatherings), "a look-up that is never answered"
