"""The worker of a life that began where its newest record is not (rule 7): it looks on, or says what is lost."""

from __future__ import annotations

import logging
import math

import pytest

from fmrec_agent import worker
from fmrec_agent.learning.learner import Job
from protocol.knowledge import open_record
from protocol.overlay.effects import Durable
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
        heir.worker._began = -math.inf
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
    monkeypatch.setattr(worker, "CUT_VERDICTS", verdicts)
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


@pytest.mark.parametrize("found", [True, False], ids=["beside an older one", "beside none"])
@pytest.mark.parametrize("verdicts", [10.0, 0.0], ids=["the cut heals", "it lasts"])
async def test_what_an_earlier_life_called_durable_is_looked_for_until_it_is_there_or_said_to_be_lost(
    ring: Ring, found: bool, verdicts: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 7. Found by half an hour of chaos: killed in a round whose checkpoint was beyond a cut, and asked for that very round."""
    monkeypatch.setattr(worker, "CUT_VERDICTS", verdicts)
    manager = await ring.manager()
    gate = Gate(6)
    gate.open.set()
    a, _ = await ring.agent("a", learner=Counting(before_step=gate)), await ring.agent("b")
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    older = a.store.get(a.identifier, TREE)
    assert older is not None
    gate.open.clear()
    a.worker.ordered(manager.order("train", 1), manager.me)
    await until(gate.reached.is_set)
    version = older[0].version + 2  # after iterations 12 and 16 of its life, 2 and 6 of this round
    assert await a.dispatcher.durable(version, 10)
    await ring.kill(a)
    gate.open.set()
    heir = await ring.agent("a", incarnation=2, mark=a.mark)
    if found:
        heir.store.put(*older)
        await heir.worker.restore(older[0], open_record(*older))
        heir.dispatcher.on_durable(Durable(older[0], ()))  # there, beside the cut; which hides nothing
    looks = 0

    async def cut_off() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            await heir.restore()

    monkeypatch.setattr(heir.worker, "_restore_newest", cut_off)
    heir.worker.ordered(manager.order("train", 1), manager.me)
    await until(lambda: len(manager.brought) == 2)
    assert manager.brought[1][0].round == 1
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    if verdicts:
        assert (looks, lost, heir.learner.jobs, heir.learner.steps) == (4, [], [], 4), "from the checkpoint after iteration 6"
    else:
        known = str(older[0].version) if found else "none"
        said = f"version {version} was durable, and version {known} was found: what this agent may have learnt between them is lost"
        assert (looks, lost, heir.learner.jobs) == (0 if found else 1, [said], [Job("train", 1, 1)])
    assert heir.mark.value == manager.brought[1][0].version, "the next life is to find this one's, and no more"


async def test_after_the_end_nothing_is_missing(ring: Ring) -> None:
    """A tree's records go with it. Whoever is killed after that, and started again for another run, has nothing to look for."""
    manager = await ring.manager()
    a, _ = [await ring.agent(name) for name in "ab"]
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(lambda: manager.brought)
    version = a.mark.value
    a.worker.ordered(manager.order("done", 1), manager.me)
    await until(lambda: a.worker.doing == "done")
    assert (version, a.mark.value) == (manager.brought[0][0].version, 0)
