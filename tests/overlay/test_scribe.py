"""Scribe's trees, rule by rule (Castro et al., JSAC 20(8), 2002; numbers as in the module's docstring)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError, UnknownTree
from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.wire.messages import Alive, Multicast, TreeJoin, TreeLeave, TreePulse, TreeRefusal, TreeWelcome
from protocol.wire.values import Progress, SubtreeDigest
from tests.overlay.grove import BODY, CHILD, OTHER, PARENT, ROOT, TREE, Node, attached, lists, rooted
from tests.overlay.scene import ME, P, facts, member, node_id, of, sent


def test_rule_1_a_member_joins_towards_the_tree_id_and_lists_itself_when_welcome() -> None:
    node = Node()
    assert sent(node.scribe.join(TREE, member(ME), 0.0), TreeJoin) == [(PARENT, TreeJoin(TREE))]
    effects = node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (TREE, PARENT.id)), 0.1)
    [(to, alive)] = sent(effects, Alive)
    assert to == PARENT
    assert alive.full
    assert alive.joined == (member(ME),)
    assert "tree_attached" in facts(effects)


def test_rule_1_a_node_outside_of_the_tree_takes_the_child_and_joins_in_turn() -> None:
    """Scribe III-A: it becomes a forwarder, and is no member."""
    node = Node()
    effects = node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    assert sent(effects, TreeWelcome) == [(CHILD, TreeWelcome(TREE, (ME.id,)))]
    assert sent(effects, TreeJoin) == [(PARENT, TreeJoin(TREE))]
    assert node.scribe.trees[TREE].members == {}


def test_rule_1_a_join_that_nobody_answers_is_sent_again() -> None:
    """P8: the hop died, or its welcome was lost: it is suspected. The JOIN may go another way, for Pastry may know better by then."""
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    node.hop = OTHER
    effects = [effect for _, effect in node.until(1.5 * P.delay_max_s)]
    assert [to for to, _ in sent(effects, TreeJoin)] == [OTHER]
    assert [effect.peer for effect in of(fx.Suspect, effects)] == [PARENT]


def test_rule_1_an_inactive_node_neither_joins_nor_takes_children() -> None:
    node = Node()
    node.ready = False
    assert not sent(node.scribe.join(TREE, member(ME), 0.0), TreeJoin)
    assert sent(node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0), TreeRefusal)
    node.ready = True
    assert sent(node.scribe.ring_changed(0.1), TreeJoin) == [(PARENT, TreeJoin(TREE))]


def test_rule_1_who_left_meanwhile_declines_the_welcome() -> None:
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.leave(TREE)
    assert node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (TREE,)), 0.1) == [fx.Send(PARENT, TreeLeave(TREE))]
    assert node.scribe.trees == {}


def test_rule_1_who_has_a_parent_declines_the_late_welcome_of_another() -> None:
    """The first hop was slow, the second one took us: one parent, or everything comes twice."""
    node = attached()
    effects = node.scribe.welcome_received(OTHER, TreeWelcome(TREE, (TREE, OTHER.id)), 0.1)
    assert effects == [fx.Send(OTHER, TreeLeave(TREE))]
    assert node.scribe.trees[TREE].parent == PARENT


def test_rule_1_a_leaf_that_leaves_prunes_upwards_and_a_forwarder_with_children_stays() -> None:
    """Scribe III-A, LEAVE."""
    node = attached()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.1)
    [(to, alive)] = sent(node.scribe.leave(TREE), Alive)
    assert to == PARENT
    assert [(found.id, found.cause) for found in alive.departed] == [(ME.id, "left")]
    assert node.scribe.leave_received(CHILD, TreeLeave(TREE)) == [fx.Send(PARENT, TreeLeave(TREE))]
    assert node.scribe.trees == {}
    assert node.scribe.next_deadline() is None


def test_rule_1_a_peer_cannot_make_us_a_forwarder_of_any_number_of_trees() -> None:
    node = Node(parameters=replace(P, trees_max=3))
    for leading in range(1, 6):
        last = node.scribe.join_received(CHILD, TreeJoin(node_id(leading)), 0.0)
    assert len(node.scribe.trees) == 3
    assert sent(last, TreeRefusal)


def test_rule_2_where_no_root_lives_the_closest_node_keeps_its_children_and_tries_again() -> None:
    """The manager was killed: below the closest node the tree stays whole; when Pastry finds the new root, it attaches at once."""
    node = Node(hop=None)
    effects = node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    assert sent(effects, TreeWelcome) == [(CHILD, TreeWelcome(TREE, (ME.id,)))]
    for tick in range(1, 20):
        node.scribe.alive_received(CHILD, lists(CHILD), tick * 0.2)
        node.until(tick * 0.2)
    assert list(node.scribe.trees[TREE].children) == [CHILD.id]
    node.hop = ROOT
    assert sent(node.scribe.ring_changed(4.0), TreeJoin) == [(ROOT, TreeJoin(TREE))]


def test_rule_2_only_the_node_whose_id_is_the_tree_id_can_root_it() -> None:
    with pytest.raises(LocalProtocolError, match="a root's id is the treeId"):
        Node().scribe.create(TREE, 0.0)


def test_rule_2_children_that_came_before_the_tree_was_created_stay() -> None:
    """A manager restarts: agents find its node before it has told it to root the tree. A stranger's welcome changes nothing."""
    node = Node(ROOT, hop=None)
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    node.scribe.welcome_received(OTHER, TreeWelcome(TREE, (OTHER.id,)), 0.1)
    assert sent(node.scribe.create(TREE, 0.2), TreeLeave) == [(OTHER, TreeLeave(TREE))]
    node.scribe.check_invariants()
    effects = node.scribe.alive_received(CHILD, lists(CHILD), 0.3)
    assert [found.peer for found in of(fx.MembersChanged, effects)[0].joined] == [CHILD]


def test_rule_4_each_heartbeat_a_child_reports_and_the_parent_answers_with_the_path() -> None:
    node = attached()
    beats = [when for when, effect in node.until(5.5 * P.heartbeat_interval_s) if sent([effect], Alive)]
    assert beats == pytest.approx([P.heartbeat_interval_s * step for step in range(1, 6)])
    node.scribe.join_received(CHILD, TreeJoin(TREE), 1.2)
    effects = node.scribe.alive_received(CHILD, lists(CHILD), 1.3)
    assert sent(effects, TreePulse) == [(CHILD, TreePulse(TREE, (TREE, PARENT.id, ME.id)))]


def test_rule_4_who_came_is_told_up_at_once_and_once() -> None:
    node = attached()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.1)
    [(_, alive)] = sent(node.scribe.alive_received(CHILD, lists(CHILD), 0.2), Alive)
    assert alive.joined == (member(CHILD),)
    assert not alive.full
    assert not sent(node.scribe.alive_received(CHILD, lists(CHILD), 0.3), Alive), "nothing new"


def test_rule_4_the_root_knows_every_member_by_name_and_the_sums() -> None:
    node = rooted(CHILD)
    effects = node.scribe.alive_received(CHILD, lists(CHILD, OTHER), 1.0)
    [changed] = of(fx.MembersChanged, effects)
    assert [found.peer for found in changed.joined] == [OTHER]
    assert node.scribe.trees[TREE].digest().members == 2


def test_rule_4_a_child_that_we_forgot_is_told_to_join_again() -> None:
    """We restarted within its silence limit: it would go on reporting to a parent that does not know it."""
    assert sent(Node().scribe.alive_received(CHILD, lists(CHILD), 0.0), TreeRefusal)
    node = attached()
    effects = node.scribe.refusal_received(PARENT, TreeRefusal(TREE, "you are not my child"), 1.0)
    assert sent(effects, TreeJoin) == [(PARENT, TreeJoin(TREE))]


def test_rule_4_an_alive_that_cannot_be_changes_nothing() -> None:
    node = rooted(CHILD)
    wrong = replace(lists(OTHER), digest=SubtreeDigest(members=-5))
    with pytest.raises(RemoteProtocolError):
        node.scribe.alive_received(CHILD, wrong, 1.0)
    assert set(node.scribe.trees[TREE].members) == {CHILD.id}


def test_rule_5_a_view_that_differs_is_made_whole() -> None:
    """An Alive was lost with its connection: the digest shows it, the parent asks, the child sends the whole list."""
    node = rooted(CHILD)
    missed = replace(lists(CHILD, OTHER), joined=(), full=False)
    assert sent(node.scribe.alive_received(CHILD, missed, 1.0), TreePulse)[0][1].resync
    below = attached()
    [(_, alive)] = sent(below.scribe.pulse_received(PARENT, TreePulse(TREE, (TREE, PARENT.id), resync=True), 1.0), Alive)
    assert alive.full
    assert alive.joined == (member(ME),)
    assert not sent(node.scribe.alive_received(CHILD, lists(CHILD, OTHER), 1.1), TreePulse)[0][1].resync


def test_rule_6_a_dead_parent_is_replaced() -> None:
    node = attached()
    node.hop = OTHER
    effects = node.scribe.died(PARENT, "connection reset", False, 0.0, 1.0)
    assert sent(effects, TreeJoin) == [(OTHER, TreeJoin(TREE))]
    assert node.scribe.trees[TREE].path == ()


def test_rule_6_the_death_of_an_earlier_life_of_the_parent_is_no_news() -> None:
    node = attached()
    node.scribe.welcome_received(replace(PARENT, incarnation=2), TreeWelcome(TREE, (TREE, PARENT.id)), 0.5)
    assert node.scribe.died(PARENT, "restarted", False, 0.0, 1.0) == []


def test_rule_6_a_dead_child_is_told_up_as_died_with_how_long_it_was_silent() -> None:
    node = rooted(CHILD)
    node.scribe.alive_received(CHILD, lists(CHILD, OTHER), 0.5)
    [changed] = of(fx.MembersChanged, node.scribe.died(CHILD, "refused", False, 0.125, 1.0))
    assert [(found.id, found.cause, found.silent_ms) for found in changed.departed] == [
        (CHILD.id, "died", 125),
        (OTHER.id, "orphaned", 0),
    ]


def test_rule_6_a_child_that_left_in_order_did_not_die() -> None:
    [changed] = of(fx.MembersChanged, rooted(CHILD).scribe.died(CHILD, "left in order", True, 0.0, 1.0))
    assert [found.cause for found in changed.departed] == ["left"]


def test_rule_6_who_is_alive_but_silent_here_is_a_relative_no_longer() -> None:
    """It moved to another parent and its TreeLeave was lost: Pastry hears it, the tree does not."""
    node = rooted(CHILD)
    limit = 2 * P.silence_max_s + P.probe_timeout_s
    seen = [effect for _, effect in node.until(limit + 2 * P.heartbeat_interval_s)]
    assert [found.id for effect in of(fx.MembersChanged, seen) for found in effect.departed] == [CHILD.id]
    below = attached()
    seen = [effect for _, effect in below.until(limit + 2 * P.heartbeat_interval_s)]
    assert (PARENT, TreeLeave(TREE)) in sent(seen, TreeLeave)
    assert "tree_detached" in facts(seen)


def test_rule_6_after_sleep_nobodys_silence_counts() -> None:
    node = rooted(CHILD)
    node.scribe.forgive(100.0, 100.0)
    assert not of(fx.MembersChanged, [effect for _, effect in node.until(100.0 + P.silence_max_s)])


def test_rule_6_a_forwarder_pruned_in_the_moment_of_its_next_join() -> None:
    """Its last child falls silent, and its wait for a welcome ends, both before one late timer rings."""
    node = Node()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    node.scribe.on_timer(60.0)
    assert node.scribe.trees == {}
    assert node.scribe.next_deadline() is None


@pytest.mark.parametrize("above", [CHILD, PARENT], ids=["on our path", "our parent"])
def test_rule_7_a_join_that_would_close_a_cycle_is_refused(above: Peer) -> None:
    node = attached()
    node.scribe.pulse_received(PARENT, TreePulse(TREE, (TREE, CHILD.id, PARENT.id)), 0.1)
    effects = node.scribe.join_received(above, TreeJoin(TREE), 0.2)
    assert sent(effects, TreeRefusal)
    assert node.scribe.trees[TREE].children == {}


@pytest.mark.parametrize("path", [(TREE, ME.id, PARENT.id), (TREE,) * (P.path_max + 1)], ids=["through us", "endless"])
def test_rule_7_a_node_that_finds_itself_on_its_parents_path_leaves_and_joins_again(path: tuple) -> None:
    """Two JOINs crossed: each has become the other's child. The path from the root shows it."""
    node = attached()
    effects = node.scribe.pulse_received(PARENT, TreePulse(TREE, path), 1.0)
    assert (PARENT, TreeLeave(TREE)) in sent(effects, TreeLeave)
    assert node.scribe.trees[TREE].parent is None
    assert sent([effect for _, effect in node.until(1.0 + 2 * P.retry_min_s)], TreeJoin)


def test_rule_7_a_welcome_from_our_own_child_is_declined() -> None:
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.join_received(PARENT, TreeJoin(TREE), 0.1)
    effects = node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (PARENT.id,)), 0.2)
    assert (PARENT, TreeLeave(TREE)) in sent(effects, TreeLeave)
    node.scribe.check_invariants()


def test_rule_7_a_refused_join_is_tried_again_after_a_moment_of_chance() -> None:
    """Two that refuse each other must not go on in step."""
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    assert "tree_refused" in facts(node.scribe.refusal_received(PARENT, TreeRefusal(TREE, "a cycle"), 0.1))
    again = [when for when, effect in node.until(1.0) if sent([effect], TreeJoin)]
    assert 0.1 + P.retry_min_s <= again[0] <= 0.1 + 2 * P.retry_min_s


def test_rule_8_down_the_tree_from_the_parent_each_once_and_to_new_children_the_last_one() -> None:
    node = attached()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.1)
    first, second = Multicast(TREE, (1, 1), BODY), Multicast(TREE, (1, 2), BODY)
    for order in (first, second):
        effects = node.scribe.multicast_received(PARENT, order, 0.1)
        assert sent(effects, Multicast) == [(CHILD, order)]
        assert of(fx.MulticastReceived, effects) == [fx.MulticastReceived(TREE, PARENT, BODY, order.order)]
    assert node.scribe.multicast_received(PARENT, second, 0.2) == []
    assert node.scribe.multicast_received(PARENT, first, 0.2) == []
    assert sent(node.scribe.join_received(OTHER, TreeJoin(TREE, (1, 1)), 0.2), Multicast) == [(OTHER, second)]
    assert not sent(node.scribe.join_received(OTHER, TreeJoin(TREE, (1, 2)), 0.3), Multicast), "it has that one"


def test_rule_8_the_next_life_of_the_root_counts_anew_and_is_still_newer() -> None:
    node = attached()
    node.scribe.multicast_received(PARENT, Multicast(TREE, (1, 900), BODY), 0.2)
    assert of(fx.MulticastReceived, node.scribe.multicast_received(PARENT, Multicast(TREE, (2, 1), BODY), 0.2))


@pytest.mark.parametrize("sender", [OTHER, CHILD], ids=["a stranger", "a child"])
def test_rule_8_orders_come_from_the_parent_and_from_nobody_else(sender: Peer) -> None:
    """P7: one forged order with a number beyond all others would silence the manager for ever."""
    node = attached()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.1)
    effects = node.scribe.multicast_received(sender, Multicast(TREE, (2**63, 1), BODY), 0.2)
    assert not of(fx.MulticastReceived, effects)
    assert of(fx.MulticastReceived, node.scribe.multicast_received(PARENT, Multicast(TREE, (1, 1), BODY), 0.2))


def test_rule_8_only_the_root_sends_them() -> None:
    node = rooted(CHILD, OTHER)
    orders = [sent(node.scribe.multicast(TREE, BODY), Multicast) for _ in range(2)]
    assert [to for to, _ in orders[0]] == [CHILD, OTHER]
    assert orders[1][0][1].order > orders[0][0][1].order
    with pytest.raises(UnknownTree, match="not rooted here"):
        attached().scribe.multicast(TREE, BODY)
    with pytest.raises(UnknownTree, match="neither joined nor created"):
        node.scribe.report(node_id(0x99), Progress())
