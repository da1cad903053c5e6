"""Who is alive, suspect, dead or gone: each rule of liveness.py, told as the news that the overlay brings."""

from __future__ import annotations

from typing import Literal

import pytest

from fmrec_manager.liveness import Liveness, Loss
from protocol.identifiers import Peer, agent_id
from protocol.wire.values import Departed, MemberInfo

ORPHAN_MAX_S = 3.0
A = agent_id("c", "a")


def life(incarnation: int = 1, name: str = "a", role: str = "source") -> MemberInfo:
    return MemberInfo(Peer(agent_id("c", name), "127.0.0.1", 7710, incarnation), name, role, 100 + incarnation)


def gone(
    cause: Literal["died", "left", "moved", "orphaned"], incarnation: int = 1, reason: str = "connection refused", iteration: int = -1
) -> Departed:
    return Departed(A, incarnation, cause, reason, silent_ms=40, iteration=iteration)


@pytest.fixture
def liveness() -> Liveness:
    """`a` is alive in its first life since 0 s."""
    liveness = Liveness(ORPHAN_MAX_S)
    assert liveness.changed([life()], [], 0.0) == []
    return liveness


def state(liveness: Liveness) -> str:
    return liveness.members[A].state


def test_rule_1_who_is_heard_is_alive(liveness: Liveness) -> None:
    assert state(liveness) == "alive"
    assert liveness.members[A].reason == "joined"
    assert liveness.next_deadline() is None


def test_rule_1_a_later_incarnation_ends_the_life_before_and_is_alive(liveness: Liveness) -> None:
    (loss,) = liveness.changed([life(2)], [], 1.0)
    assert (loss.agent, loss.incarnation, loss.cause) == (A, 1, "restart")
    assert (state(liveness), liveness.members[A].reason) == ("alive", "restarted as incarnation 2")
    assert liveness.members[A].info.pid == 102
    assert liveness.members[A].iteration == -1, "what the last life had done says nothing of this one"


def test_rule_1_a_restart_of_a_life_that_is_known_to_be_over_is_no_second_loss(liveness: Liveness) -> None:
    assert len(liveness.changed([], [gone("died")], 1.0)) == 1
    assert liveness.changed([life(2)], [], 2.0) == []
    assert state(liveness) == "alive"


@pytest.mark.parametrize(("reason", "cause"), [("connection refused", "death"), ("silent for 0.91 s", "heartbeat")])
def test_rule_2_a_death_is_a_loss_at_once_and_says_how_it_was_noticed(liveness: Liveness, reason: str, cause: str) -> None:
    losses = liveness.changed([], [gone("died", reason=reason, iteration=70)], 1.0)
    assert losses == [Loss(A, 1, cause, reason, 0.04, 70)]  # type: ignore[arg-type]
    assert state(liveness) == "dead"


def test_rule_2_a_death_that_two_neighbours_tell_is_one_loss(liveness: Liveness) -> None:
    assert len(liveness.changed([], [gone("died"), gone("died")], 1.0)) == 1
    assert liveness.changed([], [gone("died")], 2.0) == []


@pytest.mark.parametrize("cause", ["orphaned", "moved"])
def test_rule_3_an_orphan_is_suspect_and_dead_only_when_it_is_late(liveness: Liveness, cause: Literal["moved", "orphaned"]) -> None:
    assert liveness.changed([], [gone(cause, reason="its parent died")], 1.0) == []
    assert state(liveness) == "suspect"
    assert liveness.next_deadline() == 1.0 + ORPHAN_MAX_S
    assert liveness.late(1.0 + ORPHAN_MAX_S - 0.001) == []
    (loss,) = liveness.late(1.0 + ORPHAN_MAX_S)
    assert (loss.cause, loss.silent_s) == ("heartbeat", ORPHAN_MAX_S)
    assert loss.reason == "its parent died, and not heard through another parent for 3.0 s"
    assert state(liveness) == "dead"
    assert liveness.next_deadline() is None


def test_rule_3_an_orphan_that_is_heard_through_another_parent_was_never_lost(liveness: Liveness) -> None:
    liveness.changed([], [gone("orphaned")], 1.0)
    assert liveness.changed([life()], [], 2.0) == []
    assert state(liveness) == "alive"
    assert liveness.late(100.0) == []


def test_rule_3_told_twice_the_time_of_an_orphan_does_not_begin_again(liveness: Liveness) -> None:
    liveness.changed([], [gone("orphaned")], 1.0)
    liveness.changed([], [gone("orphaned")], 3.0)
    assert liveness.next_deadline() == 1.0 + ORPHAN_MAX_S


def test_rule_3_who_moves_in_one_breath_is_alive(liveness: Liveness) -> None:
    assert liveness.changed([life()], [gone("moved")], 1.0) == []
    assert state(liveness) == "alive"


def test_rule_4_nobody_waits_for_who_left_in_order(liveness: Liveness) -> None:
    assert liveness.changed([], [gone("left", reason="said goodbye")], 1.0) == []
    assert state(liveness) == "left"
    assert liveness.of_role("source") == {}
    assert liveness.late(100.0) == []


@pytest.mark.parametrize("cause", ["died", "orphaned", "moved"])
def test_rule_4_the_closed_connection_of_who_left_is_no_death(liveness: Liveness, cause: Literal["died", "moved", "orphaned"]) -> None:
    """The goodbye comes first, then the reset that its end brings, through another neighbour."""
    liveness.changed([], [gone("left")], 1.0)
    assert liveness.changed([], [gone(cause)], 1.1) == []
    assert state(liveness) == "left"


def test_rule_4_who_left_may_come_back_and_may_die_then(liveness: Liveness) -> None:
    liveness.changed([], [gone("left")], 1.0)
    assert liveness.changed([life(2)], [], 2.0) == []
    assert state(liveness) == "alive"
    assert len(liveness.changed([], [gone("died", 2)], 3.0)) == 1


def test_rule_5_after_a_restart_of_the_manager_everyone_on_record_is_suspect_until_heard() -> None:
    liveness = Liveness(ORPHAN_MAX_S)
    liveness.changed([life(name="b")], [], 5.0)
    liveness.expect([life(), life(name="b")], 5.0)
    assert (state(liveness), liveness.members[agent_id("c", "b")].state) == ("suspect", "alive")
    (loss,) = liveness.late(5.0 + ORPHAN_MAX_S)
    assert loss.agent == A
    assert "not heard since the manager restarted" in loss.reason


def test_wrongly_judged_dead_it_comes_back_in_the_same_life(liveness: Liveness) -> None:
    liveness.changed([], [gone("died", reason="silent for 2.00 s")], 1.0)
    assert liveness.changed([life()], [], 2.0) == []
    assert (state(liveness), liveness.members[A].reason) == ("alive", "heard again")
    assert len(liveness.changed([], [gone("died")], 3.0)) == 1, "and may die in earnest"


@pytest.mark.parametrize("cause", ["died", "left", "orphaned", "moved"])
def test_stale_news_of_an_older_life_is_ignored(liveness: Liveness, cause: Literal["died", "left", "moved", "orphaned"]) -> None:
    liveness.changed([life(2)], [], 1.0)
    assert liveness.changed([life(1)], [gone(cause, 1)], 2.0) == []
    assert state(liveness) == "alive"
    assert liveness.members[A].info.peer.incarnation == 2


def test_news_of_a_stranger_is_ignored(liveness: Liveness) -> None:
    assert liveness.changed([], [Departed(agent_id("c", "x"), 1, "died", "refused")], 1.0) == []
    assert list(liveness.members) == [A]


def test_members_of_one_role_come_in_the_order_of_their_ids() -> None:
    liveness = Liveness(ORPHAN_MAX_S)
    liveness.changed([life(name=name) for name in "abcdef"] + [life(name="t", role="target")], [], 0.0)
    found = list(liveness.of_role("source"))
    assert found == sorted(found)
    assert len(found) == 6
    assert liveness.counts() == {"alive": 7, "suspect": 0, "dead": 0, "left": 0}
