"""One tree in the manager's process: its overlay node, its root's decisions, its theta; carries out what the root orders.

Everything that takes time (sealing, aggregating) runs in a thread and comes back to the loop; the root is told one thing at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrec_manager.ledger import Ledger, ledger_of
from fmrec_manager.orders import Aggregate, Announce, Ask, Commit, LocateOwn, Order, Recover, Say, StepDown
from fmrec_manager.plan import Plan, Resumed
from fmrec_manager.report import Facts, digest_of, digest_of_owners, tree_document
from fmrec_manager.root import Root
from fmrec_manager.round import Terms
from fmrec_manager.selection import GRADIENT_NORM, Seen, Selection
from fmrec_manager.settings import ManagerSettings, TreeSettings, noticed_s
from protocol.aio.connections import Connections
from protocol.aio.driver import Driver
from protocol.aio.opening import opened
from protocol.aio.process import UserError
from protocol.aio.store import RecordStore
from protocol.errors import OutOfMemory, RecordInvalid
from protocol.identifiers import Address, Peer, tree_id
from protocol.knowledge import Array, Data, Knowledge, open_record, seal
from protocol.overlay.effects import Activated, Durable, Effect, ElectorAnswered, MembersChanged, Notify, Quit, RetrievalEnded
from protocol.overlay.events import AskElectors, CreateTree, RecordHeld, Replicate, Retrieve, SendMulticast, Started
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters
from protocol.wire.codec import ARRAY_MAX
from protocol.wire.messages import Phase, RoundOpen
from protocol.wire.values import RecordSummary, SubtreeDigest

if TYPE_CHECKING:
    from fmrec_manager.aggregation import Aggregator

OWN_RECORD = 0
"""The request number of the look-up for the tree's own record; recoveries count from 1."""
RECORD_STORE_BYTES_MAX = 8 << 30
DIFFERENCE = "difference"
"""The metric by which an agent says that it sends a difference of parameters, to be averaged, and no gradient."""
USED = {"theta", "contribution"}
"""The groups of tensors that a manager reads in the records of agents; their state is none of its business."""
DIGITS_SAID = 16
"""Of theta's digest, in the log line of a commit."""
QUIET_FACTS = {"peer_cleared", "peer_suspected", "tree_attached", "tree_refused", "seed_failed"}


def plan_of(settings: TreeSettings, parameters: OverlayParameters) -> Plan:
    """The root's plan out of the settings."""
    terms = Terms(
        settings.recovery,
        settings.round_deadline_s,
        settings.exact_wait_s,
        settings.quorum,
        settings.staleness_max,
        settings.staleness_discount,
        settings.deadline_quantile,
        settings.deadline_factor if settings.deadline == "learnt" else 0.0,
        noticed_s(parameters),
        settings.rule.contributions_min,
        str(settings.rule),
    )
    return Plan(
        rounds=settings.rounds,
        sources_min=settings.sources_min,
        targets_min=settings.targets_min,
        adapt=settings.adapt,
        terms=terms,
        orphan_max_s=parameters.orphan_max_s,
        ask_timeout_s=parameters.silence_max_s + parameters.look_up_timeout_s + parameters.join_timeout_s,
        silence_max_s=parameters.silence_max_s,
        electors_max=parameters.leaf_set_size,
        answer_max_s=parameters.probe_timeout_s,
        selection=Selection(
            settings.selection,
            settings.selection_fraction,
            settings.seed,
            settings.rule.contributions_min,
            settings.nufm_lambda_1,
            settings.nufm_lambda_2,
        ),
    )


class TreeHost:
    """The tree `name` of a manager that listens at `address`. load() it, which takes seconds, then start() it: a standby waits between."""

    def __init__(
        self,
        name: str,
        settings: TreeSettings,
        manager: ManagerSettings,
        parameters: OverlayParameters,
        connections: Connections,
        address: Address,
    ) -> None:
        self.name = name
        self.settings = settings
        self.parameters = parameters
        self.tree = tree_id(name, settings.task)
        self._address = address
        self._connections = connections
        self._log = logging.getLogger(f"fmrec.tree.{name}")
        self._device = manager.device
        self._directory: Path | None = manager.state_dir / "trees" / name if manager.state_dir is not None else None
        self.store = RecordStore(self._directory, RECORD_STORE_BYTES_MAX, self._log.warning)
        self._loop = asyncio.get_running_loop()
        self.superseded: asyncio.Future[StepDown] = self._loop.create_future()
        """Why another roots this tree now, and with which term."""
        self._aggregator: Aggregator | None = None
        self.theta: dict[str, Array] = {}
        self.theta_record: RecordSummary | None = None
        self.theta_digest = b""
        """Of theta in the newest version."""
        self._knowledge: dict[bytes, Knowledge] = {}
        """Contributions of the round under way, and what dead members have left, by digest."""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.unix_offset = time.time() - self._loop.time()
        """What makes a Unix time of the loop's, once and for all."""
        self.ended: float | None = None
        self._step_checked = False

    @property
    def aggregator(self) -> Aggregator:
        assert self._aggregator is not None, "load() comes first"
        return self._aggregator

    # --- life ---------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the disk and make the aggregator (which imports torch: seconds). UserError where the device is not there."""
        await self.store.load()
        self._aggregator = await asyncio.to_thread(self._make_aggregator)

    def _make_aggregator(self) -> Aggregator:
        from fmrec_manager.aggregation import AggregationError, Aggregator

        s = self.settings
        try:
            return Aggregator(self._device, s.server_optimizer, s.server_rate, s.momentum, s.weighting, s.rule)
        except AggregationError as error:
            raise UserError(str(error)) from error

    def start(self, seeds: Iterable[Address], hints: Iterable[Address], term: int = 0) -> None:
        """Enter the ring and root the tree, with this term or a later one: the clock's, and later than that of the record on disk.

        Our own address among the seeds is that of another node of this process.
        """
        held = self.store.get(self.tree, self.tree)
        term = max(term, int(time.time() * 1000), held[0].incarnation + 1 if held is not None else 0)
        self.me = Peer(self.tree, self._address.host, self._address.port, term)
        self.node = OverlayNode(self.me, self.parameters, Random(f"{self.tree}/{term}"))
        self.root = Root(self.tree, plan_of(self.settings, self.parameters))
        self.driver = Driver(self.node, self._connections, self.store, self, self.parameters)
        self.driver.start()
        for record in self.store.held():
            self.driver.dispatch(RecordHeld(record))
        self.driver.dispatch(CreateTree(self.tree))
        seeds = tuple(seeds)
        self.driver.dispatch(Started(seeds, tuple(hints), shared=self._address in seeds))

    async def close(self) -> None:
        """Say goodbye and stop; who was superseded has no goodbye to say, for the tree has a root."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await (self.driver.close() if self.superseded.done() else self.driver.leave())
        await self.store.close()

    # --- from the overlay ---------------------------------------------------------------------------------------------

    def __call__(self, effect: Effect) -> None:
        now = self._loop.time()
        match effect:
            case Activated():
                self._obey(self.root.start(now))
            case MembersChanged():
                self._obey(self.root.members_changed(effect.joined, effect.departed, now))
            case Durable():
                self._obey(self.root.durable(effect.record.version, now))
            case RetrievalEnded() if effect.request == OWN_RECORD:
                # Only while it is looked for: to take an old theta in the middle of a run would undo it.
                found = self._resume(effect) if self.root.stage == "locating" else None
                self._obey(self.root.located(found, effect.none_left, now, self.store.unread(self.tree, self.tree)))
            case RetrievalEnded():
                self._spawn(self._retrieved(effect))
            case ElectorAnswered():
                self._obey(self.root.elector_answered(effect, effect.request, now))
            case Quit(_, by):
                self._obey(self.root.superseded(f"is rooted at {by.address}, or was last, with term {by.incarnation}", by.incarnation))
            case Notify():
                level = logging.DEBUG if effect.fact in QUIET_FACTS else logging.INFO
                self._log.log(level, "%s %s", effect.fact, " ".join(f"{key}={value}" for key, value in effect.details.items()))

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        """A contribution, or theta_0: None when it is taken, else why not."""
        if summary.tree != self.tree:
            return f"tree {summary.tree.short} is not rooted here"
        try:
            knowledge = await opened(summary, data, USED)
        except RecordInvalid as error:
            return str(error)
        now = self._loop.time()
        unfit = _unfit(knowledge)
        if unfit is not None:
            self._log.warning("round %d: the record of %s is refused: %s", summary.round, summary.owner.short, unfit)
            self._obey(self.root.unfit(summary, knowledge.phase, unfit, now))
            return unfit
        if (foreign := self._foreign(summary, knowledge)) is not None:
            return foreign
        refused, orders = self.root.uploaded(summary, knowledge.phase, _figures(knowledge), now)
        if refused is not None:
            return refused
        if knowledge.phase == "init":
            self.theta = {name: np.array(tensor) for name, tensor in knowledge.tensors["theta"].items()}
        else:
            self._knowledge[summary.digest] = knowledge
        self._obey(orders)
        return None

    async def _retrieved(self, effect: RetrievalEnded) -> None:
        figures: dict[str, float] = {}
        record = effect.record
        if record is not None:
            try:
                knowledge = await self._recovered(record)
            except RecordInvalid as error:
                effect = replace(effect, record=None, reason=str(error))
            else:
                figures = _figures(knowledge)
                self._knowledge[record.digest] = knowledge
        self._obey(self.root.retrieved(effect, figures, self._loop.time()))

    async def _recovered(self, record: RecordSummary) -> Knowledge:
        """What is in a record that was found. RecordInvalid where it cannot be read, or be used for what it says it is."""
        held = self.store.get(*record.key)
        if held is None or held[0] != record:
            raise RecordInvalid(f"version {record.version} of {record.owner.short} is no longer held here")
        # A checkpoint in the middle of a job holds nothing that a manager reads but its figures.
        knowledge = await opened(*held, USED if record.complete else ())
        unfit = (_unfit(knowledge) or self._foreign(record, knowledge)) if record.complete else None
        if unfit is not None:
            raise RecordInvalid(f"the record of {record.owner.short}, version {record.version}, cannot be used: {unfit}")
        return knowledge

    def _foreign(self, record: RecordSummary, knowledge: Knowledge) -> str | None:
        """Why this was made before the tree began anew, by its number or by the theta that it was trained from; None where it need not
        be. The round is the one that is open, or else the next one."""
        number, theta = self.root.next_round, self.theta_digest
        if record.round > number:
            return f"it is of round {record.round}, and this run is in round {number}"
        if record.round < number or knowledge.theta in (b"", theta) or not theta:
            return None
        return f"it was trained from another theta than that of {knowledge.phase} round {number}"

    def _resume(self, effect: RetrievalEnded) -> Resumed | None:
        """What the tree's own newest record says; None where there is none."""
        held = self.store.get(self.tree, self.tree) if effect.record is not None else None
        if held is None:
            return None
        from fmrec_manager.aggregation import AggregationError

        record = held[0]
        if record.incarnation >= self.me.incarnation:
            self._obey(self.root.superseded(f"has had a root of term {record.incarnation} already", record.incarnation))
            return None
        try:
            knowledge = open_record(*held)
            ledger = Ledger.read(knowledge.state)
            theta = {name: np.array(tensor) for name, tensor in knowledge.tensors.get("theta", {}).items()}
            if not theta:
                raise RecordInvalid("it holds no theta")
            if ledger.seed != self.settings.seed:
                raise RecordInvalid(f"it is of a run with seed {ledger.seed}, and the settings say {self.settings.seed}")
            self.aggregator.restore(knowledge.tensors.get("server", {}))
        except OutOfMemory as error:
            self._fail(UserError(f"tree {self.name} cannot go on yet: {error}, and start again"))
            return None
        except (RecordInvalid, AggregationError) as error:
            # Never a silent restart from zero (promise P2).
            problem = f"tree {self.name} cannot go on from its record, version {record.version}: {error}"
            self._fail(UserError(f"{problem}. Set tree.{self.name} as it was, or name another tree and state directory"))
            return None
        self.theta, self.theta_record = theta, record
        return ledger.resumed(record.version, record.incarnation, record.round)

    # --- orders -------------------------------------------------------------------------------------------------------

    def _obey(self, orders: Iterable[Order]) -> None:
        for order in orders:
            match order:
                case Announce(phase, number, asked, chosen):
                    s, theta = self.settings, self.theta_record
                    # Of more than a frame can name all train, and who was not chosen is refused.
                    named = chosen if len(chosen) <= ARRAY_MAX else ()
                    body = RoundOpen(phase, number, s.seed, s.recovery, self.me, theta, asked, self.theta_digest, named)
                    self.driver.dispatch(SendMulticast(self.tree, body))
                    if phase == "done":
                        self.ended = self._loop.time()
                case LocateOwn():
                    self.driver.dispatch(Retrieve(OWN_RECORD, self.tree, self.tree))
                case Recover(number, agent):
                    self.driver.dispatch(Retrieve(number, agent, self.tree))
                case Aggregate(number, slots):
                    ways = Counter(slot.way for slot in slots.values())
                    told = " ".join(f"{way}={count}" for way, count in sorted(ways.items()))
                    owners = digest_of_owners(slot.record.owner for slot in slots.values())
                    self._log.info("aggregates round=%d contributions=%d owners=%s %s", number, len(slots), owners, told)
                    self._spawn(self._aggregate(order))
                case Commit(version, number):
                    self._spawn(self._commit(version, number))
                case Ask(version, electors):
                    self.driver.dispatch(AskElectors(version, self.tree, self.me.incarnation, version, electors))
                case StepDown():
                    if not self.superseded.done():
                        self.superseded.set_result(order)
                case Say(fact, details):
                    if fact in ("committed", "goes_on"):
                        details = {**details, "theta": self.theta_digest.hex()[:DIGITS_SAID]}
                    self._log.info("%s %s", fact, " ".join(f"{key}={value}" for key, value in details.items()))
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = self.root.next_deadline(self._loop.time())
        self._timer = None if when is None else self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._obey(self.root.tick(self._loop.time()))

    async def _aggregate(self, order: Aggregate) -> None:
        """Fold the contributions into theta, off the loop; AggregationError gives up those that are at fault."""
        from fmrec_manager.aggregation import AggregationError

        knowledge = {agent: self._knowledge[slot.record.digest] for agent, slot in order.slots.items()}
        parts = {a: (k.tensors["contribution"], k.samples, order.slots[a].factor) for a, k in knowledge.items()}
        try:
            theta, weights = await asyncio.to_thread(self.aggregator.aggregate, self.theta, parts)
        except AggregationError as error:
            if not error.agents:
                raise UserError(f"tree {self.name}, round {order.round}: {error}") from error
            self._obey(self.root.unusable(error.agents, str(error), self._loop.time()))
            return
        self.theta = theta
        kept = {found.record.digest for found in self.root.left_behind.values() if found.record is not None}
        self._knowledge = {digest: known for digest, known in self._knowledge.items() if digest in kept}
        loss = sum(weights[agent] * (k.loss or 0.0) for agent, k in sorted(knowledge.items()))
        self._check_step(knowledge.values())
        self._obey(self.root.aggregated(loss, self._loop.time(), {agent: _seen(k) for agent, k in knowledge.items()}))

    def _check_step(self, contributions: Iterable[Knowledge]) -> None:
        """Said once: the server's optimizer takes for gradients what is none."""
        optimizer = self.settings.server_optimizer
        if optimizer == "sgd" or self._step_checked or not any(DIFFERENCE in knowledge.metrics for knowledge in contributions):
            return
        self._step_checked = True
        self._log.warning(
            "the agents send differences of parameters, and server_optimizer %s takes them for gradients: that learns otherwise than their "
            "method's source says; for the mean of the parameters set tree.%s.server_optimizer=sgd and tree.%s.server_rate=1.0",
            optimizer, self.name, self.name,
        )  # fmt: skip

    async def _commit(self, version: int, number: int) -> None:
        """Seal theta and the round state, hold them here and on disk, and bring them to the leaf set."""
        ledger = ledger_of(self.settings.seed, self.root)
        tensors = {"theta": self.theta, "server": self.aggregator.state()}
        phase: Phase = "train" if number < self.settings.rounds else "adapt"
        knowledge = Knowledge(
            self.tree, self.tree, version, self.me.incarnation, phase, number, 0, False,
            state=ledger.model_dump_json().encode(), tensors=tensors,
        )  # fmt: skip
        record, data = await asyncio.to_thread(seal, knowledge)
        self.theta_digest = await asyncio.to_thread(digest_of, self.theta)
        self.theta_record = record
        self.store.put(record, data)
        self._obey(self.root.sealed(version, self.parameters.transfer_timeout_s(record.record_bytes), self._loop.time()))
        self.driver.dispatch(Replicate(record))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.driver.failed.done():
            self.driver.failed.set_exception(error)

    def document(self) -> dict[str, object]:
        """This tree's part of the status document."""
        tree = self.node.scribe.trees.get(self.tree)
        digest = tree.digest() if tree is not None else SubtreeDigest()
        progress = {branch.peer.id: branch.progress for branch in tree.children.values()} if tree is not None else {}
        now = self._loop.time()
        return tree_document(Facts(self.root, self.settings, self.theta_digest, digest, progress, now, self.ended, self.unix_offset))


def _unfit(knowledge: Knowledge) -> str | None:
    """Why these figures cannot be used, None where they can."""
    remedy = "lower the rate or look at the data of this agent"
    group = "theta" if knowledge.phase == "init" else "contribution"
    tensors = knowledge.tensors.get(group, {})
    if not tensors and knowledge.phase != "adapt":
        return f"the record holds no {group}"
    if knowledge.phase == "init" and not any(tensor.size for tensor in tensors.values()):
        return "theta_0 holds no values: look at the model that the learner makes"
    if knowledge.phase != "init" and (knowledge.loss is None or not math.isfinite(knowledge.loss)):
        return f"the loss is {knowledge.loss}: {remedy}"
    for name, tensor in tensors.items():
        if knowledge.phase != "adapt" and tensor.dtype not in (np.float32, np.float64):
            return f"tensor {name} is {tensor.dtype}: only float32 and float64 are aggregated"
        if not np.isfinite(tensor).all():
            return f"{name} holds values that are not finite: {remedy}"
    return None


def _figures(knowledge: Knowledge) -> dict[str, float]:
    """What a contribution reports: its loss and metrics."""
    return {"loss": knowledge.loss if knowledge.loss is not None else math.nan, **knowledge.metrics}


def _seen(knowledge: Knowledge) -> Seen:
    """What a contribution says that later rounds' selection reads."""
    norm = knowledge.metrics.get(GRADIENT_NORM, math.nan)
    return Seen(knowledge.samples, norm if math.isfinite(norm) else None)
