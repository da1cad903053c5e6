"""The worker of a life that began where its newest record is not (rule 7): it looks on, or says what is lost."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from fmrec_agent import doubt
from fmrec_agent.high_water import HighWater
from fmrec_agent.learning.learner import Job
from protocol.identifiers import NodeId, agent_id
from protocol.knowledge import Knowledge, open_record
from protocol.overlay.effects import Durable
from protocol.wire.messages import Phase
from protocol.wire.values import RecordSummary
from tests.agent.counting import Counting, Gate
from tests.agent.ring import TREE, Agent, Manager, Ring, until


async def begun_from_an_older_record(ring: Ring) -> tuple[Manager, Agent, Agent, int]:
    """The manager, an agent that nothing happens to, a second life that knows the first of two rounds, and the version of the second."""
    manager = await ring.manager()
    undisturbed, a, _ = [await ring.agent(name) for name in "uab"]
    records = []
    for done in range(2):
        for agent in (undisturbed, a):
            agent.worker.ordered(manager.order("train", done), manager.me)
        await until(lambda done=done: len(manager.brought) == 2 * done + 2)
        records.append(a.store.get(a.identifier, TREE))
    await ring.kill(a)
    heir = await ring.agent("a", incarnation=2)
    older, newest = records
    assert older is not None
    assert newest is not None
    heir.store.put(*older)
    await heir.worker.restore(older[0], open_record(*older))
    return manager, undisturbed, heir, newest[0].version


@pytest.mark.parametrize("number", [1, 2], ids=["an order that comes late", "an order for a later round"])
async def test_a_life_that_began_on_the_smaller_side_of_a_cut_finds_what_it_had_missed(ring: Ring, number: int) -> None:
    """Rule 7. Of two rounds done, what it found at its start is the first; the holders of the second could not be seen.

    Found by chaos: cut off with its host, killed, and started again beside an older replica."""
    manager, undisturbed, heir, newest = await begun_from_an_older_record(ring)
    if number == 1:
        heir.worker._doubt.began = -math.inf
    for agent in (undisturbed, heir):
        agent.worker.ordered(manager.order("train", number), manager.me)
    await until(lambda: len(manager.brought) == 6)
    whole, again = [
        next(inside for record, inside in reversed(manager.brought) if record.owner == agent.identifier) for agent in (undisturbed, heir)
    ]
    assert (again.round, whole.round) == (number, number)
    assert again.tensors["contribution"]["w"].tobytes() == whole.tensors["contribution"]["w"].tobytes()
    assert [job.round for job in heir.learner.jobs] == [2][: number - 1], "round 1 was finished already"
    assert again.version >= newest


@pytest.mark.parametrize("verdicts", [10.0, 0.0], ids=["the cut heals", "it lasts"])
async def test_in_mode_exact_it_looks_until_the_cut_is_healed_or_says_what_is_lost(
    ring: Ring, verdicts: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 7. Found by half an hour of chaos: all holders of the newest record were cut off, stopped or dead when its owner came back."""
    monkeypatch.setattr(doubt, "CUT_VERDICTS", verdicts)
    manager, undisturbed, heir, _ = await begun_from_an_older_record(ring)
    looks = 0

    async def cut_off() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:  # another root announces the round anew
            heir.worker.ordered(manager.order("train", 2), manager.me)
        if looks > 4:
            await heir.restore()

    monkeypatch.setattr(heir.worker, "_restore_newest", cut_off)
    for agent in (undisturbed, heir):
        agent.worker.ordered(manager.order("train", 2), manager.me)
    await until(lambda: len(manager.brought) == 6)
    whole, again = [
        next(inside for record, inside in reversed(manager.brought) if record.owner == agent.identifier) for agent in (undisturbed, heir)
    ]
    equal = again.tensors["contribution"]["w"].tobytes() == whole.tensors["contribution"]["w"].tobytes()
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    if verdicts:
        assert (equal, looks, lost) == (True, 5, [])
    else:
        assert (equal, looks, len(lost)) == (False, 1, 1)
        assert "round 2 is asked for, and no record after round 0 was found" in lost[0]


class Killed:
    """Agent a, killed in round 1 of the manager's, with a durable checkpoint in the middle of it; b holds that."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    async def happens(self) -> Killed:
        self.manager = await self.ring.manager()
        gate = Gate(6)
        gate.open.set()
        a, _ = await self.ring.agent("a", learner=Counting(before_step=gate)), await self.ring.agent("b")
        a.worker.ordered(self.manager.order("train", 0), self.manager.me)
        await until(lambda: self.manager.brought)
        older = a.store.get(a.identifier, TREE)
        assert older is not None
        self.older, self.high_water = older, a.high_water
        gate.open.clear()
        a.worker.ordered(self.manager.order("train", 1), self.manager.me)
        await until(gate.reached.is_set)
        self.version = older[0].version + 2  # after iterations 12 and 16 of its life, 2 and 6 of this round
        assert await a.dispatcher.durable(self.version, 10)
        await self.ring.kill(a)
        gate.open.set()
        return self

    async def heir(self, looks: Callable[[Agent, int], Awaitable[None]], *, found: bool = True) -> Agent:
        """Its next life, beside the record of round 0 where that is found; each of its looks is a call, counted from 1."""
        heir = await self.ring.agent("a", incarnation=2, high_water=self.high_water)
        if found:
            heir.store.put(*self.older)
            await heir.worker.restore(self.older[0], open_record(*self.older))
            heir.dispatcher.on_durable(Durable(self.older[0], ()))  # there, beside the cut; which hides nothing
        self.looks = 0

        async def look() -> None:
            self.looks += 1
            await looks(heir, self.looks)

        heir.worker._restore_newest = look  # type: ignore[method-assign]
        return heir

    def ordered(self, heir: Agent, phase: Phase, number: int, chosen: tuple[NodeId, ...] = ()) -> None:
        heir.worker.ordered(replace(self.manager.order(phase, number), chosen=chosen), self.manager.me)

    async def brought(self) -> tuple[RecordSummary, Knowledge]:
        """What the manager is brought after the round before."""
        await until(lambda: len(self.manager.brought) == 2)
        return self.manager.brought[1]


@pytest.fixture
async def killed(ring: Ring) -> Killed:
    return await Killed(ring).happens()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("found", [True, False], ids=["beside an older one", "beside none"])
@pytest.mark.parametrize("verdicts", [10.0, 0.0], ids=["the cut heals", "it lasts"])
async def test_what_an_earlier_life_called_durable_is_looked_for_until_it_is_there_or_said_to_be_lost(
    killed: Killed, found: bool, verdicts: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 7. Found by half an hour of chaos: killed in a round whose checkpoint was beyond a cut, and asked for that very round."""
    monkeypatch.setattr(doubt, "CUT_VERDICTS", verdicts)

    async def looks(heir: Agent, number: int) -> None:
        if number > 3:
            await heir.restore()

    heir = await killed.heir(looks, found=found)
    killed.ordered(heir, "train", 1)
    record, inside = await killed.brought()
    assert inside.round == 1
    if verdicts:
        assert (killed.looks, errors(caplog)) == (4, [])
        assert (heir.learner.jobs, heir.learner.steps) == ([], 4), "from the checkpoint after iteration 6"
    else:
        known = killed.older[0].version if found else "none"
        lost = f"version {killed.version} was durable, and version {known} was found: what this agent may have learnt between them is lost"
        assert (killed.looks, errors(caplog), heir.learner.jobs) == (1, [lost], [Job("train", 1, 1)])
    assert record.version > killed.version, "no number is given twice: what was lost and turns up is older"
    assert heir.high_water.durable == record.version, "the next life is to find this one's"


async def test_an_order_that_comes_in_the_look_that_finds_it_is_the_one_that_counts(killed: Killed) -> None:
    async def looks(heir: Agent, number: int) -> None:
        await heir.restore()
        if number == 1:
            killed.ordered(heir, "train", 2, (agent_id("c", "a"),))  # round 1 may have been closed without it: it was not chosen, say

    heir = await killed.heir(looks)
    killed.ordered(heir, "train", 1)
    _, inside = await killed.brought()
    assert (inside.round, heir.learner.jobs, heir.learner.steps) == (2, [Job("train", 2, 1)], 10), "nothing of round 1"


def hang() -> None:
    """All of the process, for longer than it would look."""
    time.sleep(0.1)


@pytest.mark.parametrize("how", ["it rests meanwhile", "it hangs in a look", "other orders come"])
async def test_nothing_is_given_up_without_a_look_after_the_time_for_it(
    killed: Killed, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time in which it looks counts, not that in which it rests or hangs."""
    monkeypatch.setattr(doubt, "CUT_VERDICTS", 0.01)
    cut, me = True, agent_id("c", "a")

    async def looks(heir: Agent, number: int) -> None:
        nonlocal cut
        if not cut:
            await heir.restore()
        elif how == "it hangs in a look":
            hang()
            cut = False
        elif how == "other orders come" and number < 4:
            killed.ordered(heir, "train", 1)
        elif how == "other orders come":
            cut = False
            killed.ordered(heir, "train", 1)
        else:
            cut = False
            killed.ordered(heir, "train", 2, chosen=(NodeId(5),))

    heir = await killed.heir(looks)
    killed.ordered(heir, "train", 1, chosen=(me,) if how == "it rests meanwhile" else ())
    if how == "it rests meanwhile":
        await until(lambda: killed.looks == 1 and heir.worker.doing == "waiting for orders")
        killed.ordered(heir, "train", 1, chosen=(me,))
    record, _ = await killed.brought()
    assert (errors(caplog), heir.learner.jobs, heir.learner.steps) == ([], [], 4)
    assert record.version > killed.version


@pytest.mark.parametrize("phase", ["train", "done"])
async def test_what_nobody_asks_for_any_more_is_not_given_up(
    killed: Killed, phase: Phase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the last look a round comes in which it rests; or the end."""
    monkeypatch.setattr(doubt, "CUT_VERDICTS", 0.0)

    async def looks(heir: Agent, number: int) -> None:
        killed.ordered(heir, phase, 2, chosen=(NodeId(5),))

    heir = await killed.heir(looks)
    killed.ordered(heir, "train", 1)
    await until(lambda: killed.looks == 1 and heir.worker.doing in ("done", "waiting for orders"))
    assert (errors(caplog), heir.learner.steps) == ([], 0)
    assert heir.high_water.durable == (killed.version if phase == "train" else 0)


async def test_theta_0_that_it_makes_is_not_what_was_missing(ring: Ring) -> None:
    manager = await ring.manager()
    known = HighWater()
    known.durable = known.sealed = 1
    a = await ring.agent("a", high_water=known)
    a.worker.ordered(manager.order("init", 0, asked=a.identifier), manager.me)
    await until(lambda: manager.brought)
    assert (a.dispatcher.missing, manager.brought[0][0].version) == (1, 2)


async def test_of_two_courses_the_later_one_is_gone_on_with(ring: Ring) -> None:
    """A life that no launcher started gave up what was lost and went on with smaller numbers; then both turn up."""
    manager = await ring.manager()
    a, _ = [await ring.agent(name) for name in "ab"]
    for number in range(2):
        a.worker.ordered(manager.order("train", number), manager.me)
        await until(lambda number=number: len(manager.brought) == number + 1)
    lost = a.store.get(a.identifier, TREE)
    assert lost is not None
    await ring.kill(a)
    heir = await ring.agent("a", incarnation=2)
    heir.worker._doubt.sure = True
    heir.worker.ordered(manager.order("train", 2), manager.me)
    await until(lambda: len(manager.brought) == 3)
    went_on = manager.brought[2][0]
    assert went_on.version < lost[0].version
    await ring.kill(heir)
    third = await ring.agent("a", incarnation=3)
    third.store.put(*lost)
    await third.worker.restore(lost[0], open_record(*lost))
    await third.restore()
    assert third.dispatcher.restored_from == went_on
    assert third.trainer.round == 2


@pytest.mark.parametrize("after", ["done", "another run"])
async def test_after_the_end_nothing_is_missing(ring: Ring, after: str) -> None:
    """A tree's records go with it. Whoever is killed after that, and started again for another run, has nothing to look for."""
    manager = await ring.manager()
    a, _ = [await ring.agent(name) for name in "ab"]
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    assert a.high_water.durable == manager.brought[0][0].version
    a.worker.ordered(manager.order("done", 1), manager.me)
    if after == "another run":
        a.worker.ordered(manager.order("train", 5, "drop"), manager.me)  # it comes before the end was worked off
        await until(lambda: len(manager.brought) == 2)
    else:
        await until(lambda: a.worker.doing == "done")
    assert a.high_water.durable == 0


async def test_what_is_finished_after_the_end_is_not_replicated(ring: Ring) -> None:
    """The last round was closed without it, in its last iteration: nobody would ever drop those copies."""
    manager = await ring.manager()
    gate = Gate(9)
    a, b = await ring.agent("a", learner=Counting(before_step=gate)), await ring.agent("b")
    for agent, name in ((a, "a"), (b, "b")):
        agent.join(name)
    await until(lambda: manager.joined() == {"a", "b"})
    manager.multicast(manager.order("train", 0, "substitute"))
    await until(gate.reached.is_set)
    assert await a.dispatcher.durable(2, 10)
    manager.multicast(manager.order("done", 1, "substitute"))
    await until(lambda: all(agent.worker.order is not None and agent.worker.order.body.phase == "done" for agent in (a, b)))
    await until(lambda: b.store.get(a.identifier, TREE) is None)
    gate.open.set()
    await until(lambda: a.worker.doing == "done")
    assert (a.learner.steps, a.dispatcher.version) == (10, 3), "it was finished"
    held = a.store.get(a.identifier, TREE)
    assert held is not None
    assert held[0].version == 2, "its own copy of before"
    assert b.store.get(a.identifier, TREE) is None
    assert a.high_water.durable == 0
