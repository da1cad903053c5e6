"""What a node holds for others, and who cares for it (protocol/overlay/takeover.py), rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.overlay.takeover import CLOSED_MAX, FETCHES_MAX
from protocol.wire.keeping import Release, Stray, Withdrawn
from protocol.wire.values import RecordSummary
from tests.overlay.holder import FIVE, TREE, Node, targets
from tests.overlay.scene import ME, P, facts, node_id, of, peer, record, sent

NEAR, NEXT = peer(0x7E), peer(0x72)
"""Of NEAR we are the closest when it is dead; of NEXT, 0x70 is."""
RING = [peer(leading) for leading in (0x8A, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0x78, 0x70, 0x60, 0x50, 0x40, 0x30)]
"""A full leaf set, which does not cover FAR."""
FAR = peer(0x05)
CLOSER = peer(0x71)
"""To NEXT than any of RING."""


def holding(owner: Peer, version: int = 3, *ring: Peer) -> Node:
    """Our neighbours are these (RING), the owner lives among them, and we hold its record."""
    node = Node(*(ring or RING), owner) if owner is not FAR else Node(*(ring or RING))
    assert node.note(node.machine.record_held(record(owner, version), 0.0)) == []
    return node


def dies(node: Node, owner: Peer, now: float = 1.0) -> list[fx.Effect]:
    node.leaf_set.remove(owner.id)
    return node.note([*node.machine.died(owner, now), *node.machine.leaf_set_changed(now)])


def strays(effects: list[fx.Effect]) -> list[Stray]:
    return [effect.body for effect in of(fx.RouteBody, effects) if isinstance(effect.body, Stray)]


def complete(node: Node, effects: list[fx.Effect]) -> list[fx.Effect]:
    """Every push succeeds."""
    return [more for push in of(fx.Push, effects) for more in node.note(node.machine.push_ended(push.transfer, "stored", "", 1.1))]


def test_rule_1_the_closest_node_stands_in_for_a_dead_owner_and_is_one_of_the_k() -> None:
    node = holding(NEAR)
    effects = dies(node, NEAR)
    assert "record_adopted" in facts(effects)
    assert len(targets(effects)) == P.replicas - 1
    assert node.machine.adopted() == (record(NEAR, 3).key,)
    assert not of(fx.Durable, complete(node, effects)), "that is told to the owner alone"


def test_rule_1_it_keeps_k_alive_when_holders_die() -> None:
    node = holding(NEAR)
    effects = dies(node, NEAR)
    complete(node, effects)
    holder = targets(effects)[0]
    assert len(targets(dies(node, holder, 2.0))) == 1


@pytest.mark.parametrize("owner", [NEXT, ME], ids=["somebody is closer", "it is our own"])
def test_rule_1_nobody_else_does(owner: Peer) -> None:
    node = Node(*RING)
    assert node.note(node.machine.record_held(record(owner, 3), 0.0)) == []
    assert node.machine.adopted() == ()


def test_rule_1_nor_who_is_not_in_the_ring_yet() -> None:
    """A joiner knows one neighbour, and would be closest to half of the ring."""
    node = Node(FIVE[0])
    node.active = False
    assert node.note(node.machine.record_held(record(NEAR, 3), 0.0)) == []
    node.active = True
    assert node.note(node.machine.leaf_set_changed(1.0))


def test_rule_1_the_owner_is_back_and_cares_for_itself() -> None:
    node = holding(NEAR)
    pushed = of(fx.Push, dies(node, NEAR))
    node.leaf_set.insert(replace(NEAR, incarnation=2))
    effects = node.note(node.machine.leaf_set_changed(2.0))
    assert {effect.transfer for effect in of(fx.CancelTransfer, effects)} == {push.transfer for push in pushed}
    assert node.machine.adopted() == ()
    assert node.machine.held() == (record(NEAR, 3),), "our copy stays"


def test_rule_1_a_node_comes_between_and_it_is_that_ones() -> None:
    node = holding(NEAR)
    dies(node, NEAR)
    node.leaf_set.insert(peer(0x7D))
    node.note(node.machine.leaf_set_changed(2.0))
    assert node.machine.adopted() == ()
    assert strays(node.until(2.0 + P.probe_timeout_s)) == [Stray(record(NEAR, 3), ME, 1.0 + P.probe_timeout_s, 1.0 + P.probe_timeout_s)]


def test_rule_2_who_is_not_closest_tells_who_is_and_tells_it_again() -> None:
    node = holding(NEXT)
    assert targets(dies(node, NEXT)) == []
    assert strays(node.until(1.0 + 0.9 * P.probe_timeout_s)) == []
    assert strays(node.until(1.0 + P.probe_timeout_s)) == [Stray(record(NEXT, 3), ME, P.probe_timeout_s, P.probe_timeout_s)]
    assert len(strays(node.until(1.0 + P.probe_timeout_s + 3 * P.upkeep_interval_s))) == 3


def test_rule_2_the_closest_fetches_what_it_lacks_and_adopts_it() -> None:
    """It has joined after the record was brought, or had refused it."""
    node = Node(*RING)
    effects = node.note(node.machine.stray_delivered(Stray(record(NEAR, 3), RING[0]), 1.0))
    [fetch] = of(fx.Fetch, effects)
    assert (fetch.peer, fetch.record) == (RING[0], record(NEAR, 3))
    assert not of(fx.Fetch, node.machine.stray_delivered(Stray(record(NEAR, 3), RING[1]), 1.0)), "it is on its way"
    effects = node.note(node.machine.fetch_ended(fetch.transfer, record(NEAR, 3), "", 1.1))
    assert len(targets(effects)) == P.replicas - 1


def test_rule_2_a_newer_version_takes_the_place_of_the_one_adopted() -> None:
    node = holding(NEAR)
    dies(node, NEAR)
    [fetch] = of(fx.Fetch, node.machine.stray_delivered(Stray(record(NEAR, 4), RING[2]), 1.2))
    effects = node.note(node.machine.fetch_ended(fetch.transfer, record(NEAR, 4), "", 1.3))
    assert {push.record.version for push in of(fx.Push, effects)} == {4}


def test_rule_2_a_holder_that_tells_of_the_same_version_need_not_be_pushed_to() -> None:
    node = holding(NEAR)
    effects = dies(node, NEAR)
    others = [one for one in RING if one not in targets(effects)][: P.replicas - 1]
    seen = [effect for other in others for effect in node.note(node.machine.stray_delivered(Stray(record(NEAR, 3), other), 1.2))]
    assert {effect.transfer for effect in of(fx.CancelTransfer, seen)} == {push.transfer for push in of(fx.Push, effects)}
    assert set(node.machine.holders(record(NEAR, 3).key)) == {other.id for other in others}


def overtaken() -> tuple[Node, list[Peer]]:
    """Version 4 took the place of 3 while that was under way, and 5 waits until 4 has its quorum. Also: whom 4 is being brought to."""
    node = holding(NEAR)
    dies(node, NEAR)
    under_way = targets(node.note(node.machine.record_held(record(NEAR, 4), 1.1)))
    assert not of(fx.Push, node.note(node.machine.record_held(record(NEAR, 5), 1.1)))
    return node, under_way


def test_rule_2_a_holder_of_a_version_that_waits_does_not_count_for_the_one_under_way() -> None:
    """It would complete that one, whose pushes are given up, and then nothing would end that the newer one waits for."""
    node, under_way = overtaken()
    node.ends(under_way[0], "stored")
    assert not of(fx.CancelTransfer, node.note(node.machine.stray_delivered(Stray(record(NEAR, 5), RING[2]), 1.2)))
    assert set(node.machine.holders(record(NEAR, 4).key)) == {under_way[0].id}
    assert {push.record.version for push in of(fx.Push, node.ends(under_way[1], "stored"))} == {5}


def test_rule_2_a_version_that_is_found_to_have_its_quorum_makes_room_for_the_one_that_waits() -> None:
    node, under_way = overtaken()
    node.ends(under_way[0], "stored")
    not_needed = node.transfers[under_way[1]]
    effects = node.note(node.machine.stray_delivered(Stray(record(NEAR, 4), RING[2]), 1.2))
    assert of(fx.CancelTransfer, effects) == [fx.CancelTransfer(not_needed)]
    assert {push.record.version for push in of(fx.Push, effects)} == {5}


def test_rule_2_what_is_being_fetched_is_bounded_and_a_fetch_that_never_ends_is_given_up() -> None:
    node = Node(*RING)
    owners = [replace(NEAR, id=type(NEAR.id)(NEAR.id + number)) for number in range(2 * FETCHES_MAX)]
    seen = [effect for owner in owners for effect in node.machine.stray_delivered(Stray(record(owner, 1), RING[0]), 1.0)]
    assert len(of(fx.Fetch, seen)) == FETCHES_MAX
    late = node.until(1.0 + P.transfer_timeout_s(1000) + P.delay_max_s)
    assert len(of(fx.CancelTransfer, late)) == FETCHES_MAX
    assert of(fx.Fetch, node.machine.stray_delivered(Stray(record(owners[-1], 1), RING[0]), 9.0))


def test_rule_3_a_copy_that_no_look_up_would_find_goes_when_k_others_have_it() -> None:
    node = holding(FAR)
    told = strays(node.until(P.probe_timeout_s))
    assert told == [Stray(record(FAR, 3), ME)]
    assert node.note(node.machine.released(RING[2], Release(FAR.id, TREE, 3, 1), False, 2.0)) == [fx.Discard(record(FAR, 3))]
    assert node.machine.held() == ()
    assert strays(node.until(60.0)) == []


@pytest.mark.parametrize(
    ("owner", "release"), [(FAR, Release(FAR.id, TREE, 2, 1)), (NEXT, Release(NEXT.id, TREE, 3, 1))], ids=["it is newer", "it is near"]
)
def test_rule_3_but_not_a_newer_one_nor_one_that_a_look_up_would_find(owner: Peer, release: Release) -> None:
    node = holding(owner)
    dies(node, owner)
    assert node.machine.released(RING[2], release, False, 2.0) == []
    assert node.machine.held()


def test_rule_3_the_owner_releases_who_is_far_when_it_has_its_k() -> None:
    node = Node(*RING)
    effects = node.replicate(4)
    stray = Stray(record(ME, 3), FAR)
    assert node.machine.stray_delivered(stray, 0.5) == []
    complete(node, effects)
    assert sent(node.machine.stray_delivered(stray, 1.0), Release) == [(FAR, Release(ME.id, TREE, 3, 1))]
    assert node.machine.stray_delivered(Stray(record(ME, 3), RING[5]), 1.0) == [], "a neighbour's copy does no harm"
    assert node.machine.stray_delivered(Stray(record(ME, 5), FAR), 1.0) == [], "what is newer than ours is not given up"


def test_rule_2_an_owner_that_is_back_hears_who_has_its_record_and_finds_it_with_itself() -> None:
    """Many came back at once: none of its neighbours is who it was. The look-up for it asks nobody but its neighbours."""
    node = Node(*RING)
    [fetch] = of(fx.Fetch, node.note(node.machine.stray_delivered(Stray(record(ME, 3), FAR), 1.0)))
    assert (fetch.peer, fetch.record) == (FAR, record(ME, 3))
    node.note(node.machine.fetch_ended(fetch.transfer, record(ME, 3), "", 1.1))
    assert node.machine.held() == (record(ME, 3),)


def test_rule_2_what_moves_out_of_sight_is_told_of_soon() -> None:
    """Told of before, to who is not the closest any more; and so many have come that we would not even see the owner."""
    node = Node(*RING[:4])
    node.note(node.machine.record_held(record(NEXT, 3), 1.0))
    node.neighbours = [*node.neighbours, CLOSER]
    node.note(node.machine.leaf_set_changed(1.1))
    assert len(strays(node.until(2.0))) == 1
    node.neighbours = RING[:6] + [peer(leading) for leading in (0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x7A)]
    node.note(node.machine.leaf_set_changed(2.1))
    assert [stray.record for stray in strays(node.until(2.1 + P.probe_timeout_s))] == [record(NEXT, 3)]
    assert strays(node.until(2.0 + P.upkeep_interval_s)) == [], "and then as ever"


def test_rule_2_what_was_never_told_of_is_first() -> None:
    node = Node(*RING)
    many = [record(peer(0x70 - number), 3) for number in range(1, 5)]
    for number, one in enumerate(many):
        node.note(node.machine.record_held(replace(one, tree=node_id(number)), 1.0))
    node.until(1.0 + P.probe_timeout_s)
    late = record(peer(0x61), 3)
    node.note(node.machine.record_held(late, 3.0))
    told = strays(node.until(3.0 + P.probe_timeout_s))
    assert told[0].record == late


def test_rule_3_who_stands_in_releases_too() -> None:
    node = holding(NEAR)
    complete(node, dies(node, NEAR))
    assert sent(node.machine.stray_delivered(Stray(record(NEAR, 2), FAR), 2.0), Release) == [(FAR, Release(NEAR.id, TREE, 2, 1))]


def test_rule_4_what_two_bring_to_the_same_places_is_the_same() -> None:
    """Another believes itself closest and pushes to us what we have adopted: nothing changes."""
    node = holding(NEAR)
    complete(node, dies(node, NEAR))
    before = node.machine.holders(record(NEAR, 3).key)
    assert node.note(node.machine.record_held(record(NEAR, 3), 1.5)) == []
    assert node.machine.holders(record(NEAR, 3).key) == before


def test_rule_5_what_an_agent_that_left_had_here_is_dropped() -> None:
    node = holding(NEXT)
    assert of(fx.Discard, node.machine.died(NEXT, 1.0, in_order=True)) == [fx.Discard(record(NEXT, 3))]
    assert node.machine.held() == ()


def test_rule_5_but_a_tree_s_own_record_is_not() -> None:
    """The manager is stopped in order, and started again tomorrow."""
    root = replace(NEAR, id=TREE)
    node = Node(*RING, root)
    node.machine.record_held(record(root, 9), 0.0)
    assert not of(fx.Discard, node.machine.died(root, 1.0, in_order=True))
    assert node.machine.held() == (record(root, 9),)


def test_rule_5_a_closed_tree_leaves_only_what_says_that_it_is_closed_and_our_own() -> None:
    node = Node(*RING)
    mine, theirs, theta = record(ME, 5), record(NEXT, 3), record(replace(NEAR, id=TREE), 9)
    other = record(NEXT, 3, tree=node_id(0x11))
    complete(node, node.note(node.machine.replicate(mine, 0.0)))
    for held in (theirs, theta, other):
        node.machine.record_held(held, 0.0)
    effects = node.note(node.machine.tree_closed(TREE))
    assert of(fx.Discard, effects) == [fx.Discard(theirs)]
    assert {to.id for to, message in sent(effects, Withdrawn)} == {holder.id for holder in RING[:1] + RING[6:7] + RING[1:2]}
    assert set(node.machine.held()) == {mine, theta, other}
    assert node.machine.holders(mine.key) == ()


def test_rule_5_a_holder_that_is_not_in_the_tree_is_told_by_the_owner() -> None:
    node = holding(NEXT)
    assert node.machine.withdrawn(RING[0].id, TREE) == [], "nobody withdraws another's"
    assert node.machine.withdrawn(NEXT.id, TREE) == [fx.Discard(record(NEXT, 3))]


def closed(owner: Peer, version: int = 3) -> Release:
    return Release(owner.id, TREE, version, 1, closed=True)


def test_rule_5_what_is_told_of_a_closed_tree_is_not_fetched_again_but_may_go() -> None:
    """The manager's node, say, or one that is not in the tree, has not heard that it is closed."""
    node = Node(*RING)
    node.note(node.machine.tree_closed(TREE))
    effects = node.note(node.machine.stray_delivered(Stray(record(NEAR, 3), RING[2]), 1.0))
    assert effects == [fx.Send(RING[2], closed(NEAR))]
    other = record(NEAR, 3, tree=node_id(0x11))
    assert of(fx.Fetch, node.note(node.machine.stray_delivered(Stray(other, RING[2]), 1.0)))


def test_rule_5_the_tree_s_own_record_is_cared_for_though_the_tree_is_closed() -> None:
    """The manager has ended; its next life reads there that the run is done."""
    node = Node(*RING)
    node.note(node.machine.tree_closed(NEAR.id))
    assert "record_adopted" in facts(node.note(node.machine.record_held(record(NEAR, 9, tree=NEAR.id), 1.0)))


def test_rule_5_a_copy_that_arrives_when_the_tree_is_closed_goes_as_well() -> None:
    """It was under way. We are the closest to its owner, and tell ourselves."""
    node = Node(*RING)
    node.note(node.machine.tree_closed(TREE))
    assert node.note(node.machine.record_held(record(NEAR, 3), 1.0)) == []
    assert node.machine.adopted() == ()
    [told] = strays(node.until(1.0 + P.probe_timeout_s))
    assert node.note(node.machine.stray_delivered(told, 2.0)) == [fx.Send(ME, closed(NEAR))]
    assert node.note(node.machine.released(ME, closed(NEAR), True, 2.0)) == [fx.Discard(record(NEAR, 3))]


def test_rule_5_who_is_told_so_gives_up_its_copy_however_near_but_not_a_newer_one() -> None:
    node = holding(NEXT)
    dies(node, NEXT)
    closest = node.leaf_set.closest(NEXT.id)
    assert closest is not None
    assert node.note(node.machine.released(closest, closed(NEXT, version=2), False, 2.0)) == []
    assert node.note(node.machine.released(closest, closed(NEXT), False, 2.0)) == [fx.Discard(record(NEXT, 3))]


@pytest.mark.parametrize(("by_the_closest", "member"), [(False, False), (True, True)], ids=["it has no say", "we know better"])
def test_rule_5_but_not_for_anybody_s_word_nor_in_a_tree_that_goes_on_here(by_the_closest: bool, member: bool) -> None:
    """The closest may not have heard yet that a new run has begun: who is in the tree has."""
    node = holding(NEXT)
    dies(node, NEXT)
    closest = node.leaf_set.closest(NEXT.id)
    other = next(peer for peer in node.leaf_set if peer != closest)
    sender = closest if by_the_closest else other
    assert sender is not None
    assert node.machine.released(sender, closed(NEXT), member, 2.0) == []
    assert node.machine.held()


def test_rule_5_the_owner_lets_go_too_where_it_has_its_record_itself() -> None:
    """An earlier holder, far away and not in the tree. One that has lost its record (it starts again) takes it first."""
    node = Node(*RING)
    node.note(node.machine.tree_closed(TREE))
    assert of(fx.Fetch, node.machine.stray_delivered(Stray(record(ME, 3), FAR), 1.0))
    node.machine.record_held(record(ME, 4), 1.0)
    assert node.machine.stray_delivered(Stray(record(ME, 3), FAR), 1.0) == [fx.Send(FAR, closed(ME))]


def test_rule_5_a_new_run_opens_the_tree_again() -> None:
    node = Node(*RING)
    node.note(node.machine.tree_closed(TREE))
    node.note(node.machine.record_held(record(NEAR, 3), 1.0))
    assert "record_adopted" in facts(node.note(node.machine.tree_reopened(TREE, 1.1)))
    assert node.note(node.machine.tree_reopened(TREE, 1.2)) == []


def test_rule_5_and_our_own_record_of_it_has_copies_again() -> None:
    """Also one whose pushes were under way when the tree was closed: who waits for it to be durable would wait for ever."""
    node = Node(*RING)
    node.replicate(1)
    node.note(node.machine.tree_closed(TREE))
    assert node.machine.holders((ME.id, TREE)) == ()
    pushed = targets(node.note(node.machine.tree_reopened(TREE, 1.0)))
    assert len(pushed) == P.replicas
    seen = [effect for holder in pushed for effect in node.ends(holder, "stored", now=1.1)]
    assert [durable.record for durable in of(fx.Durable, seen)] == [record(ME, 1)]


def test_rule_5_so_many_closed_trees_are_remembered() -> None:
    node = Node(*RING)
    trees = [node_id(number) for number in range(CLOSED_MAX + 1)]
    for tree in trees:
        node.note(node.machine.tree_closed(tree))
    adopted = [tree for tree in trees if facts(node.note(node.machine.record_held(record(NEAR, 3, tree=tree), 1.0)))]
    assert adopted == trees[:1]


def test_rule_6_a_copy_of_theta_far_from_its_root_is_no_stray() -> None:
    """Each member has one, for its children in the tree."""
    far_root = replace(FAR, id=node_id(0x06))
    theta: RecordSummary = record(far_root, 9, tree=far_root.id)
    node = Node(*RING)
    assert node.note(node.machine.record_held(theta, 0.0)) == []
    assert strays(node.until(60.0)) == []
