"""A ballot among electors: when it is carried, lost, or waits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

import pytest

from fmrec_manager.ballot import FORGETFUL_ASKS, Ballot, electors_of, groups_of
from protocol.identifiers import rank
from protocol.overlay.effects import ElectorAnswered
from tests.manager.stage import TREE, info, named

NAMES = ("a", "b", "c", "d", "e")


def ballot(count: int) -> Ballot:
    return Ballot(1, {info(name).peer.id: info(name).peer for name in NAMES[:count]})


def told(count: int, *answers: str) -> Ballot:
    """The first answers, in the order of the names; the rest is silent. forgetful: it grants, and remembers nothing."""
    asked = ballot(count)
    for name, answer in zip(NAMES, answers, strict=False):
        if answer == "forgetful":
            asked.heard(ElectorAnswered(1, named(name), "granted"))
        elif answer != "silent":
            word = ElectorAnswered(1, named(name), answer, version=4, reason="term 9 is promised", remembers=True)  # type: ignore[arg-type]
            asked.heard(word)
    return asked


def test_the_electors_are_the_members_nearest_to_the_tree() -> None:
    chosen = electors_of([info(name) for name in NAMES], TREE, 3)
    assert [peer.id for peer in chosen] == sorted((named(name) for name in NAMES), key=lambda agent: rank(TREE, agent))[:3]
    assert len(electors_of([info(name) for name in NAMES], TREE, 12)) == 5


@pytest.mark.parametrize(
    ("count", "answers", "verdict"),
    [
        (0, (), "carried"),
        (1, (), "wait"),
        (1, ("granted",), "carried"),
        (2, ("granted",), "wait"),
        (3, ("granted", "granted"), "carried"),
        (3, ("granted", "refused"), "wait"),
        (3, ("refused", "refused"), "lost"),
        (4, ("granted", "granted"), "wait"),
        (4, ("refused", "refused"), "lost"),
        (5, ("gone", "gone", "gone", "granted"), "wait"),
        (5, ("gone", "gone", "gone", "gone", "granted"), "carried"),
        (5, ("gone", "gone", "gone", "gone", "refused"), "lost"),
        (3, ("gone", "gone", "gone"), "carried"),
    ],
)
def test_more_than_half_of_those_who_have_a_say_carry_it(count: int, answers: tuple[str, ...], verdict: str) -> None:
    assert told(count, *answers).judge()[0] == verdict


@pytest.mark.parametrize(
    ("answers", "verdict", "asked_often"),
    [
        (("granted", "granted", "granted"), "carried", "carried"),
        (("granted", "granted", "forgetful"), "wait", "carried"),
        (("granted", "granted", "forgetful", "gone", "gone"), "carried", "carried"),
        (("granted", "granted", "forgetful", "forgetful", "silent"), "wait", "carried"),
        (("granted", "granted", "forgetful", "forgetful", "forgetful"), "carried", "carried"),
        (("granted", "granted", "forgetful", "forgetful", "refused"), "lost", "lost"),
        (("granted", "granted", "forgetful", "silent", "refused"), "wait", "wait"),
        (("granted", "granted", "granted", "forgetful", "refused"), "carried", "carried"),
        (("forgetful", "forgetful", "forgetful", "forgetful", "forgetful"), "carried", "carried"),
        (("forgetful", "forgetful", "forgetful", "forgetful", "silent"), "wait", "carried"),
        (("forgetful", "forgetful", "silent", "silent", "silent"), "wait", "wait"),
        (("gone", "gone", "gone", "gone", "forgetful"), "carried", "carried"),
    ],
)
def test_who_remembers_nothing_counts_where_nobody_refuses_or_is_silent(answers: tuple[str, ...], verdict: str, asked_often: str) -> None:
    """Rule 6."""
    given = told(5, *answers)
    assert given.judge()[0] == verdict
    given.asks = FORGETFUL_ASKS
    assert given.judge()[0] == asked_often


def test_a_sounding_needs_no_memory() -> None:
    given = told(3, "forgetful", "forgetful")
    assert given.judge()[0] == "wait"
    sounded = Ballot(0, given.electors, binding=False)
    for name in NAMES[:2]:
        sounded.heard(ElectorAnswered(0, named(name), "granted"))
    assert sounded.judge()[0] == "carried"


def test_who_has_remembered_nothing_once_does_not_remember_because_it_is_asked_again() -> None:
    given = told(3, "granted", "forgetful", "refused")
    given.heard(ElectorAnswered(1, named("b"), "granted", version=1))
    assert given.judge()[0] == "lost"


def test_two_ballots_of_the_same_electors_are_never_both_carried() -> None:
    """Whatever each of them is told: an elector grants one of them at most, and who is gone to one is gone to the other."""
    for answers in product(("first", "second", "silent", "gone"), repeat=5):
        first = told(5, *("granted" if a == "first" else a if a in ("silent", "gone") else "refused" for a in answers))
        second = told(5, *("granted" if a == "second" else a if a in ("silent", "gone") else "refused" for a in answers))
        if set(answers) != {"gone"}:
            assert {"carried"} != {first.judge()[0], second.judge()[0]}, answers


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        (("granted", "granted"), "wait"),
        (("granted", "granted", "silent", "granted"), "wait"),
        (("granted", "granted", "silent", "granted", "granted"), "carried"),
        (("granted", "granted", "granted", "silent", "silent"), "wait"),
        (("granted", "granted", "granted", "gone", "gone"), "carried"),
        (("granted", "granted", "silent", "refused", "refused"), "lost"),
        (("refused", "refused", "silent", "silent", "silent"), "lost"),
    ],
)
def test_each_of_several_groups_must_carry_it(answers: tuple[str, ...], verdict: str) -> None:
    """a, b, c; and c, d, e."""
    asked = told(5, *answers)
    asked.groups = groups_of(map(named, "abc"), map(named, "cde"), (), map(named, "abc"))
    assert len(asked.groups) == 2
    assert asked.judge()[0] == verdict


def test_the_last_word_of_an_elector_counts() -> None:
    """It was gone, and its next life grants."""
    asked = told(2, "granted", "gone")
    assert asked.judge()[0] == "carried"
    asked.heard(ElectorAnswered(1, named("b"), "refused", promised=9))
    assert asked.judge()[0] == "lost"
    asked.heard(ElectorAnswered(1, named("b"), "granted"))
    assert asked.judge()[0] == "carried"
    assert asked.term == 9


def test_a_grant_of_a_life_that_is_over_does_not_count() -> None:
    """Rule 3: its next life may not keep the promise; where it lives elsewhere, it is asked there."""
    asked = told(3, "granted", "granted")
    elsewhere = replace(info("b").peer, port=9, incarnation=2)
    asked.lives(elsewhere)
    assert asked.judge()[0] == "wait"
    assert asked.silent() == (elsewhere, info("c").peer)
    asked.heard(ElectorAnswered(1, named("b"), "gone"))
    asked.lives(replace(elsewhere, incarnation=3))
    assert asked.judge()[0] == "wait", "it is not gone"
    asked.heard(ElectorAnswered(1, named("b"), "granted", version=1, remembers=True))
    asked.lives(info("b").peer)
    asked.lives(info("e").peer)
    assert (asked.judge()[0], len(asked.electors)) == ("carried", 3), "news of an earlier life, and of nobody's, change nothing"


@pytest.mark.parametrize(
    ("answer", "verdict", "asked_on"), [("granted", "carried", "c"), ("gone", "wait", "ac"), ("refused", "wait", "ac")],
)
def test_who_is_said_to_have_died_is_asked_again_and_its_answer_counts(
    answer: Literal["granted", "gone", "refused"], verdict: str, asked_on: str
) -> None:
    """It may hang, and keeps its promise then. Who has not granted is asked in any case."""
    asked = told(3, "granted", "granted")
    asked.departed(named("a"))
    asked.departed(named("c"))
    assert asked.judge()[0] == "carried"
    assert asked.silent() == (info("a").peer, info("c").peer)
    asked.heard(ElectorAnswered(1, named("a"), answer, remembers=True))
    assert asked.judge()[0] == verdict
    assert asked.silent() == tuple(info(name).peer for name in asked_on)


def test_whom_to_ask_again() -> None:
    asked = told(4, "granted", "refused", "gone")
    assert {peer.id for peer in asked.silent()} == {named("b"), named("c"), named("d")}
    assert named("d").short in asked.judge()[1]


def test_the_newest_version_is_told_by_who_grants() -> None:
    asked = ballot(3)
    asked.heard(ElectorAnswered(1, named("a"), "granted", version=7, written=1, remembers=True))
    asked.heard(ElectorAnswered(1, named("b"), "granted", version=6, written=2, remembers=True))
    asked.heard(ElectorAnswered(1, named("x"), "granted", version=99, written=9))
    assert (asked.newest, asked.judge()) == ((2, 6), ("carried", "2 of 3 electors agree")), "of two, that of the later term"
