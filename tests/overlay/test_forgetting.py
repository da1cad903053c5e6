"""Records of owners that never come back (protocol/overlay/takeover.py, rule 7; absences.py)."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.overlay.absences import Absences
from protocol.overlay.leaf_set import LeafSet
from protocol.overlay.takeover import CLOSED_MAX, FETCHES_MAX, STRAYS_MAX
from protocol.wire.keeping import Absent, Release, Stray
from protocol.wire.messages import LookUp, LookUpReply
from protocol.wire.values import Holding
from tests.overlay.holder import TREE, Node, targets
from tests.overlay.scene import ME, facts, node_id, of, peer, record, sent
from tests.overlay.scene import P as DEFAULTS

NEAR, NEXT = peer(0x7E), peer(0x72)
"""Of NEAR we are the closest when it is dead; of NEXT, CLOSEST is."""
CLOSEST = peer(0x70)
LATE = 1000.0
RING = [peer(leading) for leading in (0x8A, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0x78, 0x70, 0x60, 0x50, 0x40, 0x30)]
"""A full leaf set, which does not cover FAR."""
FAR = peer(0x05)
DIED = 1.0
P = replace(DEFAULTS, forget_after_s=60.0)


def bereft(owner: Peer, version: int = 3) -> Node:
    """We hold this owner's record, and it has died; who is closest has brought it to its places."""
    node = Node(*RING, owner, parameters=P)
    node.note(node.machine.record_held(record(owner, version), 0.0))
    node.leaf_set.remove(owner.id)
    effects = node.note([*node.machine.died(owner, DIED), *node.machine.leaf_set_changed(DIED)])
    for holder in targets(effects):
        node.ends(holder, "stored", 1.1)
    return node


def forgotten(owner: Peer, version: int = 3, incarnation: int = 1) -> Release:
    return Release(owner.id, TREE, version, incarnation, forgotten=True)


def told_of(node: Node, stray: Stray, now: float) -> list[fx.Effect]:
    return node.note(node.machine.stray_delivered(stray, now))


def test_who_stands_in_forgets_what_nobody_has_come_back_for_and_tells_those_who_hold_it() -> None:
    node = bereft(NEAR)
    holders = set(node.machine.holders(record(NEAR, 3).key))
    assert node.until(DIED + P.forget_after_s - 0.01) == []
    effects = node.until(DIED + P.forget_after_s)
    assert facts(effects) == ["record_forgotten"]
    assert {to.id: release for to, release in sent(effects, Release)} == dict.fromkeys(holders, forgotten(NEAR))
    assert of(fx.Discard, effects) == [fx.Discard(record(NEAR, 3))]
    assert node.machine.held() == ()


def test_a_push_that_is_under_way_then_is_given_up_and_its_receiver_told_as_well() -> None:
    """It may have been stored, and the news of it be on its way."""
    node = Node(*RING, parameters=P)
    pushes = of(fx.Push, node.note(node.machine.record_held(record(NEAR, 3), DIED)))
    assert pushes
    told_of(node, Stray(record(NEAR, 3), RING[-1], P.forget_after_s - 0.1), DIED + 0.1)
    effects = node.until(DIED + 0.7)
    assert {push.peer for push in pushes} <= {to for to, _ in sent(effects, Release)}
    assert {push.transfer for push in pushes} <= {given_up.transfer for given_up in of(fx.CancelTransfer, effects)}


@pytest.mark.parametrize("version", [3, 4], ids=["with what it had", "with a newer version"])
def test_an_owner_that_was_back_in_between_begins_a_new_absence(version: int) -> None:
    node = bereft(NEAR)
    back, away = DIED + P.forget_after_s - 10.0, DIED + P.forget_after_s - 5.0
    node.leaf_set.insert(replace(NEAR, incarnation=2))
    node.note(node.machine.leaf_set_changed(back))
    node.note(node.machine.record_held(record(NEAR, version), back))
    node.leaf_set.remove(NEAR.id)
    node.note(node.machine.leaf_set_changed(away))
    assert "record_forgotten" not in facts(node.until(away + P.forget_after_s - 0.01))
    assert "record_forgotten" in facts(node.until(away + P.forget_after_s))


def test_who_has_seen_the_owner_believes_nobody_who_missed_it_before() -> None:
    """A neighbour was cut off, or asleep, while the owner was back."""
    node = bereft(NEAR)
    node.leaf_set.insert(replace(NEAR, incarnation=2))
    node.note(node.machine.leaf_set_changed(30.0))
    node.leaf_set.remove(NEAR.id)
    node.note(node.machine.leaf_set_changed(35.0))
    told_of(node, Stray(record(NEAR, 3), RING[0], P.forget_after_s), 36.0)
    assert "record_forgotten" not in facts(node.until(35.0 + P.forget_after_s - 0.01))
    assert node.machine.held()


def test_a_holder_that_was_not_heard_then_tells_of_its_copy_and_hears_that_it_may_go() -> None:
    node = bereft(NEAR)
    later = DIED + P.forget_after_s + 5.0
    node.until(later)
    assert told_of(node, Stray(record(NEAR, 3), RING[0]), later) == [fx.Send(RING[0], forgotten(NEAR))]
    assert told_of(node, Stray(record(NEAR, 2), RING[1]), later) == [fx.Send(RING[1], forgotten(NEAR, version=2))]


def test_unless_its_owner_was_back_meanwhile_and_brought_its_record_to_others() -> None:
    """From its own disk: the very version that was forgotten here."""
    node = bereft(NEAR)
    later = DIED + P.forget_after_s + 5.0
    node.until(later)
    node.leaf_set.insert(replace(NEAR, incarnation=2))
    node.note(node.machine.leaf_set_changed(later))
    node.leaf_set.remove(NEAR.id)
    node.note(node.machine.leaf_set_changed(later + 1.0))
    assert of(fx.Fetch, told_of(node, Stray(record(NEAR, 3), RING[0]), later + 2.0))


def test_but_a_newer_version_than_was_forgotten_is_kept_for_as_long_again() -> None:
    """Its owner was there since, where we have not seen it."""
    node = bereft(NEAR)
    later = DIED + P.forget_after_s + 5.0
    node.until(later)
    [fetch] = of(fx.Fetch, told_of(node, Stray(record(NEAR, 4), RING[0], P.forget_after_s / 2), later))
    node.note(node.machine.fetch_ended(fetch.transfer, record(NEAR, 4), "", later))
    assert "record_forgotten" not in facts(node.until(later + P.forget_after_s / 2 - 0.01))
    assert "record_forgotten" in facts(node.until(later + P.forget_after_s / 2))


def test_the_time_goes_on_though_who_stands_in_does_not_live_so_long() -> None:
    """The one before us told a holder, and the holder tells us; told when it is over, we do not even fetch it."""
    node = Node(*RING, parameters=P)
    [fetch] = of(fx.Fetch, told_of(node, Stray(record(NEAR, 3), RING[0], P.forget_after_s - 20.0), 1.0))
    node.note(node.machine.fetch_ended(fetch.transfer, record(NEAR, 3), "", 1.1))
    assert "record_forgotten" in facts(node.until(21.0))
    assert told_of(Node(*RING, parameters=P), Stray(record(NEAR, 3), RING[0], P.forget_after_s), 1.0) == [fx.Send(RING[0], forgotten(NEAR))]


def test_a_holder_that_has_missed_the_owner_for_less_long_is_told_for_how_long() -> None:
    node = bereft(NEAR)
    now = DIED + 40.0
    [(to, absent)] = sent(told_of(node, Stray(record(NEAR, 3), RING[0], 5.0), now), Absent)
    assert (to, absent) == (RING[0], Absent(NEAR.id, TREE, 3, 1, 40.0))
    assert not sent(told_of(node, Stray(record(NEAR, 3), RING[0], 40.0 - P.upkeep_interval_s), now), Absent), "nearly as long"


@pytest.mark.parametrize(
    ("sender", "absent_s", "expected"),
    [(CLOSEST, 50.0, 50.0), (RING[0], 50.0, P.probe_timeout_s), (CLOSEST, 0.1, P.probe_timeout_s), (CLOSEST, nan, P.probe_timeout_s)],
    ids=["who stands in", "anybody else", "less than we know", "no number"],
)
def test_and_tells_it_from_then_on_where_it_was_who_stands_in(sender: Peer, absent_s: float, expected: float) -> None:
    node = Node(*RING, parameters=P)
    node.note(node.machine.record_held(record(NEXT, 3), DIED))
    assert node.note(node.machine.absence_told(sender, Absent(NEXT.id, TREE, 3, 1, absent_s), DIED + P.probe_timeout_s)) == []
    [stray] = [effect.body for effect in of(fx.RouteBody, node.until(DIED + P.probe_timeout_s)) if isinstance(effect.body, Stray)]
    assert stray.absent_s == pytest.approx(expected)


def test_a_neighbour_s_word_counts_and_nobody_else_s_nor_what_is_no_time() -> None:
    for holder, absent_s in ((FAR, P.forget_after_s), (RING[0], nan), (RING[0], inf), (RING[0], -1.0)):
        node = bereft(NEAR)
        assert "record_forgotten" not in facts(told_of(node, Stray(record(NEAR, 3), holder, absent_s), 2.0))
        assert "record_forgotten" not in facts(node.until(DIED + P.forget_after_s - 0.01)), (holder, absent_s)


def test_nor_what_is_told_of_an_older_version_than_ours() -> None:
    node = Node(*RING, parameters=P)
    node.note(node.machine.record_held(record(NEAR, 4), DIED))
    assert told_of(node, Stray(record(NEAR, 3), RING[0], P.forget_after_s), 2.0) == []
    assert "record_forgotten" not in facts(node.until(DIED + P.forget_after_s - 0.01))


def test_who_holds_it_lets_it_go_at_the_word_of_who_stands_in() -> None:
    node = bereft(NEXT)
    assert node.note(node.machine.released(RING[0], forgotten(NEXT), True, LATE)) == [], "it has no say"
    assert node.note(node.machine.released(CLOSEST, forgotten(NEXT, version=2), True, LATE)) == [], "ours is newer"
    assert node.note(node.machine.released(CLOSEST, forgotten(NEXT), True, LATE)) == [fx.Discard(record(NEXT, 3))]


def test_but_not_while_it_sees_the_owner() -> None:
    node = Node(*RING, NEXT, parameters=P)
    node.note(node.machine.record_held(record(NEXT, 3), 0.0))
    assert node.note(node.machine.released(CLOSEST, forgotten(NEXT), True, LATE)) == []
    assert node.machine.held()


def test_who_is_not_in_the_ring_in_that_moment_forgets_it_when_it_is() -> None:
    """Alone, or joining anew: it knows of nobody's absence."""
    node = bereft(NEAR)
    node.active = False
    assert not of(fx.Discard, node.until(DIED + P.forget_after_s + 10.0))
    node.active = True
    assert of(fx.Discard, node.until(DIED + P.forget_after_s + 11.0)) == [fx.Discard(record(NEAR, 3))]


def test_a_tree_s_own_record_is_never_forgotten() -> None:
    """It says how far the run is."""
    theta = record(NEAR, 9, tree=NEAR.id)
    node = Node(*RING, parameters=P)
    node.note(node.machine.record_held(theta, 0.0))
    assert node.machine.adopted() == (theta.key,)
    assert "record_forgotten" not in facts(node.until(10 * P.forget_after_s))
    for_another = Node(*RING, NEXT, parameters=P)
    own = record(NEXT, 9, tree=NEXT.id)
    for_another.note(for_another.machine.record_held(own, 0.0))
    for_another.leaf_set.remove(NEXT.id)
    for_another.note(for_another.machine.leaf_set_changed(1.0))
    assert for_another.note(for_another.machine.released(CLOSEST, Release(NEXT.id, NEXT.id, 9, 1, forgotten=True), True, LATE)) == []


def test_so_many_absences_are_known_and_one_that_is_forgotten_begins_anew() -> None:
    absences = Absences(LeafSet(ME.id, 1), lambda owner: True, 3)
    owners = [peer(leading) for leading in (0x11, 0x22, 0x33, 0x44)]
    for now, owner in enumerate(owners):
        absences.look(record(owner, 1), float(now))
    absences.check_invariants()
    assert [absences.since(record(owner, 1)) for owner in owners] == [inf, 1.0, 2.0, 3.0]
    absences.look(record(owners[0], 1), 9.0)
    assert absences.since(record(owners[0], 1)) == 9.0


def test_who_would_not_see_the_owner_misses_nobody() -> None:
    in_sight = {NEAR.id}
    absences = Absences(LeafSet(ME.id, 1), in_sight.__contains__, 3)
    absences.look(record(NEAR, 1), 1.0)
    in_sight.clear()
    absences.ring_changed(2.0)
    absences.told(record(NEAR, 1), 100.0, -1.0, 3.0)
    assert absences.since(record(NEAR, 1)) == inf
    in_sight.add(NEAR.id)
    absences.ring_changed(4.0)
    assert absences.since(record(NEAR, 1)) == 4.0


def test_who_has_missed_everybody_hears_who_was_seen() -> None:
    """It was cut off for days, while the owner lived on the other side, and has died just now."""
    node = Node(*RING, parameters=P)
    node.note(node.machine.record_held(record(NEAR, 3), DIED))
    now = DIED + P.forget_after_s - 1.0
    told_of(node, Stray(record(NEAR, 3), RING[0], 2.0, 2.0), now)
    assert "record_forgotten" not in facts(node.until(now + P.forget_after_s - 2.1))
    assert "record_forgotten" in facts(node.until(now + P.forget_after_s - 2.0))


def test_also_where_it_has_forgotten_already() -> None:
    node = bereft(NEAR)
    now = DIED + P.forget_after_s + 10.0
    node.until(now)
    assert of(fx.Fetch, told_of(node, Stray(record(NEAR, 3), RING[0], 2.0, 2.0), now))


def test_and_tells_it_to_who_stands_in_next() -> None:
    node = bereft(NEXT)
    [stray] = [effect.body for effect in of(fx.RouteBody, node.until(DIED + P.probe_timeout_s)) if isinstance(effect.body, Stray)]
    assert (stray.absent_s, stray.seen_s) == (P.probe_timeout_s, P.probe_timeout_s)


def test_nor_does_a_holder_let_go_what_it_knows_that_was_seen() -> None:
    """Who stands in has slept since the owner died, was back, and died again: it counts from its first death."""
    node = bereft(NEXT)
    assert node.note(node.machine.released(CLOSEST, forgotten(NEXT), True, DIED + P.forget_after_s - 0.01)) == []
    assert of(fx.Discard, node.machine.released(CLOSEST, forgotten(NEXT), True, DIED + P.forget_after_s))


def test_a_look_up_counts_what_an_owner_is_about_to_take() -> None:
    """A large record takes a while; the look that is to find it need not."""
    node = Node(parameters=P)
    told_of(node, Stray(record(ME, 3), FAR), 1.0)
    effects = node.note(node.machine.look_up_delivered(LookUp(1, ME.id, TREE, ME), 1.1))
    [(_, reply)] = sent(effects, LookUpReply)
    assert reply.holdings == (Holding(FAR, record(ME, 3)),)


def test_an_owner_takes_its_own_however_many_of_the_dead_it_is_fetching() -> None:
    node = Node(*RING, parameters=P)
    for leading in (0x7D, 0x7E, 0x7F, 0x81, 0x82):
        told_of(node, Stray(record(peer(leading), 3), RING[0]), 1.0)
    assert of(fx.Fetch, told_of(node, Stray(record(ME, 3), FAR), 1.0))


def test_nor_while_a_younger_life_has_made_anything() -> None:
    """It began from zero, perhaps by a clock that was set back: what it makes now would be refused for an older life's sake."""
    node = Node(*RING, parameters=P)
    node.replicate(1)
    assert not of(fx.Fetch, told_of(node, Stray(replace(record(ME, 9), incarnation=ME.incarnation + 1), FAR), 1.0))


def test_what_we_have_slept_is_nobody_s_absence() -> None:
    node = bereft(NEAR)
    node.machine.was_blind(10.0, 30.0)
    node.machine.was_blind(11.0, 30.0)
    assert "record_forgotten" not in facts(node.until(DIED + P.forget_after_s + 20.0 - 0.01))
    assert "record_forgotten" in facts(node.until(DIED + P.forget_after_s + 20.0)), "each second once, whoever tells of it"


def test_nor_what_was_before_we_missed_it() -> None:
    """A peer is found again that we have missed for longer than the owner."""
    node = bereft(NEAR)
    node.machine.was_blind(-100.0, 21.0)
    assert "record_forgotten" in facts(node.until(21.0 + P.forget_after_s))


def test_a_tree_that_waits_for_all_its_members_forgets_none_of_them() -> None:
    """Mode exact: it halts, and asks for just this agent to be started again. Here until an order says otherwise."""
    node, holder = bereft(NEAR), bereft(NEXT)
    for one in (node, holder):
        one.machine.tree_waits(TREE, True, 2.0)
    later = DIED + 3 * P.forget_after_s
    assert "record_forgotten" not in facts(node.until(later))
    assert holder.note(holder.machine.released(CLOSEST, forgotten(NEXT), True, later)) == []
    node.machine.tree_waits(TREE, False, later)
    assert "record_forgotten" in facts(node.until(later + P.probe_timeout_s))


def test_so_many_waiting_trees_are_remembered() -> None:
    node = bereft(NEAR)
    node.machine.tree_waits(TREE, True, 2.0)
    for number in range(CLOSED_MAX):
        node.machine.tree_waits(node_id(number + 0x20), True, 2.0)
    assert "record_forgotten" in facts(node.until(DIED + P.forget_after_s))


def test_of_many_that_are_back_each_is_told_in_the_first_turn() -> None:
    node = Node(*RING, parameters=P)
    for number in range(3 * STRAYS_MAX):
        node.note(node.machine.record_held(record(NEXT, 3, tree=node_id(number)), DIED))
    told = [effect for effect in node.until(DIED + P.probe_timeout_s) if isinstance(effect, fx.RouteBody)]
    assert len(told) == 3 * STRAYS_MAX
    told = [effect for effect in node.until(DIED + P.probe_timeout_s + P.upkeep_interval_s) if isinstance(effect, fx.RouteBody)]
    assert len(told) == STRAYS_MAX, "and then as ever"


def test_who_is_far_from_its_owner_keeps_what_its_tree_waits_for() -> None:
    """That it is forgotten does not say that others have it."""
    node = Node(*RING, parameters=P)
    node.note(node.machine.record_held(record(FAR, 3), DIED))
    node.machine.tree_waits(TREE, True, 2.0)
    assert node.note(node.machine.released(CLOSEST, forgotten(FAR), True, LATE)) == []
    node.machine.tree_waits(TREE, False, 2.0)
    assert of(fx.Discard, node.note(node.machine.released(CLOSEST, forgotten(FAR), True, LATE)))


def test_nobody_makes_an_owner_fetch_without_end() -> None:
    """Of its own, in trees that it may never have heard of."""
    node = Node(*RING, parameters=P)
    seen = [told_of(node, Stray(record(ME, 3, tree=node_id(number)), FAR), 1.0) for number in range(2 * FETCHES_MAX)]
    assert sum(len(of(fx.Fetch, effects)) for effects in seen) == FETCHES_MAX
