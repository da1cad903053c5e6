"""Records through deaths, hangs, cuts and replaced machines, each a story in virtual time, from a few seeds (P2; DESIGN 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.identifiers import agent_id, rank, tree_id, zone_of
from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.parameters import PlacementPolicy, loopback
from protocol.wire.codec import decode, encode
from protocol.wire.messages import LookUp, Route
from protocol.wire.values import RecordSummary
from scripts.simulation.cluster import Cluster, Process
from scripts.simulation.durability import repair_s

SEEDS = range(1, 3)
TREE = tree_id("main", "parking")
LARGE = 10_000_000
"""Bytes; a tenth of a second on the wire."""
K = loopback().replicas


class Story:
    """A ring of so many agents and a manager; the agent `owner` has a record."""

    def __init__(self, seed: int, nodes: int = 20, record_bytes: int = 1000, zones: int = 0, placement: PlacementPolicy = "local") -> None:
        self.cluster = Cluster(seed, replace(loopback(), placement=placement), codec=(encode, decode))
        self.zones = zones
        self.record_bytes = record_bytes
        self.manager = self.cluster.start("manager", TREE)
        for index in range(nodes - 1):
            self.start(f"agent-{index}")
            self.cluster.clock.run(0.01)
        self.until(self.cluster.view.ring_is_right)
        self.owner = self.cluster.processes["agent-3"]
        self.key = self.owner.peer.id, TREE

    def start(self, name: str, *, moved: bool = False) -> Process:
        zone = f"rack-{int(name.split('-')[1]) % self.zones}" if self.zones else ""
        return self.cluster.start(name, agent_id("test", name, zone), [self.cluster.processes["manager"].peer.address], moved=moved)

    def until(self, condition: Callable[[], bool], within_s: float = 20.0) -> None:
        assert self.cluster.clock.run_until(condition, within_s, 0.001), self.cluster.story("agent-3", "manager")

    def write(self, version: int) -> RecordSummary:
        """The owner's next version, brought until it is durable."""
        me = self.owner.peer
        record = RecordSummary(me.id, TREE, version, me.incarnation, version, 0, True, self.record_bytes, bytes(32))
        self.cluster.transfers.put(self.owner, record)
        self.cluster.tell(self.owner, ev.Replicate(record))
        self.until(lambda: any(e.record == record for e in self.owner.outcome if isinstance(e, fx.Durable)))
        self.cluster.clock.run(1.0)
        return record

    def holders(self, version: int) -> list[Process]:
        """Of this version or a newer one, the owner not among them, nearest to it first."""
        living = [p for p in self.cluster.view.living if p.peer.id != self.owner.peer.id]
        found = [p for p in living if self.key in p.store and p.store[self.key].version >= version]
        return sorted(found, key=lambda process: rank(self.owner.peer.id, process.peer.id))

    def retrieve(self, by: Process, request: int = 7, within_s: float = 20.0) -> fx.RetrievalEnded:
        """Look for the owner's record."""
        self.cluster.tell(by, ev.Retrieve(request, *self.key))
        return self.ended(by, request, within_s)

    def ended(self, by: Process, request: int = 7, within_s: float = 20.0) -> fx.RetrievalEnded:
        self.until(lambda: any(isinstance(e, fx.RetrievalEnded) and e.request == request for e in by.outcome), within_s)
        return next(e for e in by.outcome if isinstance(e, fx.RetrievalEnded) and e.request == request)

    def adopters(self) -> list[Process]:
        return [process for process in self.cluster.view.living if self.key in process.node.replication.adopted()]


@pytest.mark.parametrize("seed", SEEDS)
def test_holder_after_holder_dies_and_the_record_lives_on(seed: int) -> None:
    """The owner is dead for good. More holders die than there ever were copies, each when the one before has been replaced."""
    story = Story(seed)
    record = story.write(5)
    story.cluster.kill(story.owner)
    for _ in range(2 * K):
        story.until(lambda: len(story.holders(5)) >= K and len(story.adopters()) == 1)
        victim = next(process for process in story.holders(5) if process is not story.manager)
        story.cluster.kill(victim)
    found = story.retrieve(story.manager)
    assert (found.record, found.complete) == (record, True)


@pytest.mark.parametrize("seed", SEEDS)
def test_owner_and_all_holders_but_one_die_together_and_k_hold_it_again(seed: int) -> None:
    """The one that is left need not be the closest to the owner: that one has no copy, and is told."""
    story = Story(seed)
    record = story.write(5)
    holders = story.holders(5)
    for process in (story.owner, *holders[:-1]):
        if process is not story.manager:
            story.cluster.kill(process)
    found = story.retrieve(story.manager)
    assert found.record == record
    story.until(lambda: len(story.holders(5)) >= K, repair_s(story.cluster.parameters, story.record_bytes))


@pytest.mark.parametrize("seed", SEEDS)
def test_owner_and_every_holder_die_together_and_that_is_said(seed: int) -> None:
    story = Story(seed)
    story.write(5)
    for process in (story.owner, *story.holders(5)):
        story.cluster.kill(process)
    asker = next(process for process in story.cluster.view.living if process is not story.manager)
    found = story.retrieve(asker)
    assert (found.record, found.reason, found.complete) == (None, "no live node holds a record of it", True)


@pytest.mark.parametrize("seed", SEEDS)
def test_from_sigkill_to_located_in_milliseconds_though_two_die_at_once(seed: int) -> None:
    """Nobody has to wait for a timeout: resets make suspects, refused dials make dead ones."""
    story = Story(seed)
    story.write(5)
    victims = [process for process in story.holders(5) if process is not story.manager][:1]
    for process in (story.owner, *victims):
        story.cluster.kill(process)
    gone = {process.peer for process in (story.owner, *victims)}

    def known() -> bool:
        return any(isinstance(e, fx.Notify) for e in story.manager.outcome) or all(map(story.manager.node.detector.is_dead, gone))

    story.until(known, 0.1)
    found = story.retrieve(story.manager)
    assert found.record is not None
    assert found.located_s < story.cluster.parameters.ack_timeout_min_s


@pytest.mark.parametrize("seed", SEEDS)
def test_who_answers_the_look_up_dies_and_its_heir_is_asked(seed: int) -> None:
    story = Story(seed)
    record = story.write(5)
    story.cluster.kill(story.owner)
    story.cluster.clock.run(1.0)
    struck: list[Process] = []

    def strike(process: Process, message: Route) -> None:
        if isinstance(message.body, LookUp) and not struck and process is not story.manager:
            struck.append(process)
            story.cluster.clock.after(0.0, lambda victim, _: story.cluster.kill(victim), process)

    story.cluster.on_route = strike
    asker = max(story.cluster.view.living, key=lambda process: rank(story.owner.peer.id, process.peer.id))
    found = story.retrieve(asker)
    assert struck
    assert found.record == record


@pytest.mark.parametrize("seed", SEEDS)
def test_a_holder_dies_in_the_middle_of_the_fetch_and_the_next_one_gives_it(seed: int) -> None:
    story = Story(seed, record_bytes=LARGE)
    record = story.write(5)
    story.cluster.kill(story.owner)
    story.cluster.clock.run(1.0)
    asker = next(process for process in story.cluster.view.living if story.key not in process.store)
    story.cluster.tell(asker, ev.Retrieve(7, *story.key))
    story.cluster.clock.run(0.05)
    assert not any(isinstance(effect, fx.RetrievalEnded) for effect in asker.outcome)
    newest = max(story.holders(5), key=lambda process: process.peer.id)
    story.cluster.kill(newest)
    found = story.ended(asker)
    assert (found.record, found.attempts) == (record, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_retrieving_side_dies_and_asks_again_in_its_next_life(seed: int) -> None:
    story = Story(seed, record_bytes=LARGE)
    record = story.write(5)
    story.cluster.kill(story.owner)
    asker = next(process for process in story.cluster.view.living if story.key not in process.store and process is not story.manager)
    story.cluster.tell(asker, ev.Retrieve(7, *story.key))
    story.cluster.clock.run(0.05)
    story.cluster.kill(asker)
    again = story.start(asker.name)
    story.until(lambda: again.node.pastry.active)
    assert story.retrieve(again).record == record


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replaced_machine_has_its_record_again_and_cares_for_it(seed: int) -> None:
    """The same id at another address, with an empty disk."""
    story = Story(seed)
    record = story.write(5)
    story.cluster.kill(story.owner, silent=True)
    story.until(lambda: bool(story.adopters()))
    story.owner = story.start("agent-3", moved=True)
    story.until(lambda: story.owner.node.pastry.active)
    assert story.retrieve(story.owner, 1).record == record
    story.write(6)
    story.until(lambda: len(story.holders(6)) >= K and not story.adopters())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrongly_suspected_owner_goes_on_with_its_next_version(seed: int) -> None:
    """It hangs for three seconds, is buried, its record adopted; then it goes on as if nothing had been."""
    story = Story(seed)
    story.write(5)
    story.cluster.pause(story.owner)
    story.until(lambda: bool(story.adopters()))
    story.cluster.clock.run(1.0)
    story.cluster.resume(story.owner)
    record = story.write(6)
    story.until(lambda: not story.adopters())
    assert story.retrieve(story.manager).record == record


@pytest.mark.parametrize("seed", SEEDS)
def test_our_own_record_is_not_taken_in_an_older_version_while_those_who_have_the_newest_hang(seed: int) -> None:
    """P2: version 6 is durable on some that stop while the owner starts again; another has 5, and that must not be where it begins."""
    story = Story(seed)
    old, newest = story.write(5), story.write(6)
    older = story.cluster.view.get(story.owner.node.pastry.leaf_set.right[-1].id)
    assert older is not None
    story.cluster.transfers.put(older, old)
    story.cluster.tell(older, ev.RecordHeld(old))
    story.cluster.kill(story.owner)
    story.owner = story.start("agent-3")
    story.until(lambda: story.owner.node.pastry.active)
    hung = story.holders(6)
    for process in hung:
        story.cluster.pause(process)
    assert older.store[story.key].version == 5
    story.cluster.tell(story.owner, ev.Retrieve(1, *story.key))
    story.cluster.clock.run(0.5)
    for process in hung:
        story.cluster.resume(process)
    assert story.ended(story.owner, 1).record == newest


@pytest.mark.parametrize("seed", SEEDS)
def test_two_halves_that_both_stand_in_do_no_harm(seed: int) -> None:
    """The owner dies, the network splits: each half has a closest node. Healed, one of them cares, and the record is what it was."""
    story = Story(seed)
    record = story.write(5)
    story.cluster.kill(story.owner)
    indices = [process.index for process in story.cluster.view.living]
    cut = story.cluster.network.cut(frozenset(indices[::2]), frozenset(indices[1::2]))
    story.until(lambda: len(story.adopters()) == 2)
    story.cluster.network.heal(cut)
    story.until(lambda: story.cluster.view.ring_is_right() and len(story.adopters()) == 1)
    assert len(story.holders(5)) >= K
    assert story.retrieve(story.manager).record == record


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_that_no_look_up_would_find_go_when_the_ring_has_moved_on(seed: int) -> None:
    """Forty join: owner and holders are no neighbours any more. The new neighbours have it, the old copies are discarded."""
    story = Story(seed, nodes=14)
    story.write(5)
    before = story.holders(5)
    for index in range(100, 140):
        story.start(f"agent-{index}")
        story.cluster.clock.run(0.02)
    story.until(story.cluster.view.ring_is_right)
    near = set(story.cluster.view.neighbours(story.owner))
    moved = [process for process in before if process.peer.id not in near]
    story.until(lambda: not any(story.key in process.store for process in moved), 30.0)
    assert len([process for process in story.holders(5) if process.peer.id in near]) >= K


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("placement", "abroad"), [("local", 0), ("mixed", 1), ("spread", K)])
def test_a_whole_rack_dies_and_what_left_it_is_left(placement: PlacementPolicy, abroad: int, seed: int) -> None:
    """Thirty agents in two racks. The owner's goes dark; the manager looks for the record where its owner has put it."""
    story = Story(seed, nodes=31, zones=2, placement=placement)
    story.write(5)
    story.cluster.clock.run(2 * story.cluster.parameters.upkeep_interval_s)
    record = story.write(6)
    rack = zone_of(story.owner.peer.id)
    outside = [process for process in story.holders(6) if zone_of(process.peer.id) != rack and process is not story.manager]
    assert len(outside) == abroad
    for process in list(story.cluster.view.living):
        if zone_of(process.peer.id) == rack:
            story.cluster.kill(process, silent=True)
    story.cluster.clock.run(5.0)
    found = story.retrieve(story.manager)
    assert found.record == (record if abroad else None)
    if abroad:
        story.owner = story.start("agent-3", moved=True)
        story.until(lambda: story.owner.node.pastry.active)
        assert story.retrieve(story.owner, 1).record == record, "and so does the owner on a new machine"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("placement", "abroad"), [("mixed", 1), ("spread", K)])
def test_a_rack_dies_and_what_was_written_before_the_other_was_there_is_left(placement: PlacementPolicy, abroad: int, seed: int) -> None:
    """The other rack is switched on an hour after the only record was written; it goes dark, and is back. Then the owner's dies."""
    story = Story(seed, nodes=16, zones=1, placement=placement)
    record = story.write(5)
    story.zones = 2
    others = [f"agent-{index}" for index in range(101, 131, 2)]
    upkeep_s = 3 * story.cluster.parameters.upkeep_interval_s
    rack = zone_of(story.owner.peer.id)

    def outside() -> int:
        return sum(zone_of(identifier) not in (rack, zone_of(TREE)) for identifier in story.owner.node.replication.holders(story.key))

    for moved in (False, True):
        for name in others:
            story.start(name, moved=moved)
            story.cluster.clock.run(0.01)
        story.until(story.cluster.view.ring_is_right)
        story.cluster.clock.run(upkeep_s)
        assert outside() == abroad
        moved_bytes = story.cluster.transfers.moved_bytes
        story.cluster.clock.run(upkeep_s)
        assert story.cluster.transfers.moved_bytes == moved_bytes, "a quiet ring brings nothing"
        if not moved:
            for name in others:
                story.cluster.kill(story.cluster.processes[name], silent=True)
            story.cluster.clock.run(upkeep_s)
            assert outside() == 0
    for process in list(story.cluster.view.living):
        if zone_of(process.peer.id) == rack:
            story.cluster.kill(process, silent=True)
    story.cluster.clock.run(5.0)
    assert story.retrieve(story.manager).record == record
