"""The agents' side of a simulated run: each life restores its own record, works off the orders that come down the tree, checkpoints its
record after every step, and brings its contribution to the root when it is durable. What fmrec_agent/ does, without the learning, and
without a launcher that remembers: each is as one that was started by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fmrec_agent.doubt import Doubt, Known
from protocol.identifiers import TreeId
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.overlay.retrieval import asks_on
from protocol.wire.messages import RoundOpen
from protocol.wire.values import MemberInfo, RecordSummary
from scripts.simulation.application import Application
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.durability import Durability
from scripts.simulation.learning import Content, Contents, begin, first_theta, step

OWN_RECORD = 1
"""The number of a life's request for its own record."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a round asks of an agent. step_s: between two iterations, and two checkpoints, of the mean agent."""

    seed: int
    iterations: int = 4
    step_s: float = 0.5
    record_bytes: int = 1 << 20


class Agent(Application):
    """One life of one agent."""

    def __init__(self, agents: Agents, process: Process, pace_s: float) -> None:
        super().__init__(agents.cluster, process)
        self.version = 0
        self.order: RoundOpen | None = None
        self.restored = False
        self._agents = agents
        self._pace_s = pace_s
        self._asks = 0
        self._doubt = Doubt(agents.cluster.parameters)
        self._wait_s = agents.cluster.parameters.retry_min_s
        """Until it looks again for what it lacks."""
        self._looking: float | None = None
        """Since when it looks for its record once more."""
        self._found: fx.RetrievalEnded | None = None
        """What it would go on from, until it has."""
        self._job: Content | None = None
        """The round under way, or the last that was done."""
        self._sealed: RecordSummary | None = None
        """The finished contribution, to be brought."""
        self._durable = 0
        self._stepping = self._bringing = False

    # --- restoring ----------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """For our own record."""
        self._asks += 1
        self._tell(ev.Retrieve(OWN_RECORD, self.process.peer.id, self._agents.tree))

    def retrieved(self, ended: fx.RetrievalEnded) -> None:
        record = ended.record
        if asks_on(ended, self._asks):
            self._later(self._agents.cluster.parameters.retry_min_s, self.ask)
            return
        self._found = ended
        if record is not None and record.version > self.version:
            content = self._agents.contents.open(record)
            self.version, self._job = record.version, content
            self._sealed = record if content.complete else None
            self._tell(ev.Replicate(record))
        if not self.restored:
            self.restored, self._doubt.began = True, self._agents.cluster.clock.now
            member = MemberInfo(self.process.peer, self.process.name, "source", 1)
            self._tell(ev.JoinTree(self._agents.tree, member))
        if self._looking is None:
            self._go_on()
        elif self._lacks() and not self._doubt.is_last:
            self._later(self._wait_s, self._looked)
            self._wait_s = min(2 * self._wait_s, self._agents.cluster.parameters.retry_max_s)
        else:
            self._looked()

    def _known(self) -> Known:
        job = self._job
        return Known(job.round, job.complete, self.version, 0) if job is not None else Known(-1, True, self.version, 0)

    def _lacks(self) -> bool:
        return self.order is not None and bool(self._doubt.lacks(self.order, self._known()))

    def _is_sure(self, body: RoundOpen) -> bool:
        """Is what it goes on from the newest that there is? Where it may not be, it looks once more."""
        now = self._agents.cluster.clock.now
        if self._looking is None and body.mode != "drop" and self._doubt.must_look(body, self._known(), now):
            self._looking, self._asks = now, 0
            self._later(self._doubt.early_s(now), self.ask)
        return self._looking is None

    def _looked(self) -> None:
        assert self._looking is not None, "nothing was looked for"
        last = self._doubt.is_last
        self._doubt.looked(self._agents.cluster.clock.now - self._looking)
        self._looking = None
        if last and self._lacks():
            self._doubt.give_up()
        self._go_on()

    # --- working ------------------------------------------------------------------------------------------------------

    def ordered(self, body: RoundOpen) -> None:
        self.order = body
        if body.theta is not None and self._trains(body) and self._agents.cluster.transfers.put(self.process, body.theta):
            self._tell(ev.RecordHeld(body.theta))
        self._go_on()

    def _trains(self, body: RoundOpen) -> bool:
        """Who does not has no use for theta, and does not fetch it."""
        return body.phase == "train" and (not body.chosen or self.process.peer.id in body.chosen)

    def _go_on(self) -> None:
        """What the order asks for next, where nothing is under way."""
        body = self.order
        if body is None or not self.restored:
            return
        if body.phase == "init" and body.asked == self.process.peer.id:
            self._bring(self._agents.contents.seal(self.process.peer, self._agents.tree, 0, self._agents.theta, 1000), body)
        if not self._trains(body) or body.theta is None or not self._is_sure(body):
            return
        if self._found is not None:
            self._agents.durability.restored(self.process, self._found)
            self._found = None
        job = self._job
        if job is None or job.round != body.round:
            theta = self._agents.contents.open(body.theta).value
            state = begin(self._agents.work.seed, self.process.peer.id, body.round, theta)
            self._job, self._sealed = Content("train", body.round, 0, False, state), None
        if self._sealed is not None:
            self._bring_when_durable()
        elif not self._stepping:
            self._stepping = True
            self._later(self._pace_s, self._step)

    def _step(self) -> None:
        """One iteration, and a checkpoint."""
        self._stepping = False
        job, body = self._job, self.order
        if job is None or body is None or body.phase != "train" or job.round != body.round or job.complete:
            self._go_on()
            return
        done = job.done + 1
        self._job = Content("train", job.round, done, done == self._agents.work.iterations, step(job.value))
        record = self._seal(self._job)
        self._sealed = record if self._job.complete else None
        self._go_on()

    def _seal(self, content: Content) -> RecordSummary:
        self.version += 1
        agents = self._agents
        record = agents.contents.seal(self.process.peer, agents.tree, self.version, content, agents.work.record_bytes)
        agents.cluster.transfers.put(self.process, record)
        if self.order is None or self.order.mode != "drop":
            self._tell(ev.Replicate(record))
        return record

    # --- bringing -----------------------------------------------------------------------------------------------------

    def durable(self, record: RecordSummary) -> None:
        self._agents.durability.durable(self.process, record)
        self._durable = max(self._durable, record.version)
        self._bring_when_durable()

    def _bring_when_durable(self) -> None:
        body, record = self.order, self._sealed
        if record is None or body is None or self._found is not None or (record.version > self._durable and body.mode != "drop"):
            return
        if (body.phase, body.round) == ("train", record.round):
            self._bring(record, body)

    def _bring(self, record: RecordSummary, body: RoundOpen) -> None:
        if self._bringing:
            return
        self._bringing = True

        def outcome(word: str, reason: str) -> None:
            self._bringing = False
            if self.order is not body:
                self._go_on()
            elif word == "failed":
                self._later(self._agents.cluster.parameters.retry_max_s / 4, self._go_on)

        self._agents.cluster.transfers.upload(self.process, body.holder, record, outcome)

    def words(self) -> str:
        """For the story of a round that does not end."""
        order = f"{self.order.phase} {self.order.round}" if self.order is not None else "no order"
        job = f"round {self._job.round}, {self._job.done} done" if self._job is not None else "no job"
        return (
            f"{order}; {job}; version {self.version}, durable {self._durable}; restored {self.restored} after {self._asks} asks; "
            f"stepping {self._stepping}, bringing {self._bringing}"
        )


class Agents:
    """All agents of one run. disk_kept_share: how many of those that start again still have their records."""

    def __init__(
        self, cluster: Cluster, tree: TreeId, work: Work, contents: Contents, durability: Durability, rng: Random, disk_kept_share: float
    ) -> None:
        self.cluster = cluster
        self.tree = tree
        self.work = work
        self.contents = contents
        self.durability = durability
        self.theta = Content("init", 0, 0, True, first_theta(work.seed))
        self.lives: dict[str, Agent] = {}
        """The latest life under each name."""
        self._rng = rng
        self._disk_kept_share = disk_kept_share

    def started(self, process: Process, before: Process | None) -> None:
        """A life begins: perhaps with the records of the one before."""
        self.lives[process.name] = Agent(self, process, self.work.step_s * self._rng.uniform(0.8, 1.2))
        if before is None or self._rng.random() >= self._disk_kept_share:
            return
        for record in before.store.values():
            self.cluster.transfers.put(process, record)
            self.cluster.clock.after(0.0, self.cluster.tell, process, ev.RecordHeld(record))

    def told(self, process: Process, effect: fx.Effect) -> None:
        agent = self.lives[process.name]
        match effect:
            case fx.Activated():
                if not agent.restored:
                    agent.ask()
            case fx.RetrievalEnded():
                agent.retrieved(effect)
            case fx.MulticastReceived():
                agent.ordered(effect.body)
            case fx.Durable():
                agent.durable(effect.record)
