"""The worker: turns the manager's orders into jobs, one at a time, and what they yield into contributions.

1. The newest order counts, and says all: those that were missed before it are not asked for. It ends the job under way after the present
   iteration, and at once the wait until a record is durable, or with the manager; what of that is still asked for is taken up again.
2. A job starts from the order's theta: held already, fetched from the parent in the tree, or from the root.
3. A job that was restored from a checkpoint goes on at its next iteration; one that was finished is not done again: its record is
   brought once more. A job is known by phase, round and theta's digest: a round that is announced anew from another theta (a manager
   that lost everything, say) is other work.
4. A contribution is brought to the manager when its record is durable, so that no later life can find itself before what the manager has.
   One that was made in mode drop is replicated when an order of another mode asks for it.
5. Whoever does not answer is asked again with growing waits, until the order is superseded: by another, or by a later root than gave it.
6. An order that names who trains is not for the others: they rest, and keep what they have learnt.
7. Before its first job it looks once more for its newest record, where it may have begun where that is not (doubt.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fmrec_agent.dispatcher import Dispatcher
from fmrec_agent.doubt import Doubt, Known
from fmrec_agent.learning.learner import Contribution, Job, LearnerError, Role, Tensors
from fmrec_agent.trainer import Snapshot, Trainer, opened_state
from protocol.aio.bulk import BulkError
from protocol.aio.driver import Driver
from protocol.aio.opening import opened
from protocol.aio.store import RecordStore
from protocol.errors import LocalProtocolError
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.knowledge import Data, Knowledge
from protocol.overlay.events import RecordHeld, Replicate
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Phase, RoundOpen
from protocol.wire.values import RecordSummary

Result = TypeVar("Result")

log = logging.getLogger("fmrec.worker")

NOBODY = NodeId(0)


@dataclass(frozen=True, slots=True)
class Order:
    """What the manager wants, and who passed it on."""

    body: RoundOpen
    parent: Peer


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that was done, from the theta of this digest, and its record."""

    phase: Phase
    round: int
    theta: bytes
    record: RecordSummary
    data: Data


@contextmanager
def _sealing(what: str) -> Iterator[None]:
    """LearnerError where what the learner gave has no form as a record."""
    try:
        yield
    except LocalProtocolError as error:
        raise LearnerError(f"{what} cannot be made a record: {error}") from error


class Worker:
    """Works off one agent's orders in one tree."""

    def __init__(
        self,
        trainer: Trainer,
        dispatcher: Dispatcher,
        driver: Driver,
        store: RecordStore,
        tree: TreeId,
        role: Role,
        parameters: OverlayParameters,
        restore_newest: Callable[[], Awaitable[None]],
    ) -> None:
        """restore_newest: looks for this agent's newest record and, where it is newer than what is known here, restore()s it."""
        self._trainer = trainer
        self._dispatcher = dispatcher
        self._driver = driver
        self._store = store
        self._tree = tree
        self._role = role
        self._parameters = parameters
        self._restore_newest = restore_newest
        self._doubt = Doubt(parameters)
        self._order: Order | None = None
        self._news = asyncio.Event()
        self._finished: Finished | None = None
        """The last contribution, for whoever asks again."""
        self.doing = "looking for what an earlier life knew"
        self.gaps = 0
        """How often orders were missed."""

    @property
    def order(self) -> Order | None:
        """The newest order."""
        return self._order

    def ordered(self, body: RoundOpen, parent: Peer, gap: bool = False) -> None:
        """A new order has come down the tree. gap: some before it were missed. It counts all the same (rule 1), but that is said."""
        if gap:
            self.gaps += 1
            log.info("orders before this one, %s of round %d, were missed", body.phase, body.round)
        self._order = Order(body, parent)
        if body.phase == "done":
            self._dispatcher.close()
        else:
            self._dispatcher.open()
        self._news.set()
        self._trainer.stop()

    async def restore(self, record: RecordSummary, knowledge: Knowledge) -> None:
        """Go on from this agent's own newest record. LearnerError where it is not this learner's."""
        self._dispatcher.restored(record)
        # It is ours to keep k copies of again, until the next version is there.
        self._driver.dispatch(Replicate(record))
        if knowledge.phase in ("train", "adapt"):
            done, total, extra = opened_state(knowledge.state)
            theta = knowledge.theta
            kept = knowledge.tensors.get("state", {})
            await self._trainer.restore(
                Snapshot(knowledge.phase, knowledge.round, theta, done, total, knowledge.iteration, knowledge.loss, kept, extra)
            )
            held = self._store.get(*record.key)
            if knowledge.complete and held is not None:
                self._finished = Finished(knowledge.phase, knowledge.round, theta, *held)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled. LearnerError where the learner cannot go on, or gives what cannot be kept."""
        self._doubt.began, self.doing = asyncio.get_running_loop().time(), "waiting for orders"
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                order = self._order
                if order is not None:
                    await self._work(order)
        finally:
            self._trainer.close()
            self._dispatcher.give_up_snapshots()

    async def _work(self, order: Order) -> None:
        body = order.body
        if body.mode == "exact" and self._dispatcher.rounded:
            raise LearnerError(
                "its replicas lose bits (replica_precision = bf16) and the tree's recovery is exact, which loses none: "
                "set replica_precision = full here, or recovery = substitute at the manager"
            )
        if body.phase == "init" and body.asked == self._driver.node.self_peer.id:
            await self._make_theta(order)
        elif body.phase == "train" and self._role == "source":
            if not body.chosen or self._driver.node.self_peer.id in body.chosen:
                await self._contribute(order, "train")
        elif body.phase == "adapt" and self._role == "target":
            await self._contribute(order, "adapt")
        self.doing = "done" if body.phase == "done" else "waiting for orders"

    async def _make_theta(self, order: Order) -> None:
        """theta_0, from the seed."""
        self.doing = "making theta_0"
        theta = await self._trainer.initial_parameters(order.body.seed)
        me = self._driver.node.self_peer
        knowledge = Knowledge(me.id, self._tree, 0, 0, "init", order.body.round, 0, True, tensors={"theta": dict(theta)})
        with _sealing("theta_0 that it makes"):
            record, data = await self._dispatcher.checkpoint(knowledge, replicate=False)
        await self._bring(order, record, data)

    async def _contribute(self, order: Order, kind: Literal["train", "adapt"]) -> None:
        body = order.body
        replicate = body.mode != "drop"
        if replicate and not self._doubt.sure and not await self._make_sure(order):
            return
        digest = body.theta_digest
        finished = self._finished
        if finished is not None and (finished.phase, finished.round, finished.theta) == (kind, body.round, digest):
            await self._bring_durable(order, finished, replicate)
            return
        theta = None
        if not self._trainer.holds(kind, body.round, digest):
            self.doing = f"fetching theta of round {body.round}"
            theta = await self._theta(order)
            if theta is None or self._order is not order:
                return
        self.doing = f"{kind} of round {body.round}"
        job = Job(kind, body.round, body.seed)
        done = await self._trainer.run(job, theta, digest, self._snapshot_taken if replicate else None)
        if done is None:
            return
        record, data = await self._seal(*done, replicate)
        self._finished = Finished(kind, body.round, digest, record, data)
        await self._bring_durable(order, self._finished, replicate)

    async def _bring_durable(self, order: Order, finished: Finished, replicate: bool) -> None:
        """Rule 4."""
        record = finished.record
        if replicate:
            self._dispatcher.replicate(record, finished.data)
            self.doing = f"making version {record.version} durable"
            patience_s = self._parameters.transfer_timeout_s(record.record_bytes)
            while self._order is order and not await self._unless_superseded(self._dispatcher.durable(record.version, patience_s)):
                self.doing = f"version {record.version} is not durable: too few neighbours hold it"
        await self._bring(order, record, finished.data)

    async def _make_sure(self, order: Order) -> bool:
        """Rule 7. False: another order came meanwhile."""
        loop, doubt, wait_s = asyncio.get_running_loop(), self._doubt, self._parameters.retry_min_s
        while doubt.must_look(order.body, self._known(), loop.time()):
            began, last, lacks = loop.time(), doubt.is_last, doubt.lacks(order.body, self._known())
            self.doing = "looking for what an earlier life knew" + (f": {lacks}" if lacks else "")
            if early_s := doubt.early_s(began):
                await self._superseded_within(early_s)
                if self._order is not order:
                    return False
            await self._restore_newest()
            lacks = doubt.lacks(order.body, self._known())
            if lacks and not last:
                await self._superseded_within(wait_s)
            doubt.looked(loop.time() - began)
            if self._order is not order:
                return False
            if lacks and last:
                log.error("%s: what this agent may have learnt between them is lost", lacks)
                self._dispatcher.give_up_missing()
                doubt.give_up()
            wait_s = min(2 * wait_s, self._parameters.retry_max_s)
        return True

    def _known(self) -> Known:
        trainer, dispatcher = self._trainer, self._dispatcher
        return Known(trainer.round, trainer.done >= trainer.total, dispatcher.found_version, dispatcher.missing)

    async def _seal(self, contribution: Contribution, last: Snapshot, replicate: bool) -> tuple[RecordSummary, Data]:
        """The finished job as a record: the contribution, and the state that the next job starts from."""
        if not math.isfinite(contribution.loss):
            log.error("round %d: the loss is %s: the manager will refuse this contribution", last.round, contribution.loss)
        with _sealing(f"what it brings for round {last.round}"):
            contributed = {"contribution": dict(contribution.tensors), "state": dict(last.tensors)}
            figures = {"loss": contribution.loss, "samples": contribution.samples, "metrics": dict(contribution.metrics)}
            knowledge = self._knowledge(last, contributed, complete=True, **figures)
            return await self._dispatcher.checkpoint(knowledge, replicate=replicate)

    def _snapshot_taken(self, last: Snapshot) -> None:
        """In the middle of a job: seal and disperse in the background, training goes on."""
        self._dispatcher.snapshot(self._knowledge(last, {"state": dict(last.tensors)}, complete=False, loss=last.loss))

    def _knowledge(self, last: Snapshot, tensors: Mapping[str, Tensors], *, complete: bool, **figures: Any) -> Knowledge:
        """Of this snapshot; whose it is, and which version, is the dispatcher's to say."""
        where = last.phase, last.round, last.iteration
        return Knowledge(
            NOBODY, self._tree, 0, 0, *where, complete, theta=last.theta, state=last.sealed_state(), tensors=tensors, **figures
        )

    # --- the network --------------------------------------------------------------------------------------------------

    async def _theta(self, order: Order) -> Tensors | None:
        """The order's theta, or None where the order was superseded before anyone gave it."""
        wanted = order.body.theta
        if wanted is None:
            return None
        wait_s = self._parameters.retry_min_s
        while self._order is order:
            held = self._store.get(wanted.owner, wanted.tree, wanted.version)
            # By digest: a version that an earlier life of the manager could not commit may have been made again.
            if held is None or held[0].digest != wanted.digest:
                held = await self._fetch(order, wanted)
            if held is not None:
                return (await opened(*held, {"theta"})).tensors["theta"]
            await self._superseded_within(wait_s)
            wait_s = min(2 * wait_s, self._parameters.retry_max_s)
        return None

    async def _fetch(self, order: Order, wanted: RecordSummary) -> tuple[RecordSummary, Data] | None:
        """From the parent, which may be fetching it itself; else from the root. None where neither has this very record."""
        sources = {order.parent.id: order.parent, order.body.holder.id: order.body.holder}
        for peer in sources.values():
            try:
                got = await self._driver.fetch(peer, wanted.owner, wanted.tree, wanted.version, self._parameters.probe_timeout_s)
            except BulkError as error:
                log.info("theta of round %d is not to be had from %s: %s", order.body.round, peer, error)
                continue
            if self._store.put(*got):
                self._driver.dispatch(RecordHeld(got[0]))
            if got[0].digest == wanted.digest:
                return got
            log.info("theta of round %d is not to be had from %s: it has another version %d", order.body.round, peer, got[0].version)
        return None

    async def _bring(self, order: Order, record: RecordSummary, data: Data) -> None:
        """The record to the manager; again with growing waits until it is taken, refused, or no longer asked for."""
        wait_s, level = self._parameters.retry_min_s, logging.INFO
        while self._order is order:
            if self._driver.node.outdated(order.body.holder):
                self.doing = f"waiting for the orders of a later root than gave round {order.body.round}"
                await self._superseded_within(self._parameters.retry_max_s)
                continue
            self.doing = f"bringing version {record.version} to the manager"
            outcome = await self._unless_superseded(self._driver.upload(order.body.holder, record, data))
            if outcome is None or outcome.outcome == "stored":
                return
            if outcome.outcome == "refused":
                log.warning("round %d: the manager refused version %d: %s", order.body.round, record.version, outcome.reason)
                return
            log.log(level, "the manager does not take version %d yet: %s", record.version, outcome.reason)
            level = logging.DEBUG
            await self._superseded_within(wait_s)
            wait_s = min(2 * wait_s, self._parameters.retry_max_s)

    async def _unless_superseded(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """What it comes to; None, and it is cancelled, where another order comes before that."""
        task, news = asyncio.ensure_future(work), asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({task, news}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            news.cancel()
            task.cancel()
            await asyncio.wait({task, news})

    async def _superseded_within(self, seconds: float) -> None:
        """Wait so long, or until another order comes."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return
