"""A ring of real nodes in one process, on loopback: a manager that keeps what it is brought, and agents with all their parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from fmrec_agent.dispatcher import Dispatcher
from fmrec_agent.high_water import HighWater
from fmrec_agent.learning.learner import Role
from fmrec_agent.retriever import Retriever
from fmrec_agent.trainer import Trainer
from fmrec_agent.worker import Worker
from protocol.aio.connections import Connections
from protocol.aio.driver import Driver
from protocol.aio.store import RecordStore
from protocol.identifiers import Address, NodeId, Peer, agent_id, tree_id
from protocol.knowledge import Data, Knowledge, open_record, seal
from protocol.overlay.effects import Activated, Durable, Effect, MembersChanged, MulticastReceived, RetrievalEnded
from protocol.overlay.events import CreateTree, JoinTree, SendMulticast, Started
from protocol.overlay.node import OverlayNode
from protocol.parameters import OverlayParameters
from protocol.wire.messages import Phase, RecoveryMode, RoundOpen
from protocol.wire.values import MemberInfo, RecordSummary
from scripts.local_cluster import free_ports
from tests.agent.counting import Counting

TREE = tree_id("main", "counting")
PARAMETERS = OverlayParameters()


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for it, with a deadline."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"not within {timeout_s} s"
        await asyncio.sleep(0.002)


def free_port() -> int:
    """One below 32768 that nobody listens on."""
    return free_ports(1)


@dataclass
class Host:
    """One node of the ring, with its store, and what it was told."""

    identifier: NodeId
    incarnation: int = 1
    effects: list[Effect] = field(default_factory=list)

    async def listen(self, port: int | None = None) -> None:
        self.connections = Connections("c", PARAMETERS)
        address = await self.connections.listen("127.0.0.1", port or free_port())
        self.me = Peer(self.identifier, address.host, address.port, self.incarnation)
        self.store = RecordStore(None, 1 << 24, print)
        self.node = OverlayNode(self.me, PARAMETERS, Random(str(self.me)))
        self.driver = Driver(self.node, self.connections, self.store, self, PARAMETERS)
        self.driver.start()

    async def enter(self, *seeds: Address) -> None:
        self.driver.dispatch(Started(seeds))
        await until(lambda: any(isinstance(effect, Activated) for effect in self.effects))

    def __call__(self, effect: Effect) -> None:
        self.effects.append(effect)

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        return "nobody takes anything here"

    async def close(self) -> None:
        """As a kill would: no goodbye."""
        await self.driver.close()
        await self.connections.close()
        await self.store.close()


@dataclass
class Manager(Host):
    """Takes what it is brought, unless `refuses` says why not; makes orders."""

    refuses: str | None = None
    brought: list[tuple[RecordSummary, Knowledge]] = field(default_factory=list)
    on_brought: Callable[[RecordSummary], None] = lambda summary: None

    async def on_upload(self, summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        self.on_brought(summary)
        self.brought.append((summary, open_record(summary, data)))
        return self.refuses

    def theta(self, number: int, *, version: int = 0, incarnation: int = 0, keep: bool = True) -> RecordSummary:
        """theta of this round as a record, which can be fetched here where it is kept."""
        knowledge = Knowledge(
            TREE, TREE, version or number + 1, incarnation or self.incarnation, "train", number, 0, False,
            tensors={"theta": {"w": np.full(3, number + 0.5 * (incarnation or self.incarnation))}},
        )  # fmt: skip
        record, data = seal(knowledge)
        if keep:
            self.store.put(record, data)
        return record

    def order(self, phase: Phase, number: int, mode: RecoveryMode = "exact", *, asked: NodeId | None = None) -> RoundOpen:
        theta = self.theta(number) if phase in ("train", "adapt") else None
        return RoundOpen(phase, number, 1, mode, self.me, theta, asked, b"theta of round %d" % number)

    def joined(self) -> set[str]:
        """The names that have come up the tree."""
        return {info.name for effect in self.effects if isinstance(effect, MembersChanged) for info in effect.joined}

    def multicast(self, body: RoundOpen) -> None:
        self.driver.dispatch(SendMulticast(TREE, body))


@dataclass
class Agent(Host):
    """An agent without its process: what fmrec_agent/daemon.py composes."""

    learner: Counting = field(default_factory=Counting)
    role: Role = "source"
    checkpoint_every: int = 4
    high_water: HighWater = field(default_factory=HighWater)

    async def listen(self, port: int | None = None) -> None:
        await super().listen(port)
        self.trainer = Trainer(self.checkpoint_every)
        await self.trainer.load(lambda: self.learner)
        self.dispatcher = Dispatcher(self.driver, self.store, TREE, high_water=self.high_water)
        self.retriever = Retriever(self.driver, self.store, PARAMETERS)
        self.worker = Worker(self.trainer, self.dispatcher, self.driver, self.store, TREE, self.role, PARAMETERS, self.restore)
        self.working: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """From the agent's own newest record, where it is newer than what it knows."""
        found = await asyncio.wait_for(self.retriever.newest(self.identifier, TREE), 10)
        known = self.dispatcher.restored_from
        if found is not None and (known is None or found[0].order > known.order):
            await self.worker.restore(*found)

    def work(self) -> None:
        self.working = asyncio.create_task(self.worker.run())

    def join(self, name: str) -> None:
        self.driver.dispatch(JoinTree(TREE, MemberInfo(self.me, name, self.role, 1)))

    def __call__(self, effect: Effect) -> None:
        super().__call__(effect)
        match effect:
            case Durable():
                self.dispatcher.on_durable(effect)
            case RetrievalEnded():
                self.retriever.on_ended(effect)
            case MulticastReceived():
                self.worker.ordered(effect.body, effect.parent)

    async def close(self) -> None:
        if self.working is not None:
            self.working.cancel()
            await asyncio.gather(self.working, return_exceptions=True)
        self.trainer.close()
        await super().close()


class Ring:
    """Starts hosts, one after the other into one ring, and closes them all."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []

    async def manager(self) -> Manager:
        manager = Manager(TREE)
        await self.enter(manager)
        manager.driver.dispatch(CreateTree(TREE))
        return manager

    async def agent(
        self,
        name: str,
        *,
        incarnation: int = 1,
        learner: Counting | None = None,
        role: Role = "source",
        high_water: HighWater | None = None,
    ) -> Agent:
        """high_water: that of an earlier life, whose launcher starts this one."""
        known = high_water if high_water is not None else HighWater()
        agent = Agent(agent_id("c", name), incarnation, learner=learner or Counting(), role=role, high_water=known)
        await self.enter(agent)
        agent.work()
        return agent

    async def enter(self, host: Host) -> None:
        seeds = [each.me.address for each in self.hosts]
        await host.listen()
        self.hosts.append(host)
        await host.enter(*seeds)

    async def kill(self, host: Host) -> None:
        self.hosts.remove(host)
        await host.close()

    async def close(self) -> None:
        for host in self.hosts:
            await host.close()
