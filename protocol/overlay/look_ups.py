"""Answering look-ups: the live node closest to a record's owner asks its leaf set who holds which version, and answers for all of it.

It answers as soon as nobody is left to wait for, and in any case within `gather_timeout_s`. A suspect is waited for no longer than
`ack_timeout_min_s`: a killed one is found dead sooner than that, and a hung one would hold up every look-up until its verdict. Who was
not heard is counted in the answer, so that whoever must have the newest version knows when to ask again.

The slowest of many is slow: on a busy machine the last answer takes longer than all others together. What is durable has `write_quorum`
holders near its owner, so where fewer than that are unheard, one of them has been heard, and the answer is given: the newest durable
version is in it, or is held by the asker itself. Not so to a record's owner, nor to whoever asks for all, for there may be another holder
of that version whom nobody has heard; nor where replicas are also far away; nor while holders may be in replacement: when any but the
owner has joined, left or begun another life near us, in less time than it takes to find it dead, to wait, and to bring a record of that
size to another. That leaves what had fewer holders from the first, in a ring of fewer nodes, or where all others refused: an owner finds
it, who hears everyone. And where somebody was not heard while holders may be in replacement, the answer says that it is not settled: the
dead and the silent together may have been the quorum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

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

    spared: so many need not be waited for, once anything was found. began; moved: when any but the owner last joined, left or was born.
    inf once one of them has died while we wait.
    """

    asker: Peer
    number: int
    far: bool
    key: RecordKey
    waiting: dict[NodeId, Peer]
    spared: int
    began: float
    moved: float
    holdings: dict[NodeId, Holding] = field(default_factory=dict)
    patient: bool = True


class LookUps:
    """The look-ups that one node answers. `held`: what it holds itself; `being_taken`: what of a key is on its way here, and from whom."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        leaf_set: LeafSet,
        is_suspect: Callable[[NodeId], bool],
        held: Mapping[RecordKey, RecordSummary],
        being_taken: Callable[[RecordKey], list[Holding]],
        deadlines: Deadlines[tuple[str, int]],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._leaf_set = leaf_set
        self._is_suspect = is_suspect
        self._held = held
        self._being_taken = being_taken
        self._deadlines = deadlines
        self._gatherings: dict[int, Gathering] = {}
        self._queries = 0
        self._members: frozenset[Peer] = frozenset()
        self._moved: dict[NodeId, float] = {}
        """When who joined, left or was born near us last."""

    def leaf_set_changed(self, now: float) -> None:
        """Somebody has joined it, has left it, or lives anew."""
        members = frozenset(self._leaf_set)
        over = self._replaced_s(self._parameters.record_bytes_max)
        self._moved = {identifier: when for identifier, when in self._moved.items() if now <= when + over}
        self._moved |= {peer.id: now for peer in members ^ self._members}
        self._members = members

    def _replaced_s(self, record_bytes: int) -> float:
        """After this the copies that a death has cost are in other places."""
        return self._parameters.verdict_max_s + self._parameters.mend_after_s + self._parameters.transfer_timeout_s(record_bytes)

    def delivered(self, look_up: LookUp, now: float) -> list[Effect]:
        """We are the live node closest to the owner: ask the leaf set, and answer for it."""
        if len(self._gatherings) >= self._parameters.held_messages_max:
            return [Notify("look_up_dropped", {"asker": look_up.asker, "reason": "too many look-ups are being answered"})]
        self._queries += 1
        neighbours = [peer for peer in self._leaf_set.alternating() if peer.id != look_up.asker.id]
        waiting = {peer.id: peer for peer in neighbours}
        self.leaf_set_changed(now)  # where it has changed, and we are about to be told
        moved = max((when for identifier, when in self._moved.items() if identifier != look_up.owner), default=-inf)
        certain = look_up.all or look_up.asker.id == look_up.owner or self._parameters.placement != "local"
        spared = 0 if certain else self._parameters.write_quorum - 1
        key = (look_up.owner, look_up.tree)
        gathering = Gathering(look_up.asker, look_up.request, look_up.far, key, waiting, spared, now, moved)
        self._says_its_own(gathering)
        self._gatherings[self._queries] = gathering
        self._deadlines.set(("gather", self._queries), now + self._parameters.gather_timeout_s)
        self._deadlines.set(("doubtful", self._queries), now + self._parameters.ack_timeout_min_s)
        query = HoldingsQuery(self._queries, look_up.owner, look_up.tree)
        return [Send(peer, query) for peer in neighbours] or self.answer(self._queries)

    def _says_its_own(self, gathering: Gathering) -> None:
        """What we hold now: it may have come while we waited."""
        mine = self._held.get(gathering.key)
        gathering.holdings.pop(self._me.id, None)
        if mine is not None:
            gathering.holdings[self._me.id] = Holding(self._me, mine)

    def query_received(self, sender: Peer, query: HoldingsQuery) -> list[Effect]:
        return [Send(sender, HoldingsReply(query.request, self._held.get((query.owner, query.tree))))]

    def reply_received(self, sender: Peer, reply: HoldingsReply) -> list[Effect]:
        holding = Holding(sender, reply.record) if reply.record is not None else None
        gathering = self._gatherings.get(reply.request)
        if gathering is not None and gathering.waiting.get(sender.id) != sender:
            gathering.spared = 0  # the life that was asked is over
        return self._gathered(reply.request, sender.id, holding)

    def died(self, identifier: NodeId) -> list[Effect]:
        """Nobody waits for it."""
        effects: list[Effect] = []
        for query, gathering in list(self._gatherings.items()):
            gathering.spared = 0
            if identifier != gathering.key[0]:
                gathering.moved = inf
            effects += self._gathered(query, identifier, None)
        return effects

    def _gathered(self, query: int, who: NodeId, holding: Holding | None) -> list[Effect]:
        gathering = self._gatherings.get(query)
        if gathering is None or who not in gathering.waiting:
            return []
        del gathering.waiting[who]
        if holding is not None and holding.record.key == gathering.key:
            gathering.holdings[who] = holding
        return self.answer(query) if self._is_done(gathering) else []

    def _is_done(self, gathering: Gathering) -> bool:
        found = gathering.holdings.values()
        if not gathering.waiting or (found and len(gathering.waiting) <= gathering.spared and self._is_settled(gathering)):
            return True
        return not gathering.patient and all(map(self._is_suspect, gathering.waiting))

    def _is_settled(self, gathering: Gathering) -> bool:
        """Have all holders of what was found been replaced who are no longer near?"""
        largest = max(holding.record.record_bytes for holding in gathering.holdings.values())
        return gathering.began > gathering.moved + self._replaced_s(largest)

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
        self._says_its_own(gathering)
        for holding in self._being_taken(gathering.key):
            gathering.holdings.setdefault(holding.holder.id, holding)
        newest = sorted(gathering.holdings.values(), key=lambda holding: (holding.record.order, holding.holder.id), reverse=True)
        settled = not gathering.waiting or not newest or self._is_settled(gathering)
        reply = LookUpReply(gathering.number, tuple(newest), len(gathering.waiting), gathering.far, settled)
        return [Send(gathering.asker, reply)]

    def check_invariants(self) -> None:
        assert all(("gather", query) in self._deadlines for query in self._gatherings), "a look-up that is never answered"
