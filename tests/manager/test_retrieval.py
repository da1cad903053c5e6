"""One recovery: what its report says, and that it looks again only so often."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmrec_manager.liveness import Loss
from fmrec_manager.retrieval import AGAIN_S, ENDED_KEPT, LOOK_MAX, Recoveries, Recovery
from protocol.identifiers import Peer, agent_id, tree_id
from protocol.overlay.effects import RetrievalEnded
from protocol.wire.values import Holding, RecordSummary

OWNER = agent_id("c", "a")
HOLDERS = [Peer(agent_id("c", name), "h", 1, 1) for name in ("x", "y")]


def record(version: int = 4, iteration: int = 150) -> RecordSummary:
    return RecordSummary(OWNER, tree_id("main", "t"), version, 1, 3, iteration, False, 1000, bytes([version]) * 32)


def recovery(iteration: int = 180) -> Recovery:
    return Recovery(1, Loss(OWNER, 1, "death", "refused", 0.0, iteration), noticed=10.0)


def nothing(reason: str = "no live node holds a record of it") -> RetrievalEnded:
    return RetrievalEnded(1, None, (), 0.01, 0.0, 0, reason)


def found(named: int = 3) -> RetrievalEnded:
    """Version 4 has come; another holder has named this version, the one before it."""
    holdings = (Holding(HOLDERS[0], record(named)), Holding(HOLDERS[1], record()))
    return RetrievalEnded(1, record(), holdings, 0.01, 0.02, 1)


def test_found_at_once() -> None:
    it = recovery()
    assert it.ended(found(), 10.05) == "verified"
    assert (it.located_s, it.transferred_s) == (0.01, 0.02)
    assert it.total_s == pytest.approx(0.05)
    assert it.again_at is None
    assert it.holder == HOLDERS[1].id, "the holder of the version that was brought"
    assert it.has_the_newest


def test_an_older_one_than_was_named_is_taken_when_the_newest_has_not_come_in_all_looks() -> None:
    it, now = recovery(), 10.0
    for _ in range(LOOK_MAX - 1):
        assert it.ended(found(named=5), now) == "running"
        assert it.again_at is not None
        now = it.again_at
    assert it.ended(found(named=5), now) == "verified"
    assert (it.record, it.holder) == (record(), HOLDERS[1].id)
    assert not it.has_the_newest


def test_the_newest_comes_at_the_second_look() -> None:
    it = recovery()
    assert it.ended(found(named=5), 10.1) == "running"
    assert it.ended(RetrievalEnded(1, record(5), found(named=5).holdings, 0.01, 0.02, 1), 10.5) == "verified"
    assert (it.record, it.has_the_newest) == (record(5), True)


def test_where_a_quorum_was_unheard_what_came_may_not_be_the_newest() -> None:
    """All who hold it were slow to answer; the others had an older one, or the next look is as deaf as the first."""
    deaf = replace(found(), complete=False, sure=False)
    it = recovery()
    assert it.ended(deaf, 10.1) == "running"
    assert it.ended(RetrievalEnded(1, record(5), (), 0.01, 0.02, 1), 10.5) == "verified"
    it = recovery()
    assert [it.ended(deaf, 10.0 + look) for look in range(LOOK_MAX)] == ["running"] * (LOOK_MAX - 1) + ["verified"]
    assert (it.record, it.has_the_newest) == (record(), False)
    it = recovery()
    assert it.ended(replace(found(), complete=False), 10.1) == "verified", "one slow neighbour is not waited for"


def test_it_looks_again_with_growing_waits_and_then_says_that_it_is_lost() -> None:
    it, now, waits = recovery(), 10.0, []
    for _ in range(LOOK_MAX - 1):
        assert it.ended(nothing(), now) == "running"
        assert it.again_at is not None
        waits.append(it.again_at - now)
        now = it.again_at
    assert waits == pytest.approx([AGAIN_S * (n + 1) for n in range(LOOK_MAX - 1)])
    assert it.ended(nothing(), now) == "lost"
    assert (it.again_at, it.record, it.holder) == (None, None, None)
    assert it.reason == "no live node holds a record of it"
    assert it.total_s == pytest.approx(now - 10.0)


def test_found_at_the_second_look_the_wait_counts_into_the_total_alone() -> None:
    it = recovery()
    it.ended(nothing(), 10.1)
    assert it.ended(found(), 10.5) == "verified"
    assert it.located_s + it.transferred_s == pytest.approx(0.03)
    assert it.total_s == pytest.approx(0.5)


@pytest.mark.parametrize(("heard", "behind"), [(180, 30), (150, 0), (120, 0), (-1, None)])
def test_iterations_behind(heard: int, behind: int | None) -> None:
    """Progress is heard with delay, so that a record may be ahead of it; unknown progress is no zero."""
    it = recovery(heard)
    assert it.iterations_behind is None
    it.ended(found(), 10.05)
    assert it.iterations_behind == behind


def test_all_that_run_are_kept_and_of_those_that_ended_the_last() -> None:
    every = Recoveries()
    for number in range(ENDED_KEPT + 50):
        every.begin(Loss(agent_id("c", str(number)), 1, "death", "refused", 0.0, 0), 10.0)
    assert [each.number for each in every] == [*range(1, ENDED_KEPT + 51)], "none has ended"
    for each in every:
        if each.number > 1:
            each.ended(RetrievalEnded(each.number, record(), (), 0.01, 0.02, 1), 11.0)
    every.begin(Loss(OWNER, 1, "death", "refused", 0.0, 0), 12.0)
    numbers = [each.number for each in every]
    assert (numbers[0], numbers[-1], len(numbers)) == (1, ENDED_KEPT + 51, ENDED_KEPT + 2)
    assert every.running(agent_id("c", "0"))
    assert not every.running(agent_id("c", "1"))
    assert every.of_number(1) is not None
    assert every.of_number(numbers[1]) is None, "it has ended"


def test_each_is_due_once_for_each_look() -> None:
    every = Recoveries()
    one = every.begin(Loss(OWNER, 1, "death", "refused", 0.0, 0), 10.0)
    assert every.next_deadline() is None
    one.ended(nothing(), 10.5)
    assert every.next_deadline() == pytest.approx(10.5 + AGAIN_S)
    assert every.due(10.5) == []
    assert every.due(10.5 + AGAIN_S) == [one]
    assert every.due(10.5 + AGAIN_S) == []
    assert every.next_deadline() is None
