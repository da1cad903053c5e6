"""Scribe, rule by rule, as the paper states them (Castro, Druschel, Kermarrec, Rowstron: IEEE JSAC 20(8), 2002).

Sections: III-A.1 group management, III-A.2 membership management, III-A.3 multicast message dissemination, III-B.1 repairing the
multicast tree, III-B.2 providing additional guarantees, IV-E bottleneck remover.
"""

from __future__ import annotations

import pytest

from protocol.errors import LocalProtocolError, UnknownTree
from protocol.identifiers import closest
from protocol.wire import messages as m
from tests.overlay.grove import Grove, capped
from tests.overlay.scene import P, node_id

TREE = node_id(0x10)
ROUTES = {0x10: None, 0x11: 0x10, 0x20: 0x11, 0x30: 0x20, 0x31: 0x20, 0x90: 0x11}
"""The figure of III-A.2 in small: two ways to the root that meet."""


def grown(*members: int) -> Grove:
    grove = Grove(TREE, ROUTES)
    grove.create(0x10)
    grove.join(*members)
    grove.run(1.0)
    return grove


def test_group_management_the_root_is_the_node_whose_id_is_closest_to_the_tree_id() -> None:
    """III-A.1. CREATE is routed to the groupId; the node with the numerically closest id is the rendez-vous point.

    Here that node is made to exist: the manager's own id is the treeId, so nobody else can be closer and nobody else may create.
    """
    grove = grown(0x30)
    assert grove.way_up(0x30)[-1] == 0x10
    assert closest(TREE, [node_id(leading) for leading in ROUTES]) == TREE
    with pytest.raises(LocalProtocolError, match="a root's id is the treeId"):
        grove.create(0x11)


def test_group_management_the_root_is_not_there_and_the_closest_node_stands_for_it() -> None:
    """III-A.1. Whoever is closest of the live nodes is the rendez-vous point."""
    grove = Grove(TREE, {0x11: None, 0x20: 0x11, 0x30: 0x20})
    grove.join(0x30)
    grove.run(1.0)
    assert grove.way_up(0x30) == [0x20, 0x11]


def test_membership_join_goes_hop_by_hop_and_every_node_on_the_way_becomes_a_forwarder() -> None:
    """III-A.2. Each checks its list of groups; one that is not yet a forwarder takes the child and sends a JOIN along the route in turn."""
    grove = grown(0x30)
    assert grove.messages(m.TreeJoin) == [(0x30, 0x20), (0x20, 0x11), (0x11, 0x10)]
    assert grove.in_tree() == {0x10, 0x11, 0x20, 0x30}
    assert [len(grove.at(leading).members) for leading in (0x10, 0x11, 0x20, 0x30)] == [1, 1, 1, 1], "forwarders are no members"


def test_membership_an_existing_forwarder_takes_the_child_and_ends_the_join() -> None:
    """III-A.2."""
    grove = grown(0x30)
    grove.sent.clear()
    grove.join(0x31)
    assert grove.messages(m.TreeJoin) == [(0x31, 0x20)]
    assert len(grove.at(0x10).members) == 2


def test_membership_forwarders_may_or_may_not_be_members() -> None:
    """III-A.2."""
    grove = grown(0x30)
    grove.join(0x20)
    assert len(grove.at(0x10).members) == 2
    grove.order(0x10, 1)
    assert (grove.rounds(0x11), grove.rounds(0x20), grove.rounds(0x30)) == ([], [1], [1])


def test_membership_leave_prunes_upwards_until_a_node_with_other_children_or_a_member() -> None:
    """III-A.2. A node without entries in its children table that is no member sends LEAVE to its parent, and so on recursively."""
    grove = grown(0x30, 0x90)
    grove.leave(0x30)
    assert grove.messages(m.TreeLeave) == [(0x30, 0x20), (0x20, 0x11)]
    assert grove.in_tree() == {0x10, 0x11, 0x90}
    grove.leave(0x90)
    assert grove.in_tree() == {0x10}


def test_membership_a_member_with_children_only_leaves_the_membership() -> None:
    """III-A.2. If there are entries in the children table, it only marks locally that it is no member."""
    grove = grown(0x20, 0x30)
    grove.leave(0x20)
    assert not grove.messages(m.TreeLeave)
    assert list(grove.at(0x10).members) == [node_id(0x30)]


def test_dissemination_multicast_goes_from_the_root_down_over_each_link_once() -> None:
    """III-A.3. The root disseminates along the tree that the JOINs left behind."""
    grove = grown(0x30, 0x31, 0x90)
    grove.order(0x10, 1)
    assert sorted(grove.messages(m.Multicast)) == [(0x10, 0x11), (0x11, 0x20), (0x11, 0x90), (0x20, 0x30), (0x20, 0x31)]
    assert [grove.rounds(leading) for leading in (0x30, 0x31, 0x90)] == [[1], [1], [1]]


def test_dissemination_only_the_root_multicasts() -> None:
    """III-A.3. In the paper anybody sends to the root; here orders are the manager's alone."""
    with pytest.raises(UnknownTree):
        grown(0x30).order(0x30, 1)


def test_dissemination_order_is_that_of_the_root() -> None:
    """III-B.2. The paper promises best effort, and order as a service on top: sequence numbers from the root, buffers on the way."""
    grove = grown(0x30, 0x31)
    lost = iter([True])
    grove.lose = lambda sender, receiver, message: isinstance(message, m.Multicast) and receiver == 0x20 and next(lost, False)
    for number in range(1, 5):
        grove.order(0x10, number)
    grove.run(2 * P.heartbeat_interval_s)
    for leading in (0x30, 0x31):
        assert grove.rounds(leading) == [1, 2, 3, 4]
        assert not any(effect.gap for effect in grove.received[leading])


def test_repair_parents_and_children_hear_from_each_other_periodically() -> None:
    """III-B.1. Non-leaf nodes send heartbeats to their children."""
    grove = grown(0x30)
    grove.sent.clear()
    grove.run(3.5 * P.heartbeat_interval_s)
    assert grove.messages(m.TreePulse).count((0x20, 0x30)) in (3, 4)


def test_repair_a_multicast_stands_for_a_heartbeat() -> None:
    """III-B.1. Only multicasts come from the parent, every answer to an Alive is lost: it is not held for silent."""
    grove = grown(0x30)
    grove.lose = lambda sender, receiver, message: isinstance(message, m.TreePulse) and (sender, receiver) == (0x20, 0x30)
    for number in range(40):
        grove.order(0x10, number)
        grove.run(P.heartbeat_interval_s)
    assert not grove.messages(m.TreeLeave)
    grove.run(3 * P.silence_max_s + P.probe_timeout_s)
    assert (0x30, 0x20) in grove.messages(m.TreeLeave), "without them it is"


def test_repair_a_dead_parent_is_replaced_by_a_join_along_the_new_route() -> None:
    """III-B.1. Pastry routes the JOIN to another parent, which repairs the tree; those below stay where they are."""
    grove = grown(0x30, 0x31)
    grove.routes |= {0x30: 0x11, 0x31: 0x30}
    grove.die(0x20)
    grove.run(1.0)
    assert grove.way_up(0x31) == [0x30, 0x11, 0x10]
    grove.order(0x10, 1)
    assert (grove.rounds(0x30), grove.rounds(0x31)) == ([1], [1])


def test_repair_children_tables_are_soft_state() -> None:
    """III-B.1. A child that does not report is dropped, and an entry that is not refreshed goes."""
    grove = grown(0x30)
    grove.lose = lambda sender, receiver, message: sender == 0x30
    grove.run(3 * P.silence_max_s + P.probe_timeout_s)
    assert grove.in_tree() == {0x10, 0x30}
    assert not grove.at(0x10).members


def test_repair_the_root_fails_and_a_new_one_takes_over() -> None:
    """III-B.1. The children of the failed root detect it and JOIN through Pastry, which leads to the new root."""
    grove = grown(0x30, 0x90)
    grove.routes |= {0x11: None}
    grove.die(0x10)
    grove.run(2.0)
    assert grove.way_up(0x30) == [0x20, 0x11], "the closest node holds the tree together"
    grove.routes |= {0x11: 0x10}
    grove.start(0x10, incarnation=2)
    grove.create(0x10)
    grove.run(2.0)
    assert set(grove.at(0x10).members) == {node_id(0x30), node_id(0x90)}
    grove.order(0x10, 1)
    assert (grove.rounds(0x30), grove.rounds(0x90)) == ([1], [1])


def test_bottleneck_the_bottleneck_remover_keeps_the_number_of_children_down() -> None:
    """IV-E. An overloaded node hands children to others of its children. Here it hands on the newcomer, before it is overloaded."""
    grove = Grove(TREE, {0x10: None} | dict.fromkeys(range(0x20, 0x60), 0x10), capped(4))
    grove.create(0x10)
    grove.join(*range(0x20, 0x60))
    grove.run(1.0)
    assert max(len(grove.at(leading).children) for leading in grove.in_tree()) <= 4
    assert max(len(grove.way_up(leading)) for leading in range(0x20, 0x60)) <= 4, "4 + 16 + 44 nodes need three levels"
    assert len(grove.at(0x10).members) == 64
    grove.order(0x10, 1)
    assert all(grove.rounds(leading) == [1] for leading in range(0x20, 0x60))
