"""Managers that hang, wake, are cut off, die and are followed: of all of them one alone commits each round, and none is lost (P6).

Real roots and real electors. The network between them is chance: at each step the world is cut anew, anybody may hang with what it was
about to do, and a later root may start at any time, whoever lives. No standby's care is needed for this: it holds though they fight.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fmrec_manager.orders import Aggregate, Announce, Ask, Commit, LocateOwn, Order, StepDown
from fmrec_manager.plan import Resumed
from fmrec_manager.root import Root
from protocol.identifiers import NodeId, Peer
from protocol.overlay.effects import ElectorAnswered, Send
from protocol.overlay.terms import Terms
from protocol.parameters import OverlayParameters
from protocol.wire.electing import TermReply, TermRequest
from tests.manager.stage import FIGURES, TREE, info, named, plan, record

NAMES = ("a", "b", "c", "d", "e")
QUORUM = 2
Content = tuple[int, ...]
"""What a version is made of: for each version so far, the term of the root that made it."""


@dataclass(frozen=True)
class Kept:
    """A record of the tree: its version, who wrote it, for which round, and what is in it."""

    version: int
    term: int
    round: int
    content: Content


@dataclass
class Agent:
    """An elector and holder."""

    terms: Terms
    kept: Kept | None = None

    def keep(self, by: Peer, brought: Kept) -> bool:
        """As a driver does with a replica."""
        newer = self.kept is not None and (self.kept.version, self.kept.term) > (brought.version, brought.term)
        if newer or self.terms.is_of_the_past(by):
            return False
        self.kept = brought
        return True


@dataclass
class Manager:
    """One manager: its root, what it holds, and what it is about to do."""

    me: Peer
    root: Root
    holds: Kept | None = None
    to_do: deque[Callable[[], list[Order]]] = field(default_factory=deque)
    superseded: bool = False


class World:
    """Five agents, and every manager there ever was."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.agents = {
            named(name): Agent(Terms(info(name).peer, OverlayParameters(), lambda identifier: None, lambda identifier, now: False))
            for name in NAMES
        }
        self.managers: list[Manager] = []
        self.announced: dict[int, Content] = {}
        self.by: dict[int, set[int]] = {}
        """The terms in which each version was announced as new."""

    def start(self) -> None:
        """A later root, whoever roots the tree now."""
        term = len(self.managers) + 1
        me = Peer(TREE, "127.0.0.1", 7000 + term, term)
        manager = Manager(me, Root(TREE, plan("exact", rounds=1000, sources_min=len(NAMES), adapt=False)))
        self.managers.append(manager)
        self.obey(manager, manager.root.start(self.now))
        self.obey(manager, manager.root.members_changed([info(name) for name in NAMES], [], self.now))

    def reached(self, manager: Manager) -> dict[NodeId, Agent]:
        """Whom the manager reaches at this moment: by chance."""
        share = self.chance.choice((0.3, 0.6, 1.0))
        return {identifier: agent for identifier, agent in self.agents.items() if self.chance.random() < share}

    def step(self) -> None:
        """Somebody does the next thing that it had in mind, perhaps long after it had it in mind."""
        self.now += 0.05
        if self.chance.random() < 0.01:
            self.start()
        manager = self.chance.choice(self.managers[-3:])
        if manager.superseded:
            return
        if manager.to_do:
            self.obey(manager, manager.to_do.popleft()())
        elif (due := manager.root.next_deadline(self.now)) is not None and due <= self.now:
            self.obey(manager, manager.root.tick(self.now))

    def obey(self, manager: Manager, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case LocateOwn():
                    manager.to_do.append(lambda: self.locate(manager))
                case Commit(version, number):
                    before = manager.holds.content if manager.holds is not None else ()
                    manager.holds = Kept(version, manager.me.incarnation, number, (*before, manager.me.incarnation))
                    manager.to_do.append(lambda version=version: self.bring(manager, version))  # type: ignore[misc]
                case Ask(version, electors):
                    ids = [peer.id for peer in electors]
                    manager.to_do.append(lambda version=version, ids=ids: self.ask(manager, version, ids))  # type: ignore[misc]
                case Aggregate():
                    manager.to_do.append(lambda: manager.root.aggregated(0.5, self.now) if manager.root.stage == "aggregating" else [])
                case Announce("init", number):
                    manager.to_do.append(lambda: manager.root.uploaded(record("a", 0), "init", FIGURES, self.now)[1])
                case Announce("train", number):
                    self.announce(manager)
                    for name in NAMES:
                        manager.to_do.append(
                            lambda name=name, number=number: manager.root.uploaded(record(name, number), "train", FIGURES, self.now)[1]  # type: ignore[misc]
                        )
                case StepDown():
                    manager.superseded = True

    def locate(self, manager: Manager) -> list[Order]:
        """What the reached say; certain where all were."""
        reached = self.reached(manager)
        kept = [agent.kept for agent in reached.values() if agent.kept is not None]
        newest = max(kept, key=lambda each: (each.version, each.term), default=None)
        found = None
        if manager.root.stage == "locating":
            manager.holds = newest
        if newest is not None:
            found = Resumed(newest.version, newest.term, newest.round, (0.5,) * newest.round, tuple(info(name) for name in NAMES))
        return manager.root.located(found, len(reached) == len(NAMES), self.now)

    def bring(self, manager: Manager, version: int) -> list[Order]:
        """To two of the reached that take it; else again."""
        brought = manager.holds
        if brought is None or brought.version != version or manager.root.stage != "committing":
            return []
        stored = [agent for agent in list(self.reached(manager).values())[:3] if agent.keep(manager.me, brought)]
        if len(stored) < QUORUM:
            manager.to_do.append(lambda: self.bring(manager, version))
            return []
        return manager.root.durable(version, self.now)

    def ask(self, manager: Manager, version: int, electors: list[NodeId]) -> list[Order]:
        """The question reaches some, and some of their answers come back, each at its own time."""
        reached = self.reached(manager)
        question = TermRequest(version, TREE, manager.me.incarnation, version)
        for identifier in electors:
            if identifier not in reached:
                continue
            (answer,) = reached[identifier].terms.term_requested(manager.me, question, self.now)
            assert isinstance(answer, Send)
            reply = answer.message
            assert isinstance(reply, TermReply)
            if self.chance.random() < 0.8:
                verdict = "granted" if reply.granted else "refused"
                word = ElectorAnswered(version, identifier, verdict, reply.promised, reply.version, reply.written)  # type: ignore[arg-type]
                manager.to_do.append(lambda word=word: manager.root.elector_answered(word, version, self.now))  # type: ignore[misc]
        return []

    def announce(self, manager: Manager) -> None:
        """The version is committed: it is what every other root has committed under that number, or will."""
        held = manager.holds
        assert held is not None
        assert held.version == manager.root.version
        known = self.announced.setdefault(held.version, held.content)
        assert known == held.content, f"version {held.version} is committed twice, as {known} and as {held.content}"
        assert held.term == manager.me.incarnation, "a root announces what it has written itself"
        self.by.setdefault(held.version, set()).add(held.term)
        for version, content in self.announced.items():
            if version < held.version:
                assert held.content[:version] == content, f"version {version} was committed as {content} and is lost in {held.content}"


@pytest.mark.parametrize("block", range(6))
def test_of_managers_that_fight_one_alone_commits_each_round_and_none_is_lost(block: int) -> None:
    committed = roots = 0
    for seed in range(25 * block, 25 * block + 25):
        world = World(seed)
        world.start()
        try:
            for _ in range(1500):
                world.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        assert all(len(terms) == 1 for terms in world.by.values()), f"seed {seed}: {world.by}"
        committed += len(world.announced)
        roots += sum(any(term in terms for terms in world.by.values()) for term in range(1, len(world.managers) + 1))
    assert committed > 200, "hardly anything is ever committed: the chances are wrong"
    assert roots > 50, "hardly any manager follows another: the chances are wrong"
