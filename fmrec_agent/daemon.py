"""One agent: its overlay node, dispatcher, retriever and worker, composed, from the first bind to the last goodbye.

Order of a start: build the learner (which takes longest), lock and load what the disk holds, bind, enter the ring, restore the own
newest record from disk or neighbours, and only then join the tree: the first order finds an agent that knows what it knew. The lock comes
after the training thread has its own descriptors (descriptors.py): a copy there would hold it when the process is killed, for longer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fmrec_agent.dispatcher import Dispatcher
from fmrec_agent.high_water import HighWater
from fmrec_agent.learning.learner import Learner, LearnerError, LearnerFailed
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.retriever import Retriever
from fmrec_agent.settings import AgentSettings
from fmrec_agent.trainer import Trainer
from fmrec_agent.turns import Turns
from fmrec_agent.worker import Worker
from protocol.aio.connections import Connections
from protocol.aio.driver import Driver
from protocol.aio.folder_lock import FolderLock
from protocol.aio.peer_book import PeerBook
from protocol.aio.process import UserError, check_identity, listen_port, try_port
from protocol.aio.promises import PromiseFile
from protocol.aio.store import RecordStore
from protocol.aio.synced_file import replace_file, sync_directory
from protocol.errors import OutOfMemory, RecordInvalid
from protocol.identifiers import Address, Peer, agent_id, tree_id
from protocol.knowledge import Data
from protocol.overlay.effects import Activated, Durable, Effect, MulticastReceived, Notify, Quit, RetrievalEnded
from protocol.overlay.events import JoinTree, RecordHeld, ReportProgress, Started
from protocol.overlay.node import OverlayNode
from protocol.wire.values import MemberInfo, Progress, RecordSummary

log = logging.getLogger("fmrec.agent")

SWITCH_INTERVAL_S = 0.001
"""How long the training thread may keep the interpreter to itself: heartbeats wait no longer than this."""
PEERS_TRIED = 8
"""Of those that the last life knew, neighbours first, when no seed answers; then the seeds' turn comes again."""
ROOTLESS_JOINS = 10
"""A tree to whose root no way was found for as long as so many JOINs may take has none, perhaps for ever: that is said."""
LEFT_WITHIN_S = 0.5
"""A killed process leaves its port and its folder within milliseconds of what tells its launcher of its death, in either order."""
INCARNATION_MAX = 2**64 - 1
"""No message carries a greater one."""
LOUD_FACTS = {"ring_lost", "slept", "record_forgotten"}
"""What the overlay notices and a user of one agent wants to know; the rest is for log_level debug, and the manager's log."""


class MayPass(UserError):
    """What a user should mend, though the next life may be spared it."""


class AgentDaemon:
    """The agent at `index` of these settings. `ready` is told the bound port once the agent listens; in_training_thread, turns: as
    Trainer's; high_water: as Dispatcher's."""

    def __init__(
        self,
        settings: AgentSettings,
        index: int,
        ready: Callable[[Peer], None],
        in_training_thread: Callable[[], None] = lambda: None,
        turns: Turns | None = None,
        high_water: HighWater | None = None,
    ) -> None:
        self.settings = settings
        self.index = index
        self.name = settings.name_of(index)
        self.role = settings.role_of(index)
        self.tree = tree_id(settings.tree, settings.task)
        self._ready = ready
        self._in_training_thread = in_training_thread
        self._turns = turns
        self._high_water = high_water
        self._stop = asyncio.Event()
        self._active = asyncio.Event()
        self._reason = ""
        self._resumed: dict[str, int] | None = None
        self._told: Progress | None = None
        self._lock: FolderLock | None = None
        self._rooted = False
        """Has our tree had a root in this life? So its name and task are right."""
        self._waits_for = ""
        """What a tree without a root waits for, in words, once it is time to say so."""

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> int:
        """Live until `stop` is set, a stop request comes or a newer life takes over; the exit code."""
        self._stop = stop
        check_identity()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.parameters = self.settings.overlay.parameters()
        self.trainer = trainer = Trainer(self.settings.checkpoint_every, self._in_training_thread, self._turns)
        if not await self._loaded():
            trainer.close()
            return 0
        if (folder := self._directory("")) is not None:
            self._lock = FolderLock(folder)
            await self._lock.take(LEFT_WITHIN_S)
        self.book = PeerBook(self._directory("peers.json"))
        self.store = RecordStore(self._directory("records"), self.settings.record_store_bytes_max, log.warning)
        await self.store.load()
        self.connections = Connections(self.settings.cluster, self.parameters)
        address = await self._listen()
        identifier = agent_id(self.settings.cluster, self.name, self.settings.zone)
        self.me = Peer(identifier, address.host, address.port, self._incarnation())
        path = self._directory("promises")
        promises = PromiseFile(path, log.warning) if path is not None else None
        chance = Random(f"{self.me.id}/{self.me.incarnation}")
        self.node = OverlayNode(self.me, self.parameters, chance, promises.read() if promises is not None else None)
        self.driver = Driver(self.node, self.connections, self.store, self, self.parameters, promises)
        self.dispatcher = Dispatcher(
            self.driver,
            self.store,
            self.tree,
            compress=self.settings.record_compression == "zstd",
            rounded=self.settings.replica_precision == "bf16",
            high_water=self._high_water,
        )
        self.retriever = Retriever(self.driver, self.store, self.parameters)
        self.worker = Worker(trainer, self.dispatcher, self.driver, self.store, self.tree, self.role, self.parameters, self._restore)
        self.connections.status_document = self.status
        self.connections.stop = self._stop.set
        self.driver.start()
        self._ready(self.me)
        working, stopping = asyncio.create_task(self._work()), asyncio.create_task(self._stop.wait())
        try:
            ends: list[asyncio.Future[Any]] = [stopping, working, self.driver.failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self.driver.failed.done():
                self.driver.failed.result()
            if working.done():
                working.result()
        except LearnerFailed as error:
            raise MayPass(f"{self.name} cannot go on learning: {error}") from error
        except LearnerError as error:
            raise UserError(f"{self.name} cannot go on learning: {error}") from error
        finally:
            stopping.cancel()
            await self._leave(working)
        if self._reason:
            log.warning("%s: %s", self.name, self._reason)
        return 0

    async def _loaded(self) -> bool:
        """The learner is built. False where the agent was asked to stop before that: a constructor that does not end is not waited for."""
        loading, stopping = asyncio.create_task(self.trainer.load(self._learner)), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            return loading.done()
        finally:
            loading.cancel()
            stopping.cancel()

    async def _work(self) -> None:
        for record in self.store.held():
            self.driver.dispatch(RecordHeld(record))
        self.driver.dispatch(Started(self.settings.seeds(), self.book.read()[:PEERS_TRIED]))
        await self._active.wait()
        await self._restore()
        if missing := self.dispatcher.missing:
            log.warning("%s: version %d was durable, and none as new is found here: it looks on before its first job", self.name, missing)
        member = MemberInfo(self.me, self.name, self.role, os.getpid())
        self.driver.dispatch(JoinTree(self.tree, member))
        reporting = asyncio.create_task(self._report())
        try:
            await self.worker.run()
        finally:
            reporting.cancel()

    async def _restore(self) -> None:
        """Our own newest record, wherever it is. None is a first start, or a loss, which the manager has then reported as one."""
        try:
            found = await self.retriever.newest(self.me.id, self.tree)
        except OutOfMemory as error:
            raise MayPass(f"{self.name} cannot go on from its newest record: {error}") from error
        except RecordInvalid as error:
            raise UserError(
                f"the newest record of {self.name} cannot be opened: {error}; start it with the version of FMRec that made the record, "
                "or under another name, from nothing"
            ) from error
        known = self.dispatcher.restored_from
        if found is None or (known is not None and found[0].order <= known.order):
            if known is None and not self.dispatcher.missing:
                log.info("%s: no record of an earlier life was found: starting from the beginning", self.name)
            return  # what there is, we go on from already
        record, knowledge = found
        self._resumed = {"version": record.version, "round": record.round, "iteration": record.iteration}
        try:
            await self.worker.restore(record, knowledge)
        except LearnerFailed:
            raise
        except LearnerError as error:
            raise UserError(f"the record of {self.name} (version {record.version}) does not fit its learner: {error}") from error
        log.info("%s: goes on from version %d, round %d, iteration %d", self.name, record.version, record.round, record.iteration)

    async def _report(self) -> None:
        """Progress goes up with the alive messages; and the peers are kept on disk."""
        loop = asyncio.get_running_loop()
        joined = loop.time()
        while True:
            self._tell_progress()
            self._look_for_root(loop.time() - joined)
            neighbours = [peer.address for peer in self.node.pastry.leaf_set]
            self.book.write(neighbours, (peer.address for peer in self.node.detector.lives()), self.me.address)
            await asyncio.sleep(self.parameters.heartbeat_interval_s / 2)

    def _tell_progress(self) -> None:
        trainer = self.trainer
        replicas = len(self.node.replication.holders((self.me.id, self.tree)))
        progress = Progress(trainer.round, trainer.iteration, trainer.loss, replicas)
        if progress != self._told:
            self._told = progress
            self.driver.dispatch(ReportProgress(self.tree, progress))

    def _look_for_root(self, since_s: float) -> None:
        """Say once where nobody roots our tree for too long: the manager may have been told another name, or another task."""
        tree = self.node.scribe.trees.get(self.tree)
        if self._rooted or (tree is not None and tree.reaches_root):
            self._rooted, self._waits_for = True, ""
        elif not self._waits_for and since_s > ROOTLESS_JOINS * self.parameters.join_timeout_s:
            name, task = self.settings.tree, self.settings.task
            self._waits_for = f"waiting for a manager that roots tree {name} of task {task}"
            log.warning(
                "%s: nobody roots tree %s of task %s: start a manager with it, or set tree and task as the manager's", self.name, name, task
            )

    async def _leave(self, working: asyncio.Task[None]) -> None:
        """Say goodbye, then close everything, each step with a bound. Who fails, or gives way to a later
        life of itself, says no goodbye: the agent has not left."""
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        in_order = self._stop.is_set() and not self._reason
        await (self.driver.leave() if in_order else self.driver.close())
        await self.connections.close()
        await self.store.close()
        if self._lock is not None:
            self._lock.release()

    # --- from the overlay ---------------------------------------------------------------------------------------------

    def __call__(self, effect: Effect) -> None:
        match effect:
            case Activated():
                self._active.set()
            case MulticastReceived():
                self.worker.ordered(effect.body, effect.parent, effect.gap)
            case Durable():
                self.dispatcher.on_durable(effect)
            case RetrievalEnded():
                self.retriever.on_ended(effect)
            case Quit():
                self._reason = effect.reason
                self._stop.set()
            case Notify():
                self._notice(effect)

    def _notice(self, effect: Notify) -> None:
        details = " ".join(f"{key}={value}" for key, value in effect.details.items())
        if effect.fact == "no_seed_reachable":
            tried = ", ".join(str(address) for address in effect.details["tried"])  # type: ignore[attr-defined]
            log.warning("no seed is reachable (tried %s): start the manager there, or name others with --join; trying again", tried)
        elif effect.fact == "store_full":
            remedy = "raise record_store_bytes_max or overlay.held_records_max, or lower overlay.forget_after_s where many are gone"
            log.warning("%s keeps no more records of others, %s: %s", self.name, effect.details["reason"], remedy)
        else:
            log.log(logging.INFO if effect.fact in LOUD_FACTS else logging.DEBUG, "%s: %s %s", self.name, effect.fact, details)

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        """Agents take no contributions."""
        return "this is an agent, not the manager"

    # --- parts --------------------------------------------------------------------------------------------------------

    def _learner(self) -> Learner:
        index = self.settings.index_in_role(self.index)
        try:
            return load_learner(self.settings.learning, name=self.name, role=self.role, index=index)
        except LearnerError as error:
            raise UserError(str(error)) from error

    def _directory(self, part: str) -> Path | None:
        return self.settings.state_dir / self.name / part if self.settings.state_dir is not None else None

    def _incarnation(self) -> int:
        """Milliseconds since the epoch, and at least one more than the last life's, where that is on disk."""
        now = int(time.time() * 1000)
        if self.settings.state_dir is None:
            return now
        path = self.settings.state_dir / self.name / "incarnation"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                now = _after_the_last(path, now)
            replace_file(path, (str(now).encode(),))
            sync_directory(path.parent)
        except OSError as error:
            log.warning("%s: the incarnation is not kept (%s): the clock alone tells this life from the last", path, error)
        return now

    async def _listen(self) -> Address:
        """The first port of ours that is free. Where there is one only, a life that was just killed may be about to leave it."""
        ports = self.settings.ports_of(self.index)
        if len(ports) == 1:
            await try_port(self.settings.host, ports[0], LEFT_WITHIN_S)
        for port in ports[:-1]:
            try:
                return await self.connections.listen(self.settings.host, port)
            except (OSError, ValueError) as error:
                if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                    return await listen_port(self.connections, self.settings.host, port)  # it says what is wrong
        return await listen_port(self.connections, self.settings.host, ports[-1])

    # --- status -------------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """The agent's state as a JSON object."""
        tree = self.node.scribe.trees.get(self.tree)
        trainer = self.trainer
        document = {
            "name": self.name,
            "id": str(self.me.id),
            "pid": os.getpid(),
            "address": str(self.me.address),
            "incarnation": self.me.incarnation,
            "role": self.role,
            "doing": self._waits_for or self.worker.doing,
            "phase": trainer.phase,
            "round": trainer.round,
            "iteration": trainer.iteration,
            "first_began_unix_s": trainer.first_began_unix_s,
            "first_iterated_unix_s": trainer.first_iterated_unix_s,
            "job": {"done": trainer.done, "total": trainer.total},
            "loss": trainer.loss,
            "version": self.dispatcher.version,
            "durable_version": self.dispatcher.durable_version,
            "durable_ms": round(1000 * self.dispatcher.durable_s, 3),
            "snapshot_ms": round(1000 * trainer.snapshot_s, 3),
            "snapshot_pause_ms": round(1000 * trainer.pause_s, 3),
            "replicas_on": [str(holder) for holder in self.node.replication.holders((self.me.id, self.tree))],
            "resumed_from": self._resumed,
            "records_held": len(self.store),
            "order_gaps": self.worker.gaps,
            "in_ring": self.node.pastry.active,
            "neighbours": len(self.node.pastry.leaf_set),
            "parent": str(tree.parent) if tree is not None and tree.parent is not None else None,
        }
        return json.dumps(document)


def _after_the_last(path: Path, now: int) -> int:
    """At least `now`, and more than the incarnation in the file, where that can be one."""
    try:
        last = int(path.read_text())
        if last >= INCARNATION_MAX:
            raise ValueError(f"no message carries a later one than {last}")
        return max(now, last + 1)
    except ValueError as error:
        log.warning("%s is torn (%s): the clock alone tells this life from the last", path, error)
        return now
