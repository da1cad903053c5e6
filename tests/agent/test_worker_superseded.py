"""The worker while something takes long that the next order makes needless: a record is made durable, or brought to the manager."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from fmrec_agent.learning.learner import Contribution
from protocol.aio.bulk import BEGUN_MAX
from protocol.identifiers import Peer
from protocol.knowledge import Data
from protocol.wire.values import RecordSummary
from tests.agent.counting import Counting
from tests.agent.ring import PARAMETERS, Manager, Ring, until

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
