"""Retrievals: look up who holds a record, fetch the newest version, verified; where a holder fails, the next one.

    looking up --answer--> fetching --verified--> ended        no answer, or nothing yet and somebody unheard: look up again
    fetching --failed--> fetching from the next holder --none left--> ended: lost, and said, never a silent zero
                    --the next holds an older version, and somebody was not heard--> look up again, and hear everyone

Our own record, after a restart, must not be older than what was called durable: while somebody in the neighbourhood is unheard, who might
hold a newer version, we ask again, until `verdict_max_s` is over and everyone there has answered or is dead. And an owner does not go on
without what it was told of, nor from an older version: asks_on() says whether it must retrieve once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from protocol.identifiers import NodeId, Peer, TreeId, rank
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import CancelTransfer, Effect, Fetch, RetrievalEnded, RouteBody
from protocol.overlay.far_places import opposite
from protocol.overlay.placement import RecordKey, is_possible
from protocol.parameters import OverlayParameters
from protocol.wire.messages import LookUp, LookUpReply
from protocol.wire.values import Holding, RecordSummary

LOOK_UPS_MAX = 3
"""Look-ups of one retrieval that nobody answers, or that find nothing while somebody is unheard."""
ASKS_MAX = 5
"""Retrievals of an owner's own record that find nothing while somebody is unheard."""


def asks_on(ended: RetrievalEnded, asked: int) -> bool:
    """Whether an owner that has asked for its own newest record so often, and came to this, asks again: whoever is said to hold a newer one
    than came is asked until it delivers, or is gone; while nobody is, but somebody who might was not heard, ASKS_MAX times."""
    if ended.record is None and not ended.holdings:
        return not ended.complete and asked < ASKS_MAX
    return bool(ended.missed)


@dataclass(slots=True)
class Retrieval:
    """A record that we want."""

    owner: NodeId
    tree: TreeId
    began: float
    number: int
    """Of its look-ups, and of no other retrieval's: what is late for one that was begun anew answers nothing."""
    look_ups: int = 1
    located: float | None = None
    holdings: tuple[Holding, ...] = ()
    untried: list[Holding] = field(default_factory=list)
    transfer: int | None = None
    fetching: RecordSummary | None = None
    attempts: int = 0
    reason: str = ""
    complete: bool = False
    sure: bool = False
    replies: dict[bool, LookUpReply] = field(default_factory=dict)
    """The last one from near, and from the far places where there may be any."""


def merged(replies: Iterable[LookUpReply]) -> LookUpReply:
    """Near and far as one."""
    found = list(replies)
    settled = all(reply.settled for reply in found)
    holdings = tuple(h for reply in found for h in reply.holdings)
    return LookUpReply(found[0].request, holdings, sum(reply.silent for reply in found), settled=settled)


class Retrievals:
    """The records that one node is looking for. `held`: what it holds itself."""

    def __init__(
        self,
        me: Peer,
        parameters: OverlayParameters,
        held: Mapping[RecordKey, RecordSummary],
        deadlines: Deadlines[tuple[str, int]],
        number: Callable[[], int],
    ) -> None:
        self._me = me
        self._parameters = parameters
        self._held = held
        self._deadlines = deadlines
        self._number = number
        self._numbers = count(1)
        self._looks_far = parameters.placement != "local"
        self._retrievals: dict[int, Retrieval] = {}

    def retrieve(self, request: int, owner: NodeId, tree: TreeId, now: float) -> list[Effect]:
        """Find the newest record of (owner, tree) and bring it here. Asked again under the same number, it begins anew and ends once."""
        before = self._retrievals.get(request)
        self._deadlines.drop(("fetch", request))
        self._retrievals[request] = Retrieval(owner, tree, now, next(self._numbers))
        given_up = [CancelTransfer(before.transfer)] if before is not None and before.transfer is not None else []
        return [*given_up, *self._look_up(request, now)]

    def _look_up_again(self, request: int, now: float) -> list[Effect]:
        """And hear everyone."""
        self._retrievals[request].look_ups += 1
        return self._look_up(request, now)

    def _look_up(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        self._deadlines.set(("look_up", request), now + self._parameters.look_up_timeout_s)
        wanted.replies.clear()
        wanted.complete = wanted.sure = False
        look_up = LookUp(wanted.number, wanted.owner, wanted.tree, self._me, all=wanted.look_ups > 1)
        near: list[Effect] = [RouteBody(wanted.owner, look_up)]
        return [*near, RouteBody(opposite(wanted.owner), replace(look_up, far=True))] if self._looks_far else near

    # --- located ------------------------------------------------------------------------------------------------------

    def answered(self, reply: LookUpReply, now: float) -> list[Effect]:
        request, wanted = next(((r, w) for r, w in self._retrievals.items() if w.number == reply.request), (0, None))
        if wanted is None or wanted.located is not None:
            return []
        wanted.replies[reply.far] = reply
        if len(wanted.replies) < 1 + self._looks_far:
            return []
        return self._located(request, merged(wanted.replies.values()), now)

    def _located(self, request: int, reply: LookUpReply, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        wanted.complete = reply.silent == 0
        wanted.sure = wanted.complete or (reply.settled and reply.silent < self._parameters.write_quorum)
        wanted.holdings = self._newest_first(wanted, reply.holdings)
        if self._asks_again(wanted, reply, now):
            return self._look_up_again(request, now)
        return self._take(request, now)

    def _take(self, request: int, now: float) -> list[Effect]:
        """What was found: the first that comes."""
        wanted = self._retrievals[request]
        self._deadlines.drop(("look_up", request))
        wanted.located = now
        wanted.untried = list(wanted.holdings)
        return self._fetch_next(request, now)

    def _newest_first(self, wanted: Retrieval, holdings: Iterable[Holding]) -> tuple[Holding, ...]:
        """Ours among them."""
        mine = self._held.get((wanted.owner, wanted.tree))
        # Each holder once, and no more of them than an honest answer names; among equals our own copy, which needs no transfer.
        said = {holding.holder.id: holding for holding in holdings if self._is_credible(holding, wanted)}
        said.pop(self._me.id, None)
        found = [*([Holding(self._me, mine)] if mine is not None else []), *said.values()]
        newest = sorted(found, key=lambda holding: holding.record.order, reverse=True)
        return tuple(newest[: (1 + self._looks_far) * (self._parameters.leaf_set_size + 1)])

    def _asks_again(self, wanted: Retrieval, reply: LookUpReply, now: float) -> bool:
        """Somebody has not been heard: is that no answer?"""
        if wanted.complete:
            return False
        if wanted.owner == self._me.id:
            return now < wanted.began + self._parameters.verdict_max_s
        return not reply.holdings and wanted.look_ups < LOOK_UPS_MAX

    def _is_credible(self, holding: Holding, wanted: Retrieval) -> bool:
        """Is this a copy of what we want, and of a size that can be?"""
        return holding.record.key == (wanted.owner, wanted.tree) and is_possible(holding.record, self._parameters)

    # --- fetched ------------------------------------------------------------------------------------------------------

    def _fetch_next(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals[request]
        if self._may_be_elsewhere(wanted):
            wanted.located = None
            return self._look_up_again(request, now)
        if not wanted.untried:
            return self._ends(request, None, now, wanted.reason or "no live node holds a record of it")
        holding = wanted.untried.pop(0)
        record = holding.record
        wanted.attempts += 1
        if holding.holder.id == self._me.id:
            return self._ends(request, record, now, "held here")
        wanted.transfer, wanted.fetching = self._number(), record
        timeout_s = self._parameters.transfer_timeout_s(record.record_bytes) + self._parameters.delay_max_s
        self._deadlines.set(("fetch", request), now + timeout_s)
        others = tuple(other.holder for other in wanted.untried if other.record == record and other.holder.id != self._me.id)
        return [Fetch(wanted.transfer, holding.holder, record, others)]

    def _may_be_elsewhere(self, wanted: Retrieval) -> bool:
        """All who hold the newest version that was found have failed: may one hold it who was not heard?"""
        if wanted.complete or not wanted.attempts or wanted.look_ups >= LOOK_UPS_MAX:
            return False
        return not wanted.untried or wanted.untried[0].record.order < wanted.holdings[0].record.order

    def fetch_ended(self, transfer: int, record: RecordSummary | None, reason: str, now: float) -> list[Effect] | None:
        """None where the transfer is none of ours."""
        request = next((number for number, wanted in self._retrievals.items() if wanted.transfer == transfer), None)
        if request is None:
            return None
        wanted = self._retrievals[request]
        self._deadlines.drop(("fetch", request))
        if record is not None and wanted.fetching is not None and record.order < wanted.fetching.order:
            reason = f"the holder said version {wanted.fetching.version} and gave {record.version}"
            record = None
        if record is None:
            wanted.transfer, wanted.reason = None, reason
            return self._fetch_next(request, now)
        return self._ends(request, record, now, "")

    def _ends(self, request: int, record: RecordSummary | None, now: float, reason: str) -> list[Effect]:
        wanted = self._retrievals.pop(request)
        self._deadlines.drop(("look_up", request))
        located = wanted.located if wanted.located is not None else now
        times = located - wanted.began, now - located
        return [RetrievalEnded(request, record, wanted.holdings, *times, wanted.attempts, reason, wanted.complete, wanted.sure)]

    # --- time and deaths ----------------------------------------------------------------------------------------------

    def fetch_late(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals.get(request)
        transfer = wanted.transfer if wanted is not None else None
        if transfer is None:
            return []
        return [CancelTransfer(transfer), *(self.fetch_ended(transfer, None, "no end in time", now) or [])]

    def look_up_late(self, request: int, now: float) -> list[Effect]:
        wanted = self._retrievals.get(request)
        if wanted is None:
            return []
        if wanted.look_ups >= LOOK_UPS_MAX and wanted.replies:
            heard = merged(wanted.replies.values())  # near or far: of the other, where all copies may be, there is no word
            return self._located(request, replace(heard, silent=heard.silent + self._parameters.write_quorum), now)
        if wanted.look_ups >= LOOK_UPS_MAX:
            wanted.holdings = self._newest_first(wanted, wanted.holdings)  # of an earlier answer
            wanted.reason = f"no answer to {LOOK_UPS_MAX} look-ups"
            return self._take(request, now)
        return self._look_up_again(request, now)

    def died(self, peer: Peer, neighbours: Iterable[Peer], now: float) -> list[Effect]:
        """It may have been answering a look-up of ours: where it was closest to the owner of all that we know, we ask its heir."""
        effects: list[Effect] = []
        known = list(neighbours)
        for request, wanted in self._retrievals.items():
            near = rank(wanted.owner, peer.id)
            if wanted.located is None and all(near < rank(wanted.owner, other.id) for other in known if other.id != peer.id):
                effects += self._look_up(request, now)
        return effects

    def check_invariants(self) -> None:
        for request, wanted in self._retrievals.items():
            assert wanted.transfer is not None or ("look_up", request) in self._deadlines, "a retrieval that never ends"
