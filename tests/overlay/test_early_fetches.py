"""Rule 6 of replication.py: who is known first to hold a copy is asked for it meanwhile; the answer says whether it is the newest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.overlay import effects as fx
from protocol.overlay.retrieval import EARLY_MAX, LOOK_UPS_MAX, asks_on
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


@pytest.mark.parametrize("which", ["another owner's", "one of a size that cannot be", "our own"])
def test_an_early_word_of_what_cannot_be_fetched_begins_nothing(which: str) -> None:
    node = Seeker()
    holding = {
        "another owner's": Holding(A, record(C, 5)),
        "one of a size that cannot be": Holding(A, replace(V5, record_bytes=P.record_bytes_max + 1)),
        "our own": Holding(ME, V5),
    }[which]
    assert node.hears(holding, more=True) == []


def test_an_early_word_from_far_away_is_one_too() -> None:
    node = Seeker()
    (fetch,) = node.note(node.machine.look_up_answered(LookUpReply(1, (Holding(A, V5),), far=True, more=True), 0.1))
    assert isinstance(fetch, fx.Fetch)


def test_an_early_word_may_name_several() -> None:
    node = Seeker()
    (fetch,) = node.hears(Holding(A, V5), Holding(B, V5), Holding(C, V4), more=True)
    assert isinstance(fetch, fx.Fetch)
    assert (fetch.peer, fetch.others) == (A, (B,))


# --- the answer knows less, or other things ---------------------------------------------------------------------------


def test_what_only_an_early_word_knows_is_not_sure_to_be_the_newest() -> None:
    """A hop has told of a stray copy, and the closest node, whose leaf set is in repair, of none: there may be newer ones, too."""
    node = Seeker()
    node.came(node.begins(Holding(A, V5)))
    for _ in range(LOOK_UPS_MAX - 1):
        assert not of(fx.RetrievalEnded, node.hears()), "it looks again: nobody who answered has one"
    end = ended(node.hears())
    assert (end.record, end.complete, end.sure, end.none_left, end.holdings) == (V5, False, False, False, (Holding(A, V5),))


@pytest.mark.parametrize("when", ["before the answer", "after it"])
def test_what_was_told_early_and_did_not_come_is_missed(when: str) -> None:
    """An owner does not go on without what it was told of."""
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    if when == "before the answer":
        node.failed(fetch)
        (fetch,) = of(fx.Fetch, node.hears(Holding(B, V4)))
        assert fetch.record == V5
    else:
        assert not of(fx.Fetch, node.hears(Holding(B, V4)))
    for _ in range(LOOK_UPS_MAX - 1):
        assert of(fx.RouteBody, node.failed(fetch)), "somebody unheard may have it"
        (fetch,) = of(fx.Fetch, node.hears(Holding(B, V4)))
    (older,) = of(fx.Fetch, node.failed(fetch))
    end = ended(node.came(older))
    assert (end.record, end.missed) == (V4, (Holding(A, V5),))
    assert asks_on(end, 1)


def test_a_word_that_no_answer_bears_out_holds_up_nobody_for_long() -> None:
    """It spoke of a gigabyte of a version to come, and sends nothing."""
    node = Seeker()
    huge = replace(record(OWNER, 10**9), record_bytes=P.record_bytes_max)
    fetch = node.begins(Holding(C, huge))
    node.hears(Holding(A, V5), Holding(B, V5), now=0.2)
    seen = node.until(0.2 + P.transfer_timeout_s(V5.record_bytes) + P.delay_max_s)
    assert fx.CancelTransfer(fetch.transfer) in seen


def test_what_is_brought_here_meanwhile_is_not_waited_for() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    node.note(node.machine.record_held(V5, 0.12))
    effects = node.hears(Holding(A, V5), Holding(B, V5))
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(fetch.transfer)]
    assert (ended(effects).record, ended(effects).reason) == (V5, "held here")


def test_a_newer_one_that_is_pushed_here_meanwhile_ends_it() -> None:
    """We are never asked ourselves, and what is here is not fetched again."""
    node = Seeker()
    node.note(node.machine.record_held(V4, 0.0))
    (fetch,) = of(fx.Fetch, node.hears(Holding(A, V5)))
    node.note(node.machine.record_held(V6, 0.15))
    end = ended(node.failed(fetch))
    assert (end.record, end.reason, end.holdings[0]) == (V6, "held here", Holding(ME, V6))


def test_who_brought_an_older_one_is_not_said_to_hold_the_newer() -> None:
    node = Seeker()
    fetch = node.begins(Holding(A, V5))
    node.note(node.machine.record_held(V6, 0.15))
    node.came(fetch, V6)
    end = ended(node.hears(Holding(A, V5)))
    assert (end.record, end.holdings) == (V6, (Holding(ME, V6), Holding(A, V5)))


# --- no answer --------------------------------------------------------------------------------------------------------


def test_older_holders_are_not_forgotten_where_look_ups_end_without_an_answer() -> None:
    node = Seeker()
    (fetch,) = of(fx.Fetch, node.hears(Holding(B, V5), Holding(C, V4), silent=1))
    assert of(fx.RouteBody, node.failed(fetch))
    effects: list[fx.Effect] = []
    while not of(fx.Fetch, effects):
        effects = node.until(node.machine.next_deadline() or 0.0)
    (older,) = of(fx.Fetch, effects)
    assert (older.peer, older.record) == (C, V4)
    end = ended(node.came(older))
    assert (end.record, end.sure, end.missed) == (V4, False, (Holding(B, V5),))


def test_a_transfer_under_way_has_no_other_beside_it_where_nobody_answers() -> None:
    node = Seeker()
    large = replace(V5, record_bytes=P.record_bytes_max)
    fetch = node.begins(Holding(A, large))
    assert not of(fx.Fetch, node.until(LOOK_UPS_MAX * P.look_up_timeout_s))
    assert ended(node.came(fetch)).record == large
