"""What is passed on, what is kept, and who is told of a gap; then the same over a few hops."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.overlay.multicasts import NOTHING, Multicasts, Order
from protocol.wire import messages as m
from tests.overlay.grove import Grove, capped
from tests.overlay.scene import P, node_id, peer

TREE = node_id(0x10)
BODY = m.RoundOpen("train", 1, 1, "exact", peer(0x10))
CHAIN = {0x10: None, 0x20: 0x10, 0x30: 0x20, 0x40: 0x30, 0x50: 0x20}


def order(sequence: int, life: int = 1, *, previous: Order | None = None, resumes: bool = False) -> m.Multicast:
    return m.Multicast(TREE, (life, sequence), BODY, (life, sequence - 1) if previous is None else previous, resumes)


def having(*sequences: int, kept_max: int = 32) -> Multicasts:
    """A node that began with the first of these."""
    found = Multicasts(kept_max)
    for sequence in sequences:
        found.take(order(sequence, resumes=sequence == sequences[0]))
    return found


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (order(6), "next"),
        (order(5), "old"),
        (order(3), "old"),
        (order(7), "early"),
        (order(7, resumes=True), "gap"),
        (order(6, resumes=True), "next"),
        (order(1, life=2, previous=(1, 90)), "next"),
        (order(2, life=2), "early"),
        (order(9, previous=(1, 4)), "next"),
    ],
)
def test_what_a_multicast_is_to_a_node_that_has_had_five(message: m.Multicast, kind: str) -> None:
    found = having(4, 5)
    assert found.take(message) == kind
    assert found.order == (message.order if kind in ("next", "gap") else (1, 5))


def test_a_newcomer_begins_with_what_its_parent_resumes_with_and_has_missed_nothing() -> None:
    found = Multicasts(32)
    assert found.take(order(7)) == "early", "it may have lost the first ones of a root that it has been with from the start"
    assert found.take(order(7, resumes=True)) == "next"


def test_a_forwarder_takes_up_where_its_child_left_off() -> None:
    """It has no place of its own, and names the child's to its parent: what follows that is next."""
    found = Multicasts(32)
    assert found.seen([NOTHING, (1, 6), (1, 4)]) == (1, 4)
    assert found.take(order(5)) == "next"


def test_the_place_told_up_is_that_of_the_child_that_cannot_be_served() -> None:
    found = having(5, 6, 7, kept_max=2)
    assert found.seen([(1, 6), (1, 5), NOTHING, (1, 9)]) == (1, 7), "two can be served, one is ahead of us"
    assert found.seen([(1, 3), (1, 4), (1, 7)]) == (1, 3)


def test_what_is_kept_is_bounded_and_says_where_it_breaks_off() -> None:
    found = having(*range(1, 10), kept_max=3)
    assert [message.order[1] for message in found.after((1, 7), NOTHING)] == [8, 9]
    lacking = found.after((1, 2), NOTHING)
    assert [(message.order[1], message.resumes) for message in lacking] == [(7, True), (8, False), (9, False)]
    assert not found.reach((1, 5))
    assert found.reach((1, 6))


def test_the_root_counts_anew_in_each_life() -> None:
    found = having(41, 42)
    assert found.make(TREE, 2, BODY) == m.Multicast(TREE, (2, 1), BODY, (1, 42))
    assert found.make(TREE, 2, BODY).order == (2, 2)


@given(st.lists(st.sampled_from(["order", "lost", "back"]), max_size=60), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_over_a_link_that_loses_each_comes_once_in_order_or_with_a_gap(story: list[str], kept_max: int) -> None:
    """`back`: the child tells where it is, and is sent what it lacks."""
    root, child, got = Multicasts(kept_max), Multicasts(kept_max), list[tuple[int, bool]]()

    def hand(message: m.Multicast) -> None:
        if (kind := child.take(message)) in ("next", "gap"):
            got.append((message.order[1], kind == "gap"))

    for step in [*story, "order", "back"]:
        if step == "back":
            for message in root.after(child.order, NOTHING):
                hand(message)
            assert child.order == root.order
        else:
            message = root.make(TREE, 1, BODY)
            if step == "order":
                hand(message)
    numbers = [number for number, _ in got]
    assert numbers == sorted(set(numbers))
    for (before, _), (after, gap) in pairwise(got):
        assert gap == (after != before + 1)


# --- over a few hops --------------------------------------------------------------------------------------------------


def grown(*members: int, routes: dict[int, int | None] = CHAIN, **others: int) -> Grove:
    grove = Grove(TREE, routes, capped(16, **others))
    grove.create(0x10)
    grove.join(*members)
    grove.run(1.0)
    return grove


def test_a_forwarder_that_becomes_a_member_is_given_the_order_that_it_has_passed_on() -> None:
    """An agent looks for its own record; meanwhile its neighbour joins through it, and the round is opened."""
    grove = grown(0x30)
    grove.order(0x10, 7)
    grove.run(0.5)
    assert grove.rounds(0x30) == [7]
    assert grove.rounds(0x20) == [], "a forwarder is given no orders"
    grove.join(0x20)
    assert grove.rounds(0x20) == [7]
    grove.order(0x10, 8)
    grove.run(0.5)
    assert grove.rounds(0x20) == [7, 8]


def test_a_member_whose_child_is_ahead_of_it_is_given_the_last_order_too() -> None:
    """It restarts, and its child of before, which has the order, joins through it first: the child's place is not the member's."""
    grove = grown(0x30)
    grove.order(0x10, 7)
    grove.run(0.5)
    grove.die(0x20)
    grove.start(0x20, 2)
    grove.run(2.0)
    assert grove.way_up(0x30) == [0x20, 0x10]
    grove.join(0x20)
    grove.run(1.0)
    assert grove.rounds(0x20) == [7]
    assert grove.rounds(0x30) == [7], "once"


def test_a_newcomer_gets_the_last_one_and_no_gap() -> None:
    """Old rounds are of no use to it."""
    grove = grown(0x30)
    for number in range(1, 6):
        grove.order(0x10, number)
    grove.join(0x40)
    grove.run(2.0)
    assert [(effect.body.round, effect.gap) for effect in grove.received[0x40]] == [(5, False)]


def test_below_a_fresh_forwarder_a_member_gets_what_it_missed() -> None:
    """Its parent died; the new one has never heard of the tree, and asks its own parent for what the child lacks."""
    grove = grown(0x40, routes=CHAIN | {0x60: 0x10})
    grove.order(0x10, 1)
    grove.down.add(0x30)  # it hangs: nobody knows yet
    for number in range(2, 6):
        grove.order(0x10, number)
    assert grove.rounds(0x40) == [1]
    grove.routes |= {0x40: 0x60}
    grove.die(0x30)
    assert 0x60 in grove.in_tree()
    assert grove.rounds(0x40) == [1, 2, 3, 4, 5]
    assert not any(effect.gap for effect in grove.received[0x40])


def test_two_that_left_off_at_different_places_below_one_fresh_forwarder() -> None:
    """The second is further back than what the forwarder has asked for: it asks again, and the first is not troubled."""
    grove = grown(0x40, 0x50, routes=CHAIN | {0x60: 0x10})
    grove.order(0x10, 1)
    grove.lose = lambda sender, receiver, message: receiver == 0x50 and isinstance(message, m.Multicast)
    grove.order(0x10, 2)
    grove.order(0x10, 3)
    grove.down |= {0x30, 0x20}
    grove.order(0x10, 4)
    grove.lose = lambda sender, receiver, message: False
    grove.routes |= {0x40: 0x60, 0x50: 0x60}
    grove.die(0x30)
    grove.die(0x20)
    grove.run(3 * P.heartbeat_interval_s)
    assert (grove.rounds(0x40), grove.rounds(0x50)) == ([1, 2, 3, 4], [1, 2, 3, 4])
    assert not any(effect.gap for effect in (*grove.received[0x40], *grove.received[0x50]))


def test_who_was_away_for_too_long_is_told_of_the_gap() -> None:
    grove = grown(0x40, multicasts_kept_max=3)
    grove.order(0x10, 1)
    grove.lose = lambda sender, receiver, message: receiver == 0x40
    for number in range(2, 10):
        grove.order(0x10, number)
    grove.lose = lambda sender, receiver, message: False
    grove.run(2 * P.heartbeat_interval_s)
    assert [(effect.body.round, effect.gap) for effect in grove.received[0x40]] == [(1, False), (7, True), (8, False), (9, False)]


def test_what_is_sent_again_does_not_grow_into_a_storm() -> None:
    """A child that says for ever that it has nothing is sent what is kept once in a heartbeat, however often it says so."""
    grove = grown(0x20)
    for number in range(40):
        grove.order(0x10, number)
    grove.sent.clear()
    root, child = grove.scribes[0x10], grove.scribes[0x20]
    alive = m.Alive(TREE, child.trees[TREE].digest(), m.Progress(), seen=(1, 1))
    sent = [effect for _ in range(20) for effect in root.alive_received(peer(0x20), alive, grove.now + 0.1) if "Multicast(" in str(effect)]
    assert len(sent) == P.multicasts_kept_max
    joins = [root.join_received(peer(0x20), m.TreeJoin(TREE, (1, 1)), grove.now + 0.15) for _ in range(20)]
    assert "Multicast(" not in str(joins), "nor by joining again and again"
    assert not grove.messages(m.Multicast)


@pytest.mark.parametrize("seed", range(5))
def test_while_messages_are_lost_all_come_in_order(seed: int) -> None:
    grove, rng = grown(0x30, 0x40, 0x50), Random(seed)
    grove.order(0x10, 0)
    grove.lose = lambda sender, receiver, message: rng.random() < 0.2 and isinstance(message, m.Multicast)
    for number in range(1, 30):
        grove.order(0x10, number)
        grove.run(0.05)
    grove.lose = lambda sender, receiver, message: False
    grove.run(4 * P.heartbeat_interval_s)
    for leading in (0x30, 0x40, 0x50):
        assert grove.rounds(leading) == list(range(30))


def test_a_forged_place_silences_nobody() -> None:
    """P7: a child that claims to have had orders beyond all others harms itself at most."""
    grove = grown(routes=CHAIN | {0x70: 0x30})
    liar = peer(0x70)
    grove.do(0x30, grove.scribes[0x30].join_received(liar, m.TreeJoin(TREE, (2**63, 1)), grove.now))
    grove.join(0x40)
    for number in (1, 2):
        grove.order(0x10, number)
    assert grove.rounds(0x40) == [1, 2]
