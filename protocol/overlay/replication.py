"""Replication: k copies of every agent's meta knowledge on its leaf set, and the way back to them (FMRec, section III-D).

Only summaries pass through here; the bytes are in the store, and move in bulk transfers that effects start.

1. Placement. A record goes to k leaf-set members, nearest first, right and left in turn. It is durable when `write_quorum` hold it.
   Nodes at one address are one process (a manager's trees), and die as one: of these the first alone counts, and of our own none.
2. A holder that refuses or fails is passed over for the next candidate; one that failed is tried again after a while. With fewer
   neighbours than the quorum, all of them must hold it; with none, nothing is durable.
3. A newer version supersedes one still under way.
4. Upkeep. When a holder dies or the leaf set moves, the owner brings the newest version to k members again. A holder that is no
   longer in the leaf set does not count: a look-up would not ask it.
5. Look-up. Routed to the owner's id, it ends at the live node closest to it (the owner itself after a restart), which asks its leaf set
   who holds what, and answers within `gather_timeout_s`, newest first, and says how many were silent. It counts what it holds itself.
6. Retrieval. Look up, fetch the newest, verify; where a holder fails, the next one. No holder left: lost, and said, never a silent zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.identifiers import Address, NodeId, Peer, TreeId
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import CancelTransfer, Durable, Effect, Fetch, Notify, Push, RetrievalEnded, RouteBody, Send
from protocol.parameters import OverlayParameters
from protocol.wire.messages import HoldingsQuery, HoldingsReply, LookUp, LookUpReply
from protocol.wire.values import Holding, RecordSummary

RecordKey = tuple[NodeId, TreeId]
LOOK_UPS_MAX = 3
RETRY = ("retry", 0)
"""The deadline after which holders that failed are tried again."""


@dataclass(slots=True)
class Placement:
    """One of our own records and where its copies are."""

    record: RecordSummary
    holders: dict[NodeId, Peer] = field(default_factory=dict)
    refused: set[NodeId] = field(default_factory=set)
    failed: set[NodeId] = field(default_factory=set)
    pushing: dict[int, Peer] = field(default_factory=dict)
    durable: bool = False


@dataclass(slots=True)
class Gathering:
    """A look-up that we answer: whom we wait for, and what was said."""

    asker: Peer
    number: int
    key: RecordKey
    waiting: set[NodeId]
    holdings: dict[NodeId, Holding] = field(default_factory=dict)


@dataclass(slots=True)
class Retrieval:
    """A record that we want."""

    owner: NodeId
    tree: TreeId
    began: float
    look_ups: int = 1
    located: float | None = None
    holdings: tuple[Holding, ...] = ()
    untried: list[Holding] = field(default_factory=list)
    transfer: int | None = None
    fetching: RecordSummary | None = None
    attempts: int = 0
    reason: str = ""
    complete: bool = False


class Replication:
    """One node's own records, what it holds for others, and its look-ups. `candidates` is Pastry's leaf set in order of placement."""

    def __init__(self, me: Peer, parameters: OverlayParameters, candidates: Callable[[], list[Peer]]) -> None:
        self._me = me
        self._parameters = parameters
        self._candidates = candidates
        self._own: dict[RecordKey, Placement] = {}
        self._held: dict[RecordKey, RecordSummary] = {}
        self._gatherings: dict[int, Gathering] = {}
        self._retrievals: dict[int, Retrieval] = {}
        self._transfers = 0
        self._queries = 0
        self.deadlines: Deadlines[tuple[str, int]] = Deadlines()

    def next_deadline(self) -> float | None:
        return self.deadlines.next()

    def held(self) -> tuple[RecordSummary, ...]:
        """What this node holds, for others or of its own."""
        return tuple(self._held.values())

    def holders(self, key: RecordKey) -> tuple[NodeId, ...]:
        """Who holds the newest version of our own record."""
        placement = self._own.get(key)
        return tuple(placement.holders) if placement is not None else ()

    # --- placing our own ----------------------------------------------------------------------------------------------

    def replicate(self, record: RecordSummary, now: float) -> list[Effect]:
        """Bring this version of our own record to k holders."""
        effects: list[Effect] = []
        before = self._own.get(record.key)
        if before is not None:
            if before.record.order > record.order:
                return []
            effects += [CancelTransfer(transfer) for transfer in before.pushing]
            for transfer in before.pushing:
                self.deadlines.drop(("push", transfer))
        self._held[record.key] = record
        self._own[record.key] = Placement(record)
        return effects + self._place(self._own[record.key], now)

    def _place(self, placement: Placement, now: float) -> list[Effect]:
        """Start as many pushes as holders are missing."""
        effects: list[Effect] = []
        under_way = {peer.id for peer in placement.pushing.values()}
        missing = self._parameters.replicas - len(placement.holders) - len(under_way)
        for peer in self._apart():
            if missing <= 0:
                break
            if peer.id in placement.holders or peer.id in under_way or peer.id in placement.refused | placement.failed:
                continue
            self._transfers += 1
            placement.pushing[self._transfers] = peer
            timeout_s = self._parameters.transfer_timeout_s(placement.record.record_bytes)
            self.deadlines.set(("push", self._transfers), now + timeout_s + self._parameters.delay_max_s)
            effects.append(Push(self._transfers, peer, placement.record))
            missing -= 1
        if missing > 0 and placement.failed and RETRY not in self.deadlines:
            self.deadlines.set(RETRY, now + self._parameters.retry_max_s)
        return effects + self._judge_durable(placement)

    def _apart(self) -> list[Peer]:
        """The candidates, of each process one (rule 1)."""
        first: dict[Address, Peer] = {}
        for peer in self._candidates():
            first.setdefault(peer.address, peer)
        first.pop(self._me.address, None)
        return list(first.values())

    def _judge_durable(self, placement: Placement) -> list[Effect]:
        present = {peer.id for peer in self._apart()}
        needed = min(self._parameters.write_quorum, len(present))
        if placement.durable or not needed or len(placement.holders.keys() & present) < needed:
            return []
        placement.durable = True
        return [Durable(placement.record, tuple(placement.holders))]

    def push_ended(self, transfer: int, outcome: str, reason: str, now: float) -> list[Effect]:
        self.deadlines.drop(("push", transfer))
        for placement in self._own.values():
            peer = placement.pushing.pop(transfer, None)
            if peer is None:
                continue
            if outcome == "stored":
                placement.holders[peer.id] = peer
                return self._judge_durable(placement)
            (placement.refused if outcome == "refused" else placement.failed).add(peer.id)
            return [
                Notify("replica_refused", {"holder": peer, "version": placement.record.version, "reason": reason}),
                *self._place(placement, now),
            ]
        return []

    def leaf_set_changed(self, now: float) -> list[Effect]:
        """Upkeep: k of the present neighbours shall hold our newest versions."""
        effects: list[Effect] = []
        present = {peer.id for peer in self._apart()}
        for placement in self._own.values():
            placement.holders = {identifier: peer for identifier, peer in placement.holders.items() if identifier in present}
            placement.refused.clear()
            placement.failed.clear()
            effects += self._place(placement, now)
        return effects

    def _try_failed_again(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for placement in self._own.values():
            placement.failed.clear()
            effects += self._place(placement, now)
        return effects

    def died(self, peer: Peer, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for placement in self._own.values():
            gone = [transfer for transfer, holder in placement.pushing.items() if holder.id == peer.id]
            for transfer in gone:
                del placement.pushing[transfer]
                self.deadlines.drop(("push", transfer))
                effects.append(CancelTransfer(transfer))
            if placement.holders.pop(peer.id, None) is not None or gone:
                effects += self._place(placement, now)
        for query in list(self._gatherings):
            effects += self._gathered(query, peer.id, None)
        return effects

    # --- holding for others -------------------------------------------------------------------------------------------

    def record_held(self, record: RecordSummary) -> list[Effect]:
        """The store holds this now."""
        known = self._held.get(record.key)
        if known is None or known.order <= record.order:
            self._held[record.key] = record
        return []

    # --- answering look-ups -------------------------------------------------------------------------------------------

    def look_up_delivered(self, look_up: LookUp, now: float) -> list[Effect]:
        """We are the live node closest to the owner: ask the leaf set, and answer for it."""
        if len(self._gatherings) >= self._parameters.held_messages_max:
            return [Notify("look_up_dropped", {"asker": look_up.asker, "reason": "too many look-ups are being answered"})]
        self._queries += 1
        neighbours = [peer for peer in self._candidates() if peer.id != look_up.asker.id]
        gathering = Gathering(look_up.asker, look_up.request, (look_up.owner, look_up.tree), {peer.id for peer in neighbours})
        mine = self._held.get((look_up.owner, look_up.tree))
        if mine is not None:
            gathering.holdings[self._me.id] = Holding(self._me, mine)
        self._gatherings[self._queries] = gathering
        self.deadlines.set(("gather", self._queries), now + self._parameters.gather_timeout_s)
        query = HoldingsQuery(self._queries, look_up.owner, look_up.tree)
        return [Send(peer, query) for peer in neighbours] or self._answer(self._queries)

    def query_received(self, sender: Peer, query: HoldingsQuery) -> list[Effect]:
        return [Send(sender, HoldingsReply(query.request, self._held.get((query.owner, query.tree))))]

    def reply_received(self, sender: Peer, reply: HoldingsReply) -> list[Effect]:
        holding = Holding(sender, reply.record) if reply.record is not None else None
        return self._gathered(reply.request, sender.id, holding)

    def _gathered(self, query: int, who: NodeId, holding: Holding | None) -> list[Effect]:
        gathering = self._gatherings.get(query)
        if gathering is None or who not in gathering.waiting:
            return []
        gathering.waiting.discard(who)
        if holding is not None and holding.record.key == gathering.key:
            gathering.holdings[who] = holding
        return self._answer(query) if not gathering.waiting else []

    def _answer(self, query: int) -> list[Effect]:
        gathering = self._gatherings.pop(query)
        self.deadlines.drop(("gather", query))
        newest = sorted(gathering.holdings.values(), key=lambda holding: (holding.record.order, holding.holder.id), reverse=True)
        reply = LookUpReply(gathering.number, tuple(newest), len(gathering.waiting))
        return [Send(gathering.asker, reply)]

    # --- retrieving ---------------------------------------------------------------------------------------------------

    def retrieve(self, request: int, owner: NodeId, tree: TreeId, now: float) -> list[Effect]:
        """Find the newest record of (owner, tree) and bring it here. Asked again under the same number, it begins anew and ends once."""
        before = self._retrievals.get(request)
        self.deadlines.drop(("fetch", request))
        self._retrievals[request] = Retrieval(owner, tree, began=now)
        given_up = [CancelTransfer(before.transfer)] if before is not None and before.transfer is not None else []
        return [*given_up, *self._look_up(request, now)]

    def _look_up(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        self.deadlines.set(("look_up", request), now + self._parameters.look_up_timeout_s)
        return [RouteBody(wanted.owner, LookUp(request, wanted.owner, wanted.tree, self._me))]

    def look_up_answered(self, reply: LookUpReply, now: float) -> list[Effect]:
        wanted = self._retrievals.get(reply.request)
        if wanted is None or wanted.located is not None:
            return []
        wanted.complete = reply.silent == 0
        if not reply.holdings and not wanted.complete and wanted.look_ups < LOOK_UPS_MAX:
            # Nothing yet, and somebody has not been heard: that is no answer.
            wanted.look_ups += 1
            return self._look_up(reply.request, now)
        self.deadlines.drop(("look_up", reply.request))
        wanted.located = now
        mine = self._held.get((wanted.owner, wanted.tree))
        # Each holder once, and no more of them than an honest answer names; among equals our own copy, which needs no transfer.
        said = {holding.holder.id: holding for holding in reply.holdings if self._credible(holding, wanted)}
        said.pop(self._me.id, None)
        found = [*([Holding(self._me, mine)] if mine is not None else []), *said.values()]
        newest = sorted(found, key=lambda holding: holding.record.order, reverse=True)
        wanted.holdings = tuple(newest[: self._parameters.leaf_set_size + 1])
        wanted.untried = list(wanted.holdings)
        return self._fetch_next(reply.request, now)

    def _credible(self, holding: Holding, wanted: Retrieval) -> bool:
        """Is this a copy of what we want, and of a size that can be?"""
        record = holding.record
        return record.key == (wanted.owner, wanted.tree) and 0 <= record.record_bytes <= self._parameters.record_bytes_max

    def _fetch_next(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        if not wanted.untried:
            return self._retrieval_ends(request, None, now, wanted.reason or "no live node holds a record of it")
        holding = wanted.untried.pop(0)
        wanted.attempts += 1
        if holding.holder.id == self._me.id:
            return self._retrieval_ends(request, holding.record, now, "held here")
        self._transfers += 1
        wanted.transfer, wanted.fetching = self._transfers, holding.record
        timeout_s = self._parameters.transfer_timeout_s(holding.record.record_bytes) + self._parameters.delay_max_s
        self.deadlines.set(("fetch", request), now + timeout_s)
        return [Fetch(self._transfers, holding.holder, holding.record)]

    def fetch_ended(self, transfer: int, record: RecordSummary | None, reason: str, now: float) -> list[Effect]:
        request = next((number for number, wanted in self._retrievals.items() if wanted.transfer == transfer), None)
        if request is None:
            return []
        wanted = self._retrievals[request]
        self.deadlines.drop(("fetch", request))
        if record is not None and wanted.fetching is not None and record.order < wanted.fetching.order:
            reason = f"the holder said version {wanted.fetching.version} and gave {record.version}"
            record = None
        if record is None:
            wanted.transfer, wanted.reason = None, reason
            return self._fetch_next(request, now)
        self.record_held(record)
        return self._retrieval_ends(request, record, now, "")

    def _retrieval_ends(self, request: int, record: RecordSummary | None, now: float, reason: str) -> list[Effect]:
        wanted = self._retrievals.pop(request)
        self.deadlines.drop(("look_up", request))
        located = wanted.located if wanted.located is not None else now
        times = located - wanted.began, now - located
        return [RetrievalEnded(request, record, wanted.holdings, *times, wanted.attempts, reason, wanted.complete)]

    # --- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for kind, number in self.deadlines.due(now):
            if kind == "push":
                effects += [CancelTransfer(number), *self.push_ended(number, "failed", "no end in time", now)]
            elif kind == "gather":
                effects += self._answer(number)
            elif kind == "retry":
                effects += self._try_failed_again(now)
            elif kind == "look_up":
                effects += self._look_up_late(number, now)
            elif (transfer := self._retrievals[number].transfer) is not None:
                effects += [CancelTransfer(transfer), *self.fetch_ended(transfer, None, "no end in time", now)]
        return effects

    def _look_up_late(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        if wanted.look_ups >= LOOK_UPS_MAX:
            wanted.located = now
            mine = self._held.get((wanted.owner, wanted.tree))
            if mine is not None:
                wanted.untried = [Holding(self._me, mine)]
            wanted.reason = f"no answer to {LOOK_UPS_MAX} look-ups"
            return self._fetch_next(request, now)
        wanted.look_ups += 1
        return self._look_up(request, now)

    def check_invariants(self) -> None:
        for placement in self._own.values():
            assert len(placement.holders) + len(placement.pushing) <= self._parameters.replicas, "more copies than k"
            assert all(("push", transfer) in self.deadlines for transfer in placement.pushing), "a push without a deadline"
        assert all(("gather", query) in self.deadlines for query in self._gatherings), "a look-up that is never answered"
        for request, wanted in self._retrievals.items():
            assert wanted.transfer is not None or ("look_up", request) in self.deadlines, "a retrieval that never ends"
