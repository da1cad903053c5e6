"""Rule 6 of replication.py where several hold the newest: the fetch names them all, for one record may come from many."""

from __future__ import annotations

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.replication import Replication
from protocol.wire.messages import LookUpReply
from protocol.wire.values import Holding
from tests.overlay.holder import Node
from tests.overlay.scene import ME, P, node_id, of, peer, record

TREE = node_id(0x10)
OWNER, A, B, C = (peer(leading) for leading in (0x55, 0x90, 0x70, 0xA0))


def test_a_fetch_names_the_others_that_hold_this_very_record() -> None:
    machine = Replication(ME, P, lambda: [A, B, C])
    machine.retrieve(1, OWNER.id, TREE, 0.0)
    holdings = (Holding(A, record(OWNER, 5)), Holding(B, record(OWNER, 5)), Holding(C, record(OWNER, 4)))
    (fetch,) = of(fx.Fetch, machine.look_up_answered(LookUpReply(1, holdings), 0.1))
    assert fetch.record.version == 5
    assert {fetch.peer, *fetch.others} == {A, B}
    machine.check_invariants()


SPARED = P.write_quorum - 1


@pytest.mark.parametrize(("silent", "complete", "sure"), [(0, True, True), (SPARED, False, True), (SPARED + 1, False, False)])
def test_the_end_says_whether_a_holder_of_what_is_durable_was_heard(silent: int, complete: bool, sure: bool) -> None:
    machine = Node(A, B, C).machine
    machine.retrieve(1, OWNER.id, TREE, 0.0)
    (fetch,) = of(fx.Fetch, machine.look_up_answered(LookUpReply(1, (Holding(A, record(OWNER, 4)),), silent), 0.1))
    (ended,) = of(fx.RetrievalEnded, machine.fetch_ended(fetch.transfer, fetch.record, "", 0.2))
    assert (ended.complete, ended.sure) == (complete, sure)
