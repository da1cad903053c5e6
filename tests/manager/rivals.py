"""Managers that root one tree one after the other, and at the same time: real roots, real electors, real stores.

Who reaches whom, and who does what he has in mind when, is said by a story, or by chance (test_two_roots_in_stories.py, _by_chance.py). At
each announcement the world checks that nothing that was committed is lost (P6).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from fmrec_manager.ballot import Groups
from fmrec_manager.orders import Aggregate, Announce, Ask, Commit, LocateOwn, Order, StepDown
from fmrec_manager.plan import Resumed
from fmrec_manager.root import Root
from protocol.aio.store import RecordStore
from protocol.identifiers import NodeId, Peer
from protocol.overlay.effects import ElectorAnswered, Send
from protocol.overlay.terms import Terms
from protocol.parameters import OverlayParameters
from protocol.wire.electing import TermReply, TermRequest
from protocol.wire.values import Departed, MemberInfo, RecordSummary
from tests.manager.stage import FIGURES, TREE, info, named, plan, record

QUORUM = 2


@dataclass(frozen=True)
class Content:
    """What is in a version of the tree's record: for each version so far, the port of the root that made it; who is a member, and whose
    agreement it needs."""

    made_by: tuple[int, ...] = ()
    members: tuple[MemberInfo, ...] = ()
    put_to: Groups = ()


@dataclass
class Agent:
    """An elector and holder, whose failure detector knows nothing."""

    terms: Terms
    store: RecordStore

    def keep(self, by: Peer, brought: RecordSummary) -> bool:
        """As a driver does with a replica."""
        if self.terms.is_of_the_past(by) or self.store.admit(brought) is not None:
            return False
        self.store.put(brought, b"")
        return True

    @property
    def kept(self) -> RecordSummary | None:
        held = self.store.get(TREE, TREE)
        return held[0] if held is not None else None


@dataclass
class Manager:
    """One manager: its root, what it holds, and what it is about to do."""

    me: Peer
    root: Root
    holds: RecordSummary | None = None
    to_do: deque[Callable[[], list[Order]]] = field(default_factory=deque)
    superseded: bool = False


class World:
    """Agents, those `joined` of them that are members of the tree, and every manager there ever was. reach: whom a manager reaches now."""

    def __init__(self, seed: int, names: Iterable[str], joined: int, electors_max: int, reach: Callable[[], set[str]]) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.names = list(names)
        self.joined = self.names[:joined]
        self.agents = {
            name: Agent(
                Terms(info(name).peer, OverlayParameters(), lambda identifier: None, lambda identifier, now: False),
                RecordStore(None, 1 << 20, lambda said: None),
            )
            for name in self.names
        }
        self.lives = dict.fromkeys(self.names, 1)
        self.managers: list[Manager] = []
        self.contents: dict[bytes, Content] = {}
        """Of each record, by its digest."""
        self.announced: dict[int, tuple[int, ...]] = {}
        self.by: dict[int, set[int]] = {}
        """The managers that have announced each version, by their ports."""
        self._sources_min = joined
        self._electors_max = electors_max
        self._reach = reach

    def reborn(self, name: str) -> None:
        """The agent is killed, without a disk, and comes back; it holds what it held when its neighbours have brought that anew. The
        managers that it reaches hear of its death, or of its next life, or of both."""
        death = Departed(named(name), self.lives[name], "died", "connection refused")
        self.lives[name] += 1
        life = info(name, self.lives[name])
        self.agents[name].terms = Terms(life.peer, OverlayParameters(), lambda identifier: None, lambda identifier, now: False)
        for manager in self.managers:
            if name in self._reach():
                self.hears(manager, [], [death])
            if name in self._reach():
                self.hears(manager, [life], [])

    def hears(self, manager: Manager, joined: list[MemberInfo], departed: list[Departed]) -> None:
        """When its turn comes."""
        manager.to_do.append(lambda: manager.root.members_changed(joined, departed, self.now))

    def start(self, term: int | None = None) -> Manager:
        """Another root, of a later term where nothing is said, whoever roots the tree now."""
        port = 7001 + len(self.managers)
        me = Peer(TREE, "127.0.0.1", port, term or 1 + max((manager.me.incarnation for manager in self.managers), default=0))
        settings = plan("exact", rounds=1000, sources_min=self._sources_min, adapt=False, electors_max=self._electors_max)
        manager = Manager(me, Root(TREE, settings))
        self.managers.append(manager)
        self.obey(manager, manager.root.start(self.now))
        self.meet(manager, self.joined)
        return manager

    def meet(self, manager: Manager, names: Iterable[str]) -> None:
        """The manager hears that these are members."""
        self.obey(manager, manager.root.members_changed([info(name) for name in names], [], self.now))

    def act(self, manager: Manager) -> None:
        """It does the next thing that it had in mind, perhaps long after it had it in mind."""
        self.now += 0.05
        if manager.superseded:
            return
        if manager.to_do:
            self.obey(manager, manager.to_do.popleft()())
        elif (due := manager.root.next_deadline(self.now)) is not None and due <= self.now:
            self.obey(manager, manager.root.tick(self.now))

    def until(self, manager: Manager, ended: Callable[[], bool], steps: int = 300) -> None:
        """It goes on until this is so."""
        for _ in range(steps):
            if ended():
                return
            self.act(manager)
        raise AssertionError(f"after {steps} steps it is {manager.root.stage}: {manager.root.reason}")

    def obey(self, manager: Manager, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case LocateOwn():
                    manager.to_do.append(lambda: self.locate(manager))
                case Commit(version, number):
                    self.seal(manager, version, number)
                    manager.to_do.append(lambda version=version: self.bring(manager, version))  # type: ignore[misc]
                case Ask(version, electors):
                    ids = [peer.id for peer in electors]
                    manager.to_do.append(lambda version=version, ids=ids: self.ask(manager, version, ids))  # type: ignore[misc]
                case Aggregate():
                    manager.to_do.append(lambda: manager.root.aggregated(0.5, self.now))
                case Announce("init"):
                    manager.to_do.append(lambda: manager.root.uploaded(record("a", 0), "init", FIGURES, self.now)[1])
                case Announce("train", number):
                    self.announce(manager)
                    for name in self.names:
                        manager.to_do.append(
                            lambda name=name, number=number: manager.root.uploaded(record(name, number), "train", FIGURES, self.now)[1]  # type: ignore[misc]
                        )
                case StepDown():
                    manager.superseded = True

    def reached(self) -> dict[NodeId, Agent]:
        """Whom a manager reaches at this moment."""
        names = self._reach()
        return {named(name): agent for name, agent in self.agents.items() if name in names}

    def locate(self, manager: Manager) -> list[Order]:
        """What the reached say; certain where all were."""
        reached = self.reached()
        kept = [agent.kept for agent in reached.values() if agent.kept is not None]
        newest = max(kept, key=lambda each: each.order, default=None)
        found = None
        if manager.root.stage == "locating":
            manager.holds = newest
        if newest is not None:
            content = self.contents[newest.digest]
            found = Resumed(newest.version, newest.incarnation, newest.round, (0.5,) * newest.round, content.members, put_to=content.put_to)
        return manager.root.located(found, len(reached) == len(self.agents), self.now)

    def seal(self, manager: Manager, version: int, number: int) -> None:
        before = self.contents[manager.holds.digest] if manager.holds is not None else Content()
        content = Content((*before.made_by, manager.me.port), manager.root.on_record, manager.root.put_to)
        digest = sha256(f"{content.made_by}/{manager.me}".encode()).digest()
        self.contents[digest] = content
        manager.holds = RecordSummary(TREE, TREE, version, manager.me.incarnation, number, 0, False, 100, digest)

    def bring(self, manager: Manager, version: int) -> list[Order]:
        """To two of the reached that take it; else again."""
        brought = manager.holds
        if brought is None or brought.version != version or manager.root.stage != "committing":
            return []
        stored = [agent for agent in list(self.reached().values())[:3] if agent.keep(manager.me, brought)]
        if len(stored) < QUORUM:
            manager.to_do.append(lambda: self.bring(manager, version))
            return []
        return manager.root.durable(version, self.now)

    def ask(self, manager: Manager, version: int, electors: list[NodeId]) -> list[Order]:
        """The question reaches some, and some of their answers come back, each at its own time."""
        reached = self.reached()
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
                known = reply.promised, reply.version, reply.written
                word = ElectorAnswered(version, identifier, verdict, *known, remembers=reply.remembers)  # type: ignore[arg-type]
                manager.to_do.append(lambda word=word: manager.root.elector_answered(word, version, self.now))  # type: ignore[misc]
        return []

    def announce(self, manager: Manager) -> None:
        """The version is committed: it is what every other root has committed under that number, or will."""
        held = manager.holds
        assert held is not None
        assert held.version == manager.root.version
        content = self.contents[held.digest].made_by
        assert content[-1] == manager.me.port, "a root announces what it has written itself"
        for other in self.announced.values():
            common = min(len(other), len(content))
            assert content[:common] == other[:common], f"both {other} and {content} are committed: one of them is lost"
        self.announced[held.version] = content
        self.by.setdefault(held.version, set()).add(manager.me.port)
