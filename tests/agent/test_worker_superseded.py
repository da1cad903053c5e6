"""The worker while something takes long that is needless when the next one comes: after an order, what is made durable or brought to the
manager for the one before; after a snapshot, the one before that is sealed."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace

import numpy as np
import pytest

from fmrec_agent import dispatcher
from fmrec_agent.learning.learner import Contribution, Tensors
from protocol.aio.bulk import BEGUN_MAX
from protocol.identifiers import Peer
from protocol.knowledge import Data, Knowledge, seal
from protocol.wire.values import RecordSummary
from tests.agent.counting import Counting, Gate
from tests.agent.ring import PARAMETERS, TREE, Manager, Ring, until

SOON_S = 5.0
LARGE = np.random.default_rng(1).random(6_000_000)


class Large(Counting):
    """Its contribution may take more than twice SOON_S to be moved."""

    def finish(self) -> Contribution:
        return replace(super().finish(), tensors={"w": LARGE})


def rounds(manager: Manager) -> list[int]:
    return [record.round for record, _ in manager.brought]


async def test_who_waits_until_a_record_is_durable_goes_on_with_the_next_order_at_once(ring: Ring) -> None:
    """The neighbours have no room for it, and the root has closed the round without it."""
    assert PARAMETERS.transfer_timeout_s(LARGE.nbytes) > 2 * SOON_S
    manager = await ring.manager()
    a, _ = await ring.agent("a", learner=Large()), await ring.agent("b")
    a.worker.ordered(manager.order("train", 0, "substitute"), manager.me)
    await until(lambda: a.worker.doing == "making version 3 durable")
    a.worker.ordered(manager.order("train", 1, "drop"), manager.me)
    await until(lambda: rounds(manager) == [1], SOON_S)


@pytest.mark.parametrize("where", ["on its way", "with the manager"])
async def test_who_brings_a_contribution_goes_on_with_the_next_order_at_once(ring: Ring, where: str) -> None:
    """And nothing is left of what was under way."""
    manager = await ring.manager()
    wakes, takes = asyncio.Event(), manager.on_upload

    async def hang(summary: RecordSummary, data: Data, sender: Peer) -> str | None:
        if summary.round == 0:
            await wakes.wait()
        return await takes(summary, data, sender)

    manager.on_upload = hang  # type: ignore[method-assign]
    a = await ring.agent("a", learner=Large())
    ours, theirs = a.connections.bulk, manager.connections.bulk
    a.worker.ordered(manager.order("train", 0, "drop"), manager.me)
    await until(lambda: theirs.moved.received_bytes > (0 if where == "on its way" else LARGE.nbytes))
    assert (theirs.moved.received_bytes < LARGE.nbytes) is (where == "on its way")
    a.worker.ordered(manager.order("train", 1, "drop"), manager.me)
    await until(lambda: rounds(manager) == [1], SOON_S)
    await until(lambda: a.worker.doing == "waiting for orders")
    assert ours._begun._value == BEGUN_MAX
    wakes.set()
    await until(lambda: (theirs._served, theirs._receiving_bytes) == (0, 0))


class Remembered(Counting):
    """It can be seen which of its states somebody still has."""

    def __init__(self, *gates: Gate) -> None:
        def hold(done: int) -> None:
            for gate in gates:
                gate(done)

        super().__init__(40, hold)
        self.states: list[weakref.ref[object]] = []

    def state(self) -> tuple[Tensors, bytes]:
        tensors, extra = super().state()
        self.states.append(weakref.ref(tensors["w"]))
        return tensors, extra

    def kept(self) -> list[int]:
        return [number for number, state in enumerate(self.states, 1) if state() is not None]


@pytest.mark.parametrize("how", ["in time", "late"])
async def test_snapshots_that_come_faster_than_they_are_sealed_do_not_pile_up(
    ring: Ring, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is sealed at a time, and of those that wait the newest alone is kept. The last record of a job waits for none of them."""
    manager = await ring.manager()
    first, gate, sealing = Gate(1), Gate(30), Gate(1)
    learner = Remembered(first, gate)
    a, b = await ring.agent("a", learner=learner), await ring.agent("b")
    a.trainer._checkpoint_every = 1
    sealed: list[int] = []

    def seal_late(knowledge: Knowledge, **options: bool) -> tuple[RecordSummary, Data]:
        sealed.append(knowledge.iteration)
        sealing(knowledge.iteration)
        return seal(knowledge, **options)

    monkeypatch.setattr(dispatcher, "seal", seal_late)
    a.worker.ordered(manager.order("train", 0), manager.me)
    await until(sealing.reached.is_set)
    first.open.set()
    await until(gate.reached.is_set)
    await until(lambda: learner.kept() == [1, 30])
    assert len(learner.states) == 30
    if how == "in time":
        sealing.open.set()
        await until(lambda: len(sealed) == 2)
        assert sealed == [1, 30]
    gate.open.set()
    await until(lambda: manager.brought)
    last, _ = manager.brought[0]
    assert (last.complete, last.iteration, last.version) == (True, 40, 40)
    sealing.open.set()
    await until(lambda: a.dispatcher._sealing is None)
    if how == "late":
        assert sealed == [1, 40], "what had to wait for the first was needless when the last one came"
    for agent in (a, b):
        held = agent.store.get(a.identifier, TREE)
        assert held is not None
        assert held[0] == last
