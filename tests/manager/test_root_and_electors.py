"""One tree's root and its electors: nothing is announced that they have not agreed to, and who is superseded decides nothing more (P6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmrec_manager.orders import Announce, Ask, Commit, LocateOwn, StepDown
from protocol.identifiers import Peer
from protocol.overlay.effects import ElectorAnswered
from protocol.wire.values import MemberInfo
from tests.manager.stage import PLAN, SOURCES, Stage, named, resumed, stage

AGAIN = PLAN.answer_max_s


def disloyal(*names: str) -> Stage:
    """Started and resumed at round 1 from version 4, which was written in term 1; the electors have not said anything."""
    play = stage("exact")
    play.loyal = False
    play.took(play.root.start(0.0))
    play.took(play.root.located(resumed(1, *(names or SOURCES)), True, play.now))
    return play


def says(play: Stage, name: str, answer: str, question: int, **facts: int) -> None:
    play.elector(named(name), answer, question, **facts)


def test_before_anything_is_written_more_than_half_must_promise() -> None:
    play = disloyal()
    assert {peer.id for peer in play.last(Ask).electors} == {named(name) for name in SOURCES}
    says(play, "a", "granted", 0)
    assert (play.root.stage, play.story()) == ("electing", [])
    assert not [order for order in play.orders if isinstance(order, Commit)]
    says(play, "b", "granted", 0)
    assert play.last(Commit) == Commit(5, 1), "what was found, written anew"
    play.is_durable()
    says(play, "a", "granted", 5)
    assert play.story() == []
    says(play, "c", "granted", 5)
    assert play.story() == ["train 1"]
    assert play.said("goes_on")


def test_the_silent_are_asked_again_and_it_is_said() -> None:
    play = disloyal()
    says(play, "a", "granted", 0)
    asked = [order for order in play.after(AGAIN) if isinstance(order, Ask)]
    assert [{peer.id for peer in order.electors} for order in asked] == [{named("b"), named("c")}]
    play.after(20.0)
    complaints = play.said("not_agreed")
    assert 3 <= len(complaints) <= 5
    assert f"1 of 3 electors agree, 2 must; not yet: {named('b').short}, {named('c').short}" in str(complaints[0]["reason"])
    says(play, "b", "granted", 0)
    assert play.root.stage == "committing"


def test_an_elector_is_asked_where_it_was_last_heard() -> None:
    """A replaced machine: the same name, another address."""
    play = disloyal()
    moved = Peer(named("b"), "10.0.0.9", 7900, 7)
    play.took(play.root.members_changed([MemberInfo(moved, "b", "source", 9)], [], play.now))
    says(play, "a", "granted", 0)
    says(play, "c", "granted", 0)
    play.is_durable()
    assert moved in play.last(Ask).electors


@pytest.mark.parametrize("cause", ["died", "left"])
@pytest.mark.parametrize("reason", ["connection refused", "silent for 1.2 s; connection refused", "no answer to a fresh dial"])
def test_an_elector_that_is_said_to_be_gone_after_it_has_agreed_is_asked_again(cause: str, reason: str) -> None:
    """At once, whatever is thought to be the reason; it may hang, and keep its promise."""
    play = disloyal()
    says(play, "a", "granted", 0)
    asked = [order for order in play.goes("a", cause=cause, reason=reason) if isinstance(order, Ask)]
    assert [{peer.id for peer in order.electors} for order in asked] == [{named(name) for name in SOURCES}]
    says(play, "a", "gone", 0)
    says(play, "b", "granted", 0)
    assert play.root.stage == "electing", "one of the two that live has agreed"
    says(play, "c", "granted", 0)
    assert play.root.stage == "committing"


def test_the_next_life_of_an_elector_that_has_agreed_is_asked_where_it_lives() -> None:
    """It may have forgotten what the last one has promised."""
    play = disloyal()
    says(play, "a", "granted", 0)
    moved = Peer(named("a"), "10.0.0.9", 7900, 2)
    orders = play.took(play.root.members_changed([MemberInfo(moved, "a", "source", 9)], [], play.now))
    assert [moved in order.electors for order in orders if isinstance(order, Ask)] == [True]
    says(play, "b", "granted", 0)
    assert play.root.stage == "electing"
    says(play, "a", "granted", 0)
    assert play.root.stage == "committing"


def test_an_elector_that_hangs_after_it_has_agreed_has_agreed() -> None:
    """Silence ends no life: its promise is kept."""
    play = disloyal()
    says(play, "a", "granted", 0)
    play.goes("a", reason="silent for 1.0 s")
    says(play, "b", "granted", 0)
    assert play.root.stage == "committing"


def test_who_has_left_is_not_asked_and_not_waited_for() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.goes("a", "b", cause="left")
    play.loyal = False
    play.uploads("c", 0)
    play.aggregated()
    play.is_durable()
    assert [peer.id for peer in play.last(Ask).electors] == [named("c")]
    says(play, "c", "granted", 2)
    assert play.story()[-1] == "train 1"


def test_a_version_is_put_to_the_members_of_the_one_before_it() -> None:
    """Who joins now may not carry a ballot against those who were there."""
    play = stage("exact")
    play.begins(*SOURCES)
    play.joins(*(f"d{number}" for number in range(8)))
    play.closes(0, *SOURCES)
    assert {peer.id for peer in play.last(Ask).electors} == {named(name) for name in SOURCES}
    play.closes(1, *SOURCES, *(f"d{number}" for number in range(8)))
    assert len(play.last(Ask).electors) == 11


def test_a_lost_ballot_is_the_end_and_is_said_in_a_sentence() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.loyal = False
    for name in SOURCES:
        play.uploads(name, 0)
    play.aggregated()
    play.is_durable()
    says(play, "a", "granted", 2)
    before = play.story()
    says(play, "b", "refused", 2, promised=9)
    says(play, "c", "refused", 2, promised=9)
    assert play.root.stage == "superseded"
    assert "has another root by now: 2 of 3 electors refuse" in play.last(StepDown).reason
    assert play.after(1000) == [], "it decides nothing more"
    play.joins("a", incarnation=2)
    assert play.uploads("a", 1) == "train of round 1 is not open"
    assert play.is_durable() == []
    assert play.story() == before


def test_superseded_by_the_word_of_the_ring_in_the_middle_of_a_round() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    play.uploads("a", 0)
    assert play.took(play.root.superseded("is rooted elsewhere", 7)) == [StepDown("is rooted elsewhere", 7)]
    assert play.took(play.root.superseded("is rooted elsewhere", 7)) == [], "said once"
    assert play.uploads("b", 0) == "train of round 0 is not open"
    play.goes("c")
    assert play.recovers() == []


def test_superseded_while_it_folds_in_it_commits_nothing_of_that() -> None:
    play = stage("exact")
    play.begins(*SOURCES)
    for name in SOURCES:
        play.uploads(name, 0)
    assert play.root.stage == "aggregating"
    play.took(play.root.superseded("is rooted elsewhere", 7))
    assert play.root.aggregated(0.5, play.now) == []
    assert (play.root.stage, play.root.next_round) == ("superseded", 0)


def test_an_older_record_than_was_agreed_to_is_not_gone_on_from() -> None:
    """Version 4 was found; root 1 had version 6 agreed to, whose holders do not answer yet."""
    play = disloyal()
    says(play, "a", "granted", 0)
    says(play, "b", "granted", 0, version=6, written=1)
    assert play.root.stage == "locating"
    assert not [order for order in play.orders if isinstance(order, Commit)]
    assert LocateOwn() in play.after(0.0)
    play.took(play.root.located(resumed(1, *SOURCES), True, play.now))
    assert play.root.reason == "version 6 was committed, and only version 4 is found: start the agents that hold it, or name another tree"
    assert LocateOwn() in play.after(1.0)
    play.took(play.root.located(None, True, play.now))
    assert "none is found" in play.root.reason, "never a silent restart from zero (P2)"
    assert LocateOwn() in play.after(1.0)
    play.took(play.root.located(resumed(2, *SOURCES, version=6), True, play.now))
    says(play, "a", "granted", 0)
    says(play, "b", "granted", 0, version=6, written=1)
    assert play.last(Commit) == Commit(7, 2)


def test_of_two_versions_of_one_number_the_later_term_counts() -> None:
    play = disloyal()
    says(play, "a", "granted", 0)
    says(play, "b", "granted", 0, version=4, written=2)
    assert play.root.stage == "locating"
    play.took(play.root.located(replace(resumed(1, *SOURCES), term=2), True, play.now))
    says(play, "a", "granted", 0)
    says(play, "c", "granted", 0)
    assert play.last(Commit) == Commit(5, 1)


def test_a_first_run_asks_whoever_has_joined_before_it_writes_theta_0() -> None:
    play = stage("exact")
    play.loyal = False
    play.took(play.root.start(0.0))
    play.located()
    play.joins(*SOURCES)
    play.located()
    name = next(name for name in SOURCES if named(name) == play.last(Announce).asked)
    play.uploads(name, 0, "init")
    assert (play.root.stage, play.last(Ask).version) == ("electing", 0)
    for voter in ("a", "b"):
        says(play, voter, "granted", 0)
    assert play.last(Commit) == Commit(1, 0)


def test_an_answer_to_another_question_counts_for_nothing() -> None:
    play = disloyal()
    for name in SOURCES:
        play.took(play.root.elector_answered(ElectorAnswered(4, named(name), "granted"), 4, play.now))
    assert play.root.stage == "electing"
