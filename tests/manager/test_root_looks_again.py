"""One tree's root where a look has not brought what it might have, and where a halted tree is waited for in vain."""

from __future__ import annotations

import pytest

from fmrec_manager.orders import Aggregate, Announce, Recover
from fmrec_manager.retrieval import ENDED_KEPT
from fmrec_manager.selection import Selection
from protocol.identifiers import Peer
from protocol.overlay.effects import RetrievalEnded
from protocol.wire.messages import RecoveryMode
from protocol.wire.values import Holding
from tests.manager.stage import SOURCES, TERMS, Stage, named, record, stage


def c_dies(mode: RecoveryMode) -> Stage:
    """In a round that the two others have contributed to."""
    play = stage(mode)
    play.begins(*SOURCES)
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.goes("c")
    return play


def waits_in_vain_for_c() -> Stage:
    """Halted: c has died, and no look has found what it left."""
    play = c_dies("exact")
    play.never_found(1)
    play.after(TERMS.exact_wait_s)
    assert play.root.stage == "halted"
    return play


# --- halted ------------------------------------------------------------------------------------------------------------------


def test_a_halted_tree_looks_again_when_one_comes_who_may_hold_the_record() -> None:
    """A holder whose machine was away has the finished contribution on its disk; the agent's own will never come back."""
    play = waits_in_vain_for_c()
    play.goes("b")
    before = len(play.recovers())
    play.joins("b", incarnation=2)
    assert play.recovers()[before:] == [named("c")]
    play.retrieved(play.last(Recover).number, record("c", 0))
    assert play.story()[-1] == "aggregate 0 of 3"


def test_a_round_that_waits_looks_again_when_one_comes_who_may_hold_the_record() -> None:
    play = c_dies("exact")
    play.never_found(1)
    looked = len(play.recovers())
    play.joins("b", incarnation=2)
    assert play.recovers()[looked:] == [named("b"), named("c")]


@pytest.mark.parametrize("mode", ["exact", "substitute"])
def test_what_the_dead_did_on_the_other_side_of_a_cut_is_looked_for_when_that_side_is_back(mode: RecoveryMode) -> None:
    """c was taken for dead and worked on; its finished contribution is on the disk of one who was cut off with it."""
    play = c_dies(mode)
    play.goes("b")
    play.retrieved(1, record("c", 0, version=3, complete=False))
    play.retrieved(2, record("b", 0))
    looked = len(play.recovers())
    play.joins("b", incarnation=1)
    if mode == "exact":
        assert play.recovers()[looked:] == [named("c")], "the round still waits for it"
        play.retrieved(play.last(Recover).number, record("c", 0, version=4))
        assert play.story()[-1] == "aggregate 0 of 3"
        return
    assert play.story()[-1] == "aggregate 0 of 2", "closed before that"
    play.aggregated()
    play.is_durable()
    assert play.recovers()[looked:] == [named("c")]
    play.retrieved(play.last(Recover).number, record("c", 0, version=4))
    assert play.root.work is not None
    assert play.root.work.slots[named("c")].way == "substitute"


def test_who_is_waited_for_and_leaves_is_waited_for_no_more() -> None:
    play = waits_in_vain_for_c()
    play.goes("c", cause="left")
    assert play.story()[-1] == "aggregate 0 of 2"


def test_who_has_only_another_parent_is_no_reason_to_look_again() -> None:
    """The children of a killed parent join again through another: they were heard when what it left was looked for."""
    play = c_dies("exact")
    play.goes("b", cause="orphaned")
    play.retrieved(1, record("c", 0, complete=False))
    play.joins("b")
    assert play.recovers() == [named("c")]


def test_in_mode_substitute_new_ones_take_the_place_of_those_who_left_nothing() -> None:
    """All have died, and nothing of them is found: whoever comes is a round, though somebody's return says to look again."""
    play = stage("substitute")
    play.begins(*SOURCES)
    play.goes(*SOURCES)
    for number in (1, 2, 3):
        play.never_found(number)
    assert play.root.stage == "halted"
    announced = len([order for order in play.orders if isinstance(order, Announce)])
    play.joins("new")
    assert len([order for order in play.orders if isinstance(order, Announce)]) == announced + 1
    assert play.root.stage == "train"


def test_a_halted_tree_that_another_leaves_waits_on() -> None:
    play = waits_in_vain_for_c()
    play.goes("a", cause="left")
    assert play.root.stage == "halted"
    assert named("c").short in play.root.reason


# --- looks -------------------------------------------------------------------------------------------------------------------


def test_who_dies_again_while_it_is_looked_for_is_looked_for_again() -> None:
    """The look that runs may have asked before its later life had a record: what it brings is not what was left."""
    play = c_dies("substitute")
    play.joins("c", incarnation=2)
    play.goes("c", incarnation=2)
    assert play.recovers() == [named("c"), named("c")]
    play.retrieved(1, record("c", 0, complete=False))
    assert (play.root.stage, dict(play.root.left_behind)) == ("train", {}), "the later life's is awaited"
    play.retrieved(2, record("c", 0, version=2))
    assert play.last(Aggregate).slots[named("c")].way == "replica"


def test_what_a_holder_has_named_is_asked_for_again_before_an_older_one_is_final() -> None:
    play = c_dies("exact")
    older, newest = record("c", 0, complete=False), record("c", 0, version=2)
    named_both = Holding(Peer(named("a"), "h", 1, 1), newest), Holding(Peer(named("b"), "h", 1, 1), older)
    play.took(play.root.retrieved(RetrievalEnded(1, older, named_both, 0.01, 0.5, 2, ""), {}, play.now))
    assert play.root.stage == "train"
    assert isinstance(play.until_due()[0], Recover)
    play.retrieved(1, newest)
    assert play.story()[-1] == "aggregate 0 of 3"


def test_as_many_as_die_at_once_are_looked_for() -> None:
    """A rack: no look is forgotten for others that began later."""
    names = [f"n{number:03}" for number in range(ENDED_KEPT + 60)]
    gone, here = names[:-10], names[-10:]
    play = stage("substitute", sources_min=len(names))
    play.begins(*names)
    for name in here:
        assert play.uploads(name, 0) is None
    play.goes(*gone)
    for number in range(1, len(gone) + 1):
        play.retrieved(number, record(names[number - 1], 0))
    assert play.story()[-1] == f"aggregate 0 of {len(names)}"


# --- substitute --------------------------------------------------------------------------------------------------------------


def test_a_living_straggler_without_a_replica_counts_for_the_quorum() -> None:
    play = stage("substitute")
    play.begins("a", "b", "c", "d")
    play.uploads("a", 0)
    play.after(TERMS.deadline_s)
    for number in (1, 2, 3):
        play.never_found(number)
    assert (play.root.stage, play.root.reason) == ("halted", "the deadline has passed with 1 of 4 needed")
    for name in "bcd":
        assert play.uploads(name, 0) is None
    assert play.story()[-1] == "aggregate 0 of 4"


def test_a_quorum_closes_without_the_living_stragglers() -> None:
    play = stage("substitute", quorum=0.5)
    play.begins("a", "b", "c", "d")
    play.uploads("a", 0)
    play.uploads("b", 0)
    play.after(TERMS.deadline_s)
    play.never_found(1)
    assert play.root.stage == "train"
    play.never_found(2)
    assert play.story()[-1] == "aggregate 0 of 2"


def test_where_the_chosen_cannot_fill_a_round_others_are_chosen() -> None:
    """Krum needs five of ten; one of those chosen dies and has left nothing."""
    names = tuple("abcdefghij")
    play = stage(
        "substitute", sources_min=10, contributions_min=5, rule="krum",
        selection=Selection("fraction", 0.5, seed=1, contributions_min=5),
    )  # fmt: skip
    play.begins(*names)
    chosen = set(play.last(Announce).chosen)
    dies, *rest = [name for name in names if named(name) in chosen]
    for name in rest:
        assert play.uploads(name, 0) is None
    play.goes(dies)
    play.never_found(1)
    again = set(play.last(Announce).chosen)
    assert (play.root.stage, len(again)) == ("train", 5)
    assert again - chosen
    assert chosen - again == {named(dies)}
    for name in names:
        if named(name) in again:
            assert play.uploads(name, 0, version=3) is None
    assert play.story()[-1] == "aggregate 0 of 5"
    play.aggregated()
    play.is_durable()
    assert named(dies) not in play.last(Announce).chosen, "nor is it chosen in later rounds"


def test_where_all_that_live_are_too_few_the_tree_halts_once() -> None:
    play = stage(
        "substitute", sources_min=5, contributions_min=5, rule="krum", selection=Selection("fraction", 0.5, contributions_min=5)
    )
    play.begins(*"abcde")
    for name in "abcd":
        assert play.uploads(name, 0) is None
    play.goes("e")
    play.never_found(1)
    assert play.root.stage == "halted"
    assert len(play.said("halted")) == 1
