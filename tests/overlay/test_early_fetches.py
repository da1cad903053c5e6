"""Rule 6 of replication.py: who is known first to hold a copy is asked for it meanwhile; the answer says whether it is the newest."""

from __future__ import annotations

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.retrieval import EARLY_MAX, LOOK_UPS_MAX
from protocol.wire.messages import LookUpReply
from protocol.wire.values import Holding, RecordSummary
from tests.overlay.holder import FIVE, OWNER, TREE, Node
from tests.overlay.scene import ME, P, of, record

A, B, C, *_ = FIVE
V4, V5, V6 = (record(OWNER, version) for version in (4, 5, 6))


class Seeker(Node):
    """Looks for OWNER's record from 0.0 on, under number 1."""

    def __init__(self) -> None:
        super().__init__(*FIVE)
        assert of(fx.RouteBody, self.note(self.machine.retrieve(1, OWNER.id, TREE, 0.0)))[0].body.early

    def hears(self, *holdings: Holding, more: bool = False, silent: int = 0, now: float = 0.1) -> list[fx.Effect]:
        return self.note(self.machine.look_up_answered(LookUpReply(1, holdings, silent, more=more), now))

    def begins(self, *holdings: Holding) -> fx.Fetch:
        (fetch,) = self.hears(*holdings, more=True)
        assert isinstance(fetch, fx.Fetch)
        return fetch

    def came(self, fetch: fx.Fetch, found: RecordSummary | None = None, now: float = 0.2) -> list[fx.Effect]:
        """What the driver says of a transfer that brought what it was to bring, or `found`."""
        return self.note(self.machine.fetch_ended(fetch.transfer, found or fetch.record, "", now))

    def failed(self, fetch: fx.Fetch, now: float = 0.2) -> list[fx.Effect]:
        return self.note(self.machine.fetch_ended(fetch.transfer, None, "it broke", now))


def ended(effects: list[fx.Effect]) -> fx.RetrievalEnded:
    (end,) = of(fx.RetrievalEnded, effects)
    return end


def test_the_transfer_that_began_early_is_the_one() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    assert (fetch.peer, fetch.record, fetch.others, fetch.open) == (A, V5, (), True)
    answer = node.hears(Holding(A, V5), Holding(B, V5), Holding(C, V4), now=0.15)
    assert answer == [fx.FetchAlso(fetch.transfer, (B,))], "it goes on, and others of this very version may help"
    end = ended(node.came(fetch))
    assert (end.record, end.attempts, end.complete) == (V5, 1, True)
    assert (end.located_s, end.transferred_s) == (pytest.approx(0.1), pytest.approx(0.1))


def test_it_is_here_before_the_answer_and_is_believed_with_the_answer() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    assert not of(fx.RetrievalEnded, node.came(fetch)), "there may be a newer one"
    end = ended(node.hears(Holding(A, V5), Holding(B, V5), now=0.3))
    assert (end.record, end.attempts, end.missed, end.reason) == (V5, 1, (), "")
    assert end.holdings == (Holding(A, V5), Holding(B, V5)), "it came from A: the copy here is none of the ring's"
    assert (end.located_s, end.transferred_s) == (pytest.approx(0.1), pytest.approx(0.2))


@pytest.mark.parametrize("here", [False, True])
def test_the_answer_names_a_newer_one(here: bool) -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V4))
    if here:
        node.came(fetch)
    effects = node.hears(Holding(B, V5), Holding(A, V4), now=0.3)
    assert of(fx.CancelTransfer, effects) == ([] if here else [fx.CancelTransfer(fetch.transfer)])
    (newer,) = of(fx.Fetch, effects)
    assert (newer.peer, newer.record, newer.open) == (B, V5, False)
    end = ended(node.came(newer, now=0.5))
    assert (end.record, end.attempts) == (V5, 2)
    assert (end.located_s, end.transferred_s) == (pytest.approx(0.3), pytest.approx(0.2))


def test_a_newer_one_is_told_of_early_too() -> None:
    node = Seeker()
    first = node.begins(Holding(A, V4))
    assert node.hears(Holding(A, V4), Holding(B, V4), more=True) == [], "it is on its way"
    gives_up, second = node.hears(Holding(C, V5), Holding(A, V4), more=True)
    assert gives_up == fx.CancelTransfer(first.transfer)
    assert isinstance(second, fx.Fetch)
    assert (second.peer, second.record) == (C, V5)
    node.hears(Holding(C, V5), Holding(A, V4))
    assert ended(node.came(second)).record == V5


def test_versions_without_end_begin_no_transfers_without_end() -> None:
    node = Seeker()
    for version in range(1, 3 * EARLY_MAX):
        effects = node.hears(Holding(A, record(OWNER, version)), more=True)
        assert len(of(fx.Fetch, effects)) == (version <= EARLY_MAX)


def test_what_is_here_is_not_fetched() -> None:
    node = Seeker()
    node.note(node.machine.record_held(V5, 0.0))
    assert node.hears(Holding(A, V5), more=True) == []
    end = ended(node.hears(Holding(A, V5)))
    assert (end.record, end.transferred_s, end.attempts) == (V5, 0, 1)
    assert end.holdings[0].holder == ME


def test_a_transfer_that_fails_early_is_tried_again_with_the_answer() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    assert node.failed(fetch) == []
    (again,) = of(fx.Fetch, node.hears(Holding(A, V5), Holding(B, V5), now=0.3))
    assert {again.peer, *again.others} == {A, B}
    assert ended(node.came(again)).record == V5


def test_a_transfer_that_fails_after_the_answer_is_followed_by_the_next_holder() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    node.hears(Holding(A, V5), Holding(B, V5), Holding(C, V4))
    (second,) = of(fx.Fetch, node.failed(fetch))
    assert (second.peer, second.record) == (B, V5)
    (third,) = of(fx.Fetch, node.failed(second))
    assert (third.peer, third.record) == (C, V4), "nobody was unheard: the older one is all that there is"
    assert ended(node.came(third)).attempts == 3


def test_a_transfer_that_comes_to_no_end_is_given_up_before_the_answer_too() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    seen = node.until(P.transfer_timeout_s(V5.record_bytes) + P.delay_max_s + 0.1)
    assert fx.CancelTransfer(fetch.transfer) in seen
    assert not of(fx.RetrievalEnded, seen)


def test_nobody_answers_but_one_was_told_of() -> None:
    """The closest node hangs after its first word: what that was is better than nothing, and it is said that there may be a newer one."""
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    node.came(fetch)
    end = ended(node.until(LOOK_UPS_MAX * P.look_up_timeout_s))
    assert (end.record, end.sure, end.complete) == (V5, False, False)


def test_a_retrieval_that_is_begun_anew_gives_up_what_was_on_its_way() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    effects = node.note(node.machine.retrieve(1, OWNER.id, TREE, 0.2))
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(fetch.transfer)]
    assert node.hears(Holding(A, V5), more=True) == [], "a word of the look-up before"
