"""Deadlines learnt from arrivals."""

from __future__ import annotations

from math import inf

import pytest

from fmrec_manager.arrivals import ENOUGH, KEPT, Arrivals
from tests.manager.stage import SOURCES, named, stage


def arrivals(*seconds: float) -> Arrivals:
    made = Arrivals()
    for each in seconds:
        made.came(each)
    return made


def test_little_is_nothing() -> None:
    assert arrivals(*[1.0] * (ENOUGH - 1)).allowed_s(0.9, 3.0, 0.5) == inf


@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 15.0), (0.9, 27.0), (1.0, 300.0), (0.01, 3.0)])
def test_a_quantile_times_a_factor(quantile: float, expected: float) -> None:
    """Nine come within 1 to 9 seconds, one takes 100: nine tenths do not wait for it."""
    assert arrivals(*range(1, 10), 100.0).allowed_s(quantile, 3.0, 0.5) == expected


def test_never_shorter_than_noticing_takes_and_the_old_is_forgotten() -> None:
    made = arrivals(*[100.0] * KEPT)
    for _ in range(KEPT):
        made.came(0.01)
    assert made.allowed_s(1.0, 3.0, 2.85) == 2.85


def test_a_round_is_given_what_earlier_ones_took_and_the_fixed_deadline_at_most() -> None:
    """Eight arrivals after 2 s each: the next round is late after 6, not after 30."""
    play = stage("substitute", rounds=9, learn_factor=3.0, deadline_min_s=1.0)
    play.begins(*SOURCES)
    for number in range(3):
        assert play.root.work is not None
        assert play.root.work.late_at(play.root.plan.terms) == play.now + 30.0, "too little is known yet"
        play.after(2.0)
        play.closes(number, *SOURCES)
    play.uploads("a", 3)
    play.uploads("b", 3)
    play.after(5.9)
    assert play.recovers() == []
    play.after(0.2)
    assert play.recovers() == [named("c")]
    assert next(iter(play.root.recoveries)).loss.cause == "deadline"
    assert play.root.liveness.members[named("c")].state == "alive"


def test_a_fixed_deadline_stays_as_it_is() -> None:
    play = stage("substitute", rounds=9)
    play.begins(*SOURCES)
    for number in range(4):
        play.after(0.5)
        play.closes(number, *SOURCES)
    play.after(29.9)
    assert play.recovers() == []
