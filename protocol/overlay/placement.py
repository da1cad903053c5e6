"""Where the copies of a record are, and whom it is brought to next.

Places: leaf-set members in the order of placement (with zones perhaps others, see far_places.py), one for each address. Two nodes of one
process (a manager's trees) die together and are one place; none is at our own address. Who is under suspicion comes last.

A copy of our own record that is missing because its holder died waits for `mend_after_s`, as long as a quorum is left: the transfers of
the recovery go first, and a process that is started again is back by then. So does one that is durable, but not in another zone as its
placement wants: it was brought while nobody was known there, or those there died and are back. Each copy that is there at last takes the
place of one at home, which counts until then. (That one is not deleted: a newer version may be on its way to the same peer.) Never the
other way: a copy abroad that counts is not moved home.

    waiting (a newer version, while this one is under way) --> under way --quorum--> durable --k holders--> complete
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.identifiers import Address, NodeId, Peer, TreeId, zone_of
from protocol.overlay.deadlines import Deadlines
from protocol.overlay.effects import CancelTransfer, Durable, Effect, Notify, Push
from protocol.overlay.far_places import copies_abroad
from protocol.parameters import OverlayParameters
from protocol.wire.values import RecordSummary

RecordKey = tuple[NodeId, TreeId]
RETRY = ("retry", 0)
"""The deadline after which holders that failed are tried again."""
MEND = ("mend", 0)
"""The deadline after which copies are brought whose holders have died."""
SLOWER_MAX = 2.0
"""Who takes so many times as long as the first that was done with the same record is slow."""


def one_an_address(peers: Iterable[Peer], taken: Address) -> list[Peer]:
    """The peers in their order: of those at one address the first, none at the address that is `taken`."""
    found: dict[Address, Peer] = {}
    for peer in peers:
        if peer.address != taken:
            found.setdefault(peer.address, peer)
    return list(found.values())


def is_possible(record: RecordSummary, parameters: OverlayParameters) -> bool:
    """Is it of a size that a record can have? What peers say of records is not believed before."""
    return 0 <= record.record_bytes <= parameters.record_bytes_max


@dataclass(slots=True)
class Pushing:
    """A copy on its way. slow: another place is being tried beside it."""

    peer: Peer
    began: float
    slow: bool = False


@dataclass(slots=True)
class Placement:
    """One record and where its copies are. copies: how many places shall hold it beside us; abroad: how many of these in another zone,
    where there is one. adopted: its owner is dead, we stand in."""

    record: RecordSummary
    copies: int
    abroad: int = 0
    adopted: bool = False
    hurried: bool = False
    """It took the place of a version that was still under way: the next one waits until it has its quorum."""
    holders: dict[NodeId, Peer] = field(default_factory=dict)
    refused: set[NodeId] = field(default_factory=set)
    failed: set[NodeId] = field(default_factory=set)
    pushing: dict[int, Pushing] = field(default_factory=dict)
    durable: bool = False
    fastest_s: float | None = None
    """What the first push that was done took."""

    @property
    def complete(self) -> bool:
        return len(self.holders) >= self.copies

    @property
    def is_under_way(self) -> bool:
        """On its way to a quorum."""
        return bool(self.pushing) and not self.durable

    def missing(self) -> int:
        """Copies that neither are there nor under way in good time."""
        return self.copies - len(self.holders) - sum(not push.slow for push in self.pushing.values())

    def is_abroad(self, peer: Peer) -> bool:
        return zone_of(peer.id) != zone_of(self.record.owner)

    def missing_abroad(self) -> int:
        """Copies that are durable at home, and neither are abroad as they should nor on their way there in good time."""
        if not self.durable:
            return 0
        on_their_way = [push.peer for push in self.pushing.values() if not push.slow]
        return self.abroad - sum(map(self.is_abroad, (*self.holders.values(), *on_their_way)))

    @property
    def is_short(self) -> bool:
        """Is there a copy to be brought, if there is a place for it?"""
        return self.missing() > 0 or self.missing_abroad() > 0

    def chosen(self, untried: list[Peer]) -> list[Peer]:
        """To whom of these it is brought now."""
        first = untried[: max(self.missing(), 0)]
        more = self.missing_abroad() - sum(map(self.is_abroad, first))
        return first + [peer for peer in untried[len(first) :] if self.is_abroad(peer)][: max(more, 0)]

    def held_by(self, peer: Peer) -> None:
        """One more copy; where there are enough, it takes the place of one at home."""
        self.holders[peer.id] = peer
        if len(self.holders) > self.copies:
            at_home = [identifier for identifier, holder in self.holders.items() if not self.is_abroad(holder)]
            del self.holders[at_home[-1]]

    def needless(self) -> list[int]:
        """The transfers of copies that are not wanted any more."""
        if not self.complete:
            return []
        moving = sum(map(self.is_abroad, self.holders.values())) < self.abroad
        return [transfer for transfer, push in self.pushing.items() if not (moving and self.is_abroad(push.peer))]

    def reached(self) -> list[Peer]:
        """Who has a copy, or may have one by now."""
        return [*self.holders.values(), *(push.peer for push in self.pushing.values())]

    def is_tried(self, identifier: NodeId) -> bool:
        tried = identifier in self.holders or identifier in self.refused or identifier in self.failed
        return tried or any(push.peer.id == identifier for push in self.pushing.values())


class Placements:
    """The records that this node keeps copies of elsewhere: its own, and those that it stands in for. `places` as the module says, of
    our own or of adopted records; `number` gives the next transfer's."""

    def __init__(
        self,
        parameters: OverlayParameters,
        places: Callable[[bool], list[Peer]],
        deadlines: Deadlines[tuple[str, int]],
        number: Callable[[], int],
    ) -> None:
        self._parameters = parameters
        self._places = places
        self._deadlines = deadlines
        self._number = number
        self._placed: dict[RecordKey, Placement] = {}
        self._of_push: dict[int, RecordKey] = {}
        self._next: dict[RecordKey, RecordSummary] = {}
        """The newest version of each record whose present one must have its quorum first."""

    def get(self, key: RecordKey) -> Placement | None:
        return self._placed.get(key)

    def adopted(self) -> list[RecordKey]:
        return [key for key, placement in self._placed.items() if placement.adopted]

    def of_tree(self, tree: TreeId) -> list[RecordKey]:
        return [key for key in self._placed if key[1] == tree]

    # --- bringing -----------------------------------------------------------------------------------------------------

    def bring(self, record: RecordSummary, now: float, *, adopted: bool = False) -> list[Effect]:
        """Bring this version to its places; one that is older than what is placed stays here."""
        before = self._placed.get(record.key)
        if before is not None:
            if before.record.order > record.order:
                return []
            if before.hurried and before.is_under_way and before.record.order < record.order:
                self._next[record.key] = record
                return []
        return self._supersede(record, now, adopted=adopted)

    def _supersede(self, record: RecordSummary, now: float, *, adopted: bool) -> list[Effect]:
        before = self._placed.get(record.key)
        hurried = before is not None and before.is_under_way
        effects = self.drop(record.key)
        # We hold what we have adopted, and are one of the k; an owner is none of its k.
        copies = self._parameters.replicas - adopted
        abroad = copies_abroad("local" if adopted else self._parameters.placement, copies)
        self._placed[record.key] = placement = Placement(record, copies, abroad, adopted, hurried)
        return effects + self._place(placement, now)

    def drop(self, key: RecordKey) -> list[Effect]:
        """Care for this record no more; what is under way is given up."""
        placement = self._placed.pop(key, None)
        self._next.pop(key, None)
        return self._cancel(placement, list(placement.pushing)) if placement is not None else []

    def _cancel(self, placement: Placement, transfers: Iterable[int]) -> list[Effect]:
        effects: list[Effect] = []
        for transfer in transfers:
            self._forget(placement, transfer)
            effects.append(CancelTransfer(transfer))
        return effects

    def _forget(self, placement: Placement, transfer: int) -> Pushing:
        self._deadlines.drop(("push", transfer))
        self._deadlines.drop(("slow", transfer))
        del self._of_push[transfer]
        return placement.pushing.pop(transfer)

    def _place(self, placement: Placement, now: float) -> list[Effect]:
        """Start as many pushes as copies are missing, and see whether it is durable."""
        effects: list[Effect] = []
        timeout_s = self._parameters.transfer_timeout_s(placement.record.record_bytes)
        places = self._places(placement.adopted) if placement.is_short else []
        for peer in placement.chosen([peer for peer in places if not placement.is_tried(peer.id)]):
            transfer = self._number()
            placement.pushing[transfer] = Pushing(peer, now)
            self._of_push[transfer] = placement.record.key
            self._deadlines.set(("push", transfer), now + timeout_s + self._parameters.delay_max_s)
            self._deadlines.set(("slow", transfer), now + self._patience_s(placement))
            effects.append(Push(transfer, peer, placement.record))
        if placement.failed and placement.is_short and RETRY not in self._deadlines:
            self._deadlines.set(RETRY, now + self._parameters.retry_max_s)
        return effects + self._judge(placement, now)

    def _patience_s(self, placement: Placement) -> float:
        """How long a push may take before another place is tried: measured by the first that was done, half of all time before; but
        whoever is only busy is not passed over."""
        if placement.fastest_s is not None:
            measured_s = SLOWER_MAX * placement.fastest_s
        else:
            measured_s = self._parameters.transfer_timeout_s(placement.record.record_bytes) / 2
        return max(measured_s, self._parameters.probe_timeout_s)

    def _judge(self, placement: Placement, now: float) -> list[Effect]:
        """Is it durable now? Then, or where it cannot be, a newer version need not wait for it."""
        present = {peer.id for peer in self._places(placement.adopted)}
        needed = min(self._parameters.write_quorum, len(present))
        if placement.durable or not needed or len(placement.holders.keys() & present) < needed:
            return [] if placement.is_under_way else self._go_on(placement.record.key, now)
        placement.durable = True
        if placement.missing_abroad() > 0:
            self._mend_soon(now)
        said: list[Effect] = [] if placement.adopted else [Durable(placement.record, tuple(placement.holders))]
        return said + self._go_on(placement.record.key, now)

    def _go_on(self, key: RecordKey, now: float) -> list[Effect]:
        """To the version that waits, where there is one."""
        newer = self._next.pop(key, None)
        return self._supersede(newer, now, adopted=self._placed[key].adopted) if newer is not None else []

    # --- what becomes of it -------------------------------------------------------------------------------------------

    def ended(self, transfer: int, outcome: str, reason: str, now: float) -> list[Effect]:
        key = self._of_push.get(transfer)
        if key is None:
            return []
        placement = self._placed[key]
        push = self._forget(placement, transfer)
        if outcome == "stored":
            return self._stored(placement, push, now)
        (placement.refused if outcome == "refused" else placement.failed).add(push.peer.id)
        fact = Notify("replica_refused", {"holder": push.peer, "version": placement.record.version, "reason": reason})
        return [fact, *self._mend(placement, now, self._place)]

    def _mend(self, placement: Placement, now: float, place: Callable[[Placement, float], list[Effect]]) -> list[Effect]:
        """A copy, or one on its way, is lost. Where a newer version waits, this one is not worth another transfer."""
        key = placement.record.key
        return self._go_on(key, now) if key in self._next else place(placement, now)

    def _place_in_time(self, placement: Placement, now: float) -> list[Effect]:
        """Bring what is missing: soon, where a quorum of our own record is left; else now."""
        if placement.adopted or len(placement.holders) < self._parameters.write_quorum:
            return self._place(placement, now)
        if placement.is_short:
            self._mend_soon(now)
        return self._judge(placement, now)

    def _mend_soon(self, now: float) -> None:
        if MEND not in self._deadlines:
            self._deadlines.set(MEND, now + self._parameters.mend_after_s)

    def _stored(self, placement: Placement, push: Pushing, now: float) -> list[Effect]:
        if push.peer not in self._places(placement.adopted):
            return self._place(placement, now)  # others have come nearer meanwhile, or it lives anew
        placement.held_by(push.peer)
        if placement.fastest_s is None:
            placement.fastest_s = now - push.began
            patience_s = self._patience_s(placement)
            for transfer, other in placement.pushing.items():
                if not other.slow:
                    self._deadlines.set(("slow", transfer), max(other.began + patience_s, now))
        return [*self._cancel(placement, placement.needless()), *self._judge(placement, now)]

    def found(self, record: RecordSummary, holder: Peer, now: float) -> list[Effect]:
        """This peer says that it holds this. Where it is the very version that is placed (a newer one may wait): one push less."""
        placement = self._placed[record.key]
        if record != placement.record or placement.complete or placement.is_tried(holder.id):
            return []
        if holder not in self._places(placement.adopted):
            return []
        placement.held_by(holder)
        return [*self._cancel(placement, placement.needless()), *self._judge(placement, now)]

    def is_slow(self, transfer: int, now: float) -> list[Effect]:
        """Its time is not over, but others are faster: it is passed over, and counts where it is done all the same. Where a newer version
        waits, the store has this one no more, and nobody else can be given it."""
        key = self._of_push.get(transfer)
        if key is None or key in self._next:
            return []
        placement = self._placed[key]
        push = placement.pushing[transfer]
        push.slow = True
        fact = Notify("replica_slow", {"holder": push.peer, "version": placement.record.version})
        return [fact, *self._place(placement, now)]

    def leaf_set_changed(self, now: float) -> list[Effect]:
        """Upkeep: the places of now shall hold the newest versions."""
        effects: list[Effect] = []
        present = {adopted: set(self._places(adopted)) for adopted in {placement.adopted for placement in self._placed.values()}}
        for placement in list(self._placed.values()):
            there = present[placement.adopted]
            placement.holders = {identifier: peer for identifier, peer in placement.holders.items() if peer in there}
            placement.refused.clear()
            placement.failed.clear()
            effects += self._place_in_time(placement, now)
        return effects

    def try_again(self, now: float) -> list[Effect]:
        """Those that failed."""
        for placement in self._placed.values():
            placement.failed.clear()
        return self.mend(now)

    def mend(self, now: float) -> list[Effect]:
        """Bring all copies that are missing now."""
        return [effect for placement in list(self._placed.values()) for effect in self._place(placement, now)]

    def died(self, peer: Peer, now: float) -> list[Effect]:
        """This life of the peer is over, and the copy that it had."""
        effects: list[Effect] = []
        for placement in list(self._placed.values()):
            gone = [t for t, push in placement.pushing.items() if push.peer.id == peer.id and push.peer.incarnation <= peer.incarnation]
            effects += self._cancel(placement, gone)
            holder = placement.holders.get(peer.id)
            if holder is not None and holder.incarnation <= peer.incarnation:
                del placement.holders[peer.id]
                gone.append(0)
            if gone:
                effects += self._mend(placement, now, self._place_in_time)
        return effects

    def check_invariants(self) -> None:
        for key, placement in self._placed.items():
            assert len(placement.holders) <= placement.copies, "more copies than k"
            assert all(("push", transfer) in self._deadlines for transfer in placement.pushing), "a push without a deadline"
            assert all(self._of_push.get(transfer) == key for transfer in placement.pushing), "a push of nothing"
        assert len(self._of_push) == sum(len(placement.pushing) for placement in self._placed.values()), "a push of nothing"
        for key, record in self._next.items():
            under_way = self._placed[key]
            assert under_way.pushing, "a version that waits for nothing"
            assert under_way.record.order < record.order, "an older version waits for a newer one"
