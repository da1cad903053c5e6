"""Rule 6 of replication.py where several hold the newest: the fetch names them all, for one record may come from many."""

from __future__ import annotations

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.replication import Replication
from protocol.overlay.retrieval import ASKS_MAX, asks_on
from protocol.wire.messages import LookUpReply
from protocol.wire.values import Holding, RecordSummary
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


NEWEST, OLDER = record(OWNER, 5), record(OWNER, 4)
NAMED = (Holding(A, NEWEST), Holding(B, OLDER))


@pytest.mark.parametrize(
    ("came", "named", "complete", "asked", "on"),
    [
        (NEWEST, NAMED, False, 1, False),  # what was named is here, and the overlay has waited for the others
        (OLDER, NAMED, True, 10 * ASKS_MAX, True),  # however often: who went on from an older one would lose it
        (None, NAMED, True, 10 * ASKS_MAX, True),
        (None, (), True, 1, False),  # nobody has one
        (None, (), False, ASKS_MAX - 1, True),  # somebody unheard may
        (None, (), False, ASKS_MAX, False),
        (NEWEST, (), False, 1, False),  # nobody answered, and our own copy is all that we know of
    ],
)
def test_an_owner_asks_on_until_the_newest_is_here(
    came: RecordSummary | None, named: tuple[Holding, ...], complete: bool, asked: int, on: bool
) -> None:
    ended = fx.RetrievalEnded(1, came, named, 0.01, 0.02, 1, "", complete)
    assert asks_on(ended, asked) is on
    assert bool(ended.missed) is (on and bool(named))


def test_where_a_dead_holder_was_not_replaced_nobody_may_be_unheard() -> None:
    machine = Node(A, B, C).machine
    machine.retrieve(1, OWNER.id, TREE, 0.0)
    reply = LookUpReply(1, (Holding(A, record(OWNER, 4)),), SPARED, settled=False)
    (fetch,) = of(fx.Fetch, machine.look_up_answered(reply, 0.1))
    (ended,) = of(fx.RetrievalEnded, machine.fetch_ended(fetch.transfer, fetch.record, "", 0.2))
    assert (ended.complete, ended.sure) == (False, False)


def test_what_an_earlier_answer_named_is_fetched_where_a_later_look_up_is_not_answered() -> None:
    """An owner with an older version on its disk: its newest one was named twice, while somebody else was silent."""
    node = Node(A, B, C)
    node.machine.record_held(record(ME, 1, tree=TREE), 0.0)
    node.machine.retrieve(1, ME.id, TREE, 0.0)
    for now in (0.1, 0.2):
        node.machine.look_up_answered(LookUpReply(1, (Holding(A, record(ME, 9, tree=TREE)),), 1), now)
    (fetch,) = of(fx.Fetch, node.until(60.0)[:2])
    assert (fetch.peer, fetch.record.version) == (A, 9)


def test_what_was_sure_of_an_answer_is_not_of_what_is_taken_without_one() -> None:
    """Nobody near holds it and one is silent, then nobody answers: our own old replica is better than nothing, and not sure."""
    node = Node(A, B, C)
    node.machine.record_held(record(OWNER, 1), 0.0)
    node.machine.retrieve(1, OWNER.id, TREE, 0.0)
    node.machine.look_up_answered(LookUpReply(1, (), SPARED), 0.1)
    (ended,) = of(fx.RetrievalEnded, node.until(60.0))
    assert (ended.record, ended.complete, ended.sure) == (record(OWNER, 1), False, False)
