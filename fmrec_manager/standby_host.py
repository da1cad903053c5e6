"""The standby's process side: a node of the ring like any other, with an id of its own, that watches the roots of the trees that are not
rooted in this process.

It holds replicas as every node does, and is a place through which agents can join when the manager is gone: name both to them. What each
tree's standby decides is in standby.py; here its questions go to the ring, and the answers come back. The record that a look has found is
handed on with the verdict, so that theta is there already when the tree is taken over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from random import Random

from fmrec_manager.ledger import Ledger
from fmrec_manager.standby import AskForRoot, LookForRecord, Patience, Sound, Standby, StandbyOrder, TakeOver
from protocol.aio.connections import Connections
from protocol.aio.driver import Driver
from protocol.aio.store import RecordStore
from protocol.errors import RecordInvalid
from protocol.identifiers import Address, Peer, TreeId, agent_id
from protocol.knowledge import Data, open_record
from protocol.overlay.effects import Effect, ElectorAnswered, Notify, Quit, RetrievalEnded, RootAnswered
from protocol.overlay.events import AskElectors, AskRoot, RecordHeld, Retrieve, Started
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters
from protocol.wire.values import MemberInfo, RecordSummary

log = logging.getLogger("fmrec.standby")

HELD_BYTES_MAX = 8 << 30
Found = tuple[RecordSummary, Data]


def patience_of(parameters: OverlayParameters) -> Patience:
    """A ring that repairs itself has settled after a trial's dial; an election that is to be had takes no longer than a look-up."""
    return Patience(
        interval_s=parameters.heartbeat_interval_s,
        settle_s=parameters.heartbeat_interval_s,
        patience_s=parameters.look_up_timeout_s + parameters.transfer_timeout_s(0),
        electors_max=parameters.leaf_set_size,
    )


class StandbyHost:
    """Watches `trees`, by name, but for those that are `rooted` here. take_over(name, term, the record found, reason) is called for each
    tree that is to be rooted, and not again before superseded(name)."""

    def __init__(
        self,
        cluster: str,
        address: Address,
        trees: dict[str, TreeId],
        parameters: OverlayParameters,
        connections: Connections,
        take_over: Callable[[str, int, Found | None, str], None],
        rooted: Collection[str] = (),
    ) -> None:
        self._address = address
        self.me = Peer(agent_id(cluster, f"standby {address}"), address.host, address.port, int(time.time() * 1000))
        self.standbys = {name: Standby(tree, patience_of(parameters)) for name, tree in trees.items()}
        for name in rooted:
            self.standbys[name].roots_it()
        self._names = list(trees)  # a question's number is its tree's place here
        self._take_over = take_over
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._said = dict.fromkeys(self._names, "")
        """The reason of each that was last told."""
        self.store = RecordStore(None, HELD_BYTES_MAX, log.warning)
        self.node = OverlayNode(self.me, parameters, Random(f"{self.me.id}/{self.me.incarnation}"))
        self.driver = Driver(self.node, connections, self.store, self, parameters)

    def start(self, seeds: Iterable[Address], hints: Iterable[Address], held: Iterable[Found] = ()) -> None:
        """Enter the ring, and watch. held: records that an earlier life has left on disk. Our own address among the seeds is that of
        another node of this process."""
        self.driver.start()
        self._hold(held)
        seeds = tuple(seeds)
        self.driver.dispatch(Started(seeds, tuple(hints), shared=self._address in seeds))
        self._tick()

    def superseded(self, name: str, term: int, held: Iterable[Found]) -> None:
        """The tree was rooted in this process, and has, or had, another root after that one. held: what that one held."""
        self._hold(held)
        self.standbys[name].superseded(term)
        self._tick()

    def _hold(self, held: Iterable[Found]) -> None:
        for record, data in held:
            if self.store.is_full(record) is None and self.store.put(record, data):
                self.driver.dispatch(RecordHeld(record))

    async def close(self) -> None:
        """Say goodbye and stop."""
        if self._timer is not None:
            self._timer.cancel()
        await self.driver.leave()
        await self.store.close()

    def document(self) -> dict[str, object]:
        """What is watched, for the status document."""
        return {
            name: {"stage": s.stage, "reason": s.reason, "root": str(s.root.address) if s.root is not None else None, "term": s.term}
            for name, s in self.standbys.items()
        }

    # --- from the overlay ---------------------------------------------------------------------------------------------

    def __call__(self, effect: Effect) -> None:
        now = self._loop.time()
        match effect:
            case RootAnswered(request):
                alone = all(peer.address == self._address for peer in self.node.pastry.leaf_set)
                self._told(request, lambda standby: standby.answered(effect, now, alone=alone))
            case ElectorAnswered(request):
                self._told(request, lambda standby: standby.heard(effect, now))
            case RetrievalEnded(request):
                members, term = self._on_record(request, effect)
                certain = effect.none_left
                self._told(request, partial(Standby.found, members=members, term=term, certain=certain, now=now, clock=_clock_ms()))
            case Quit(reason):
                if not self.driver.failed.done():
                    self.driver.failed.set_exception(RuntimeError(reason))
            case Notify():
                log.debug("%s %s", effect.fact, " ".join(f"{key}={value}" for key, value in effect.details.items()))

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        """A standby takes no contributions."""
        return "this is a standby, not the manager"

    def _told(self, request: int, tell: Callable[[Standby], list[StandbyOrder]]) -> None:
        name = self._names[request]
        self._obey(name, tell(self.standbys[name]))

    def _on_record(self, request: int, ended: RetrievalEnded) -> tuple[tuple[MemberInfo, ...], int]:
        """The members that the tree's record names, and its term; ((), 0) where there is none that can be read."""
        tree = self.standbys[self._names[request]].tree
        held = self.store.get(tree, tree) if ended.record is not None else None
        if held is None:
            return (), 0
        try:
            return Ledger.read(open_record(*held).state).infos(), held[0].incarnation
        except RecordInvalid as error:
            log.error("%s: the record of the tree, version %d, cannot be used: %s", self._names[request], held[0].version, error)
            return (), 0

    # --- orders -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        for name, standby in self.standbys.items():
            self._obey(name, standby.tick(now))

    def _obey(self, name: str, orders: Iterable[StandbyOrder]) -> None:
        number, standby = self._names.index(name), self.standbys[name]
        for order in orders:
            match order:
                case AskForRoot():
                    self.driver.dispatch(AskRoot(number, standby.tree))
                case LookForRecord():
                    if standby.reason != self._said[name]:
                        self._said[name] = standby.reason
                        log.info("%s: %s", name, standby.reason)
                    self.driver.dispatch(Retrieve(number, standby.tree, standby.tree))
                case Sound(term, electors):
                    self.driver.dispatch(AskElectors(number, standby.tree, term, 0, electors, sounding=True))
                case TakeOver(term, reason):
                    self._take_over(name, term, self.store.get(standby.tree, standby.tree), reason)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = [when for standby in self.standbys.values() if (when := standby.next_deadline()) is not None]
        self._timer = self._loop.call_at(min(due), self._tick) if due else None


def _clock_ms() -> int:
    return int(time.time() * 1000)
