"""The cap on fan-out and the cycles that it brings (rules 2, 3, 7 of the module), whole lists (rule 5), and many trees at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.identifiers import Peer
from protocol.overlay import effects as fx
from protocol.wire.messages import Alive, TreeJoin, TreeLeave, TreePulse, TreeRedirect, TreeRefusal, TreeWelcome
from tests.overlay.grove import CHILD, OTHER, PARENT, ROOT, TREE, Grove, Node, attached, capped, lists, rooted
from tests.overlay.scene import ME, P, member, node_id, of, peer, sent


def full(*, members: int = 0) -> Node:
    """A node of three children that has no room for a fourth; the first has so many more members below it."""
    node = Node(parameters=capped(3))
    for child in (CHILD, OTHER, peer(0x71)):
        node.scribe.join_received(child, TreeJoin(TREE), 0.0)
        node.scribe.alive_received(child, lists(child, *(peer(0xA0 + n) for n in range(members if child is CHILD else 0))), 0.0)
    return node


def redirected(node: Node, newcomer: int, now: float) -> Peer | None:
    found = sent(node.scribe.join_received(peer(newcomer), TreeJoin(TREE), now), TreeRedirect)
    return found[0][1].child if found else None


def test_rule_3_who_has_no_room_hands_newcomers_to_the_child_with_the_fewest_members() -> None:
    """A burst of them spreads, though no child has reported yet; a child that is one already is always welcome."""
    node = full(members=2)
    chosen = [redirected(node, 0xB0 + turn, 0.1) for turn in range(7)]
    assert chosen == [OTHER, peer(0x71), OTHER, peer(0x71), OTHER, peer(0x71), CHILD]
    node.scribe.alive_received(CHILD, lists(CHILD), 0.2)
    assert redirected(node, 0xC0, 0.3) == CHILD, "it has reported that it has the fewest"
    assert sent(node.scribe.join_received(CHILD, TreeJoin(TREE), 0.3), TreeWelcome)
    node.scribe.check_invariants()


def test_rule_3_nobody_is_handed_to_a_child_that_may_be_dead() -> None:
    node = full()
    node.judge.suspect(OTHER, "reset", 0.0)
    late = P.silence_max_s + 0.1
    for child in (CHILD, OTHER):
        node.scribe.alive_received(child, lists(child), late)
    assert {redirected(node, 0xB0 + turn, late) for turn in range(3)} == {CHILD}, "one is a suspect, one is silent"
    assert sent(node.scribe.join_received(peer(0xB9), TreeJoin(TREE), 3 * late), TreeRefusal)


def test_rule_3_a_redirected_node_asks_there_and_starts_over_where_nobody_answers() -> None:
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    assert node.scribe.redirect_received(OTHER, TreeRedirect(TREE, CHILD), 0.1) == [], "we did not ask it"
    assert node.scribe.redirect_received(PARENT, TreeRedirect(TREE, OTHER), 0.1) == [fx.Send(OTHER, TreeJoin(TREE))]
    again = [(when, to) for when, effect in node.until(0.1 + 1.6 * P.delay_max_s) for to, _ in sent([effect], TreeJoin)]
    assert [to for _, to in again] == [PARENT]
    assert again[0][0] >= 0.1 + P.delay_max_s


@pytest.mark.parametrize("child", [ME, PARENT, CHILD], ids=["ourselves", "back", "our own child"])
def test_rule_3_a_redirect_in_a_circle_is_not_followed(child: Peer) -> None:
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    assert not sent(node.scribe.redirect_received(PARENT, TreeRedirect(TREE, child), 0.1), TreeJoin)
    assert sent([effect for _, effect in node.until(0.1 + 2 * P.retry_min_s)], TreeJoin) == [(PARENT, TreeJoin(TREE))]


def test_rule_3_a_chain_of_redirects_ends() -> None:
    """P7: two peers that hand us to each other, for a while through a third."""
    node = Node()
    node.scribe.join(TREE, member(ME), 0.0)
    asked, chain = [PARENT, OTHER, CHILD], 0
    while sent(node.scribe.redirect_received(asked[chain % 3], TreeRedirect(TREE, asked[(chain + 1) % 3]), 0.1), TreeJoin):
        chain += 1
    assert chain == P.path_max


def test_rule_3_who_has_left_the_tree_meanwhile_joins_in_turn() -> None:
    """Its LEAVE crosses the redirect; a refusal would only cost the newcomer a wait."""
    grove = Grove(TREE, {0x10: None, 0x20: 0x10, 0x21: 0x10, 0x30: 0x10}, capped(2))
    grove.create(0x10)
    grove.join(0x20, 0x21)
    grove.lose = lambda sender, receiver, message: isinstance(message, TreeLeave)
    grove.leave(0x20)
    grove.join(0x30)
    grove.run(0.1)
    assert (grove.way_up(0x30), grove.in_tree()) == ([0x20, 0x10], {0x10, 0x20, 0x21, 0x30})


# --- paths and cycles -------------------------------------------------------------------------------------------------


def test_rule_4_a_new_path_is_told_to_those_below_at_once() -> None:
    node = attached()
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.1)
    effects = node.scribe.pulse_received(PARENT, TreePulse(TREE, (TREE, OTHER.id, PARENT.id)), 0.2)
    assert sent(effects, TreePulse) == [(CHILD, TreePulse(TREE, (TREE, OTHER.id, PARENT.id, ME.id)))]
    effects = node.scribe.died(PARENT, "refused", False, 0.0, 0.3)
    assert sent(effects, TreePulse) == [(CHILD, TreePulse(TREE, (ME.id,)))]


def test_rule_7_who_is_asked_by_its_own_ancestor_while_the_root_is_lost_goes() -> None:
    """The way of the one above leads through us, who were pushed down below it: it is refused, and we make way."""
    node = Node(hop=OTHER)
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (PARENT.id,)), 0.0)
    effects = node.scribe.join_received(PARENT, TreeJoin(TREE), 0.1)
    assert sent(effects, TreeRefusal)
    assert sent(effects, TreeLeave) == [(PARENT, TreeLeave(TREE))]
    assert sent(effects, TreeJoin) == [(OTHER, TreeJoin(TREE))]
    assert sent(node.scribe.join_received(PARENT, TreeJoin(TREE), 0.2), TreeWelcome)


@pytest.mark.parametrize("between", [(), (0x30,), (0x30, 0x31)], ids=["next", "one between", "two between"])
def test_rule_7_the_way_of_the_topmost_leads_to_its_own_descendant_and_the_root_is_found_all_the_same(between: tuple[int, ...]) -> None:
    """0x20 was pushed down below 0x40. Now the root is new, and 0x40's way to it leads through 0x20: each attempt closes a cycle."""
    way = [0x40, *between, 0x20, 0x10]
    grove = Grove(TREE, dict(zip(way, [*way[1:], None], strict=True)))
    grove.down.add(0x10)
    grove.lose = lambda sender, receiver, message: sender == 0x40 and isinstance(message, TreeJoin)
    grove.join(0x40)
    grove.routes |= {0x20: 0x40}
    grove.join(0x20)
    assert grove.way_up(0x20) == [0x40]
    grove.routes |= {0x20: 0x10}
    grove.lose = lambda sender, receiver, message: False
    grove.start(0x10, incarnation=2)
    grove.create(0x10)
    grove.run(5.0)
    assert grove.way_up(0x40) == way[1:]
    assert grove.way_up(0x20) == [0x10]


def test_rule_7_who_hangs_on_its_route_stays_though_the_topmost_is_lost() -> None:
    node = Node(hop=PARENT)
    node.scribe.join(TREE, member(ME), 0.0)
    node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (PARENT.id,)), 0.0)
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    lost = TreePulse(TREE, (PARENT.id,), lost=True)
    assert sent(node.scribe.pulse_received(PARENT, lost, 0.1), TreePulse)[0][1].lost, "and passes it on"
    node.hop = OTHER
    effects = node.scribe.pulse_received(PARENT, lost, 0.2)
    assert sent(effects, TreeLeave) == [(PARENT, TreeLeave(TREE))]
    assert sent(effects, TreeJoin) == [(OTHER, TreeJoin(TREE))]


def test_rule_7_who_went_for_a_lost_root_and_is_pushed_down_again_stays_there_for_a_while() -> None:
    """The way leads to OTHER, which is full and hands us to PARENT: as long as the root is lost, that would go round and round."""
    node = Node(hop=OTHER)
    node.scribe.join(TREE, member(ME), 0.0)
    lost = TreePulse(TREE, (OTHER.id, PARENT.id), lost=True)

    def handed_to_the_parent(now: float) -> None:
        node.scribe.redirect_received(OTHER, TreeRedirect(TREE, PARENT), now)
        node.scribe.welcome_received(PARENT, TreeWelcome(TREE, (OTHER.id, PARENT.id)), now)

    handed_to_the_parent(0.1)
    assert sent(node.scribe.pulse_received(PARENT, lost, 1.0), TreeJoin) == [(OTHER, TreeJoin(TREE))]
    handed_to_the_parent(1.1)
    assert not sent(node.scribe.pulse_received(PARENT, lost, 1.2), TreeLeave)
    later = 1.0 + P.silence_max_s
    assert sent(node.scribe.pulse_received(PARENT, lost, later), TreeJoin) == [(OTHER, TreeJoin(TREE))], "the ring may know better by now"


def test_rule_2_the_closest_node_hangs_below_nobody_who_does_not_reach_the_root() -> None:
    """Every way leads to it: while it hangs below a stranger, that one and all others look in vain."""
    node = attached()
    node.hop = None
    assert not sent(node.scribe.pulse_received(PARENT, TreePulse(TREE, (TREE, PARENT.id)), 0.1), TreeLeave), "the root is there"
    assert sent(node.scribe.pulse_received(PARENT, TreePulse(TREE, (PARENT.id,)), 0.2), TreeLeave) == [(PARENT, TreeLeave(TREE))]


def test_rule_2_a_root_that_was_a_forwarder_before_tells_of_members_that_it_had_passed_up() -> None:
    node = Node(ROOT, hop=None)
    node.scribe.join_received(CHILD, TreeJoin(TREE), 0.0)
    node.scribe.welcome_received(OTHER, TreeWelcome(TREE, (OTHER.id,)), 0.1)
    node.scribe.alive_received(CHILD, lists(CHILD), 0.2)
    [changed] = of(fx.MembersChanged, node.scribe.create(TREE, 0.3))
    assert changed.joined == (member(CHILD),)


# --- whole lists ------------------------------------------------------------------------------------------------------


def test_rule_5_a_whole_list_is_not_asked_for_again_while_it_is_on_its_way() -> None:
    node = rooted(CHILD)
    missed = replace(lists(CHILD, OTHER), joined=(), full=False)
    asked = [sent(node.scribe.alive_received(CHILD, missed, when), TreePulse)[0][1].resync for when in (1.0, 1.1, 1.2, 1.3)]
    assert asked == [True, False, False, False]
    first = replace(missed, joined=(member(CHILD),), full=True, more=True)
    assert not sent(node.scribe.alive_received(CHILD, first, 1.4), TreePulse), "a part is not compared"
    last = replace(missed, joined=(member(OTHER),), full=True)
    assert not sent(node.scribe.alive_received(CHILD, last, 1.4), TreePulse)[0][1].resync
    assert set(node.scribe.trees[TREE].members) == {CHILD.id, OTHER.id}


def test_rule_5_who_asks_for_whole_lists_without_end_gets_one_in_a_heartbeat() -> None:
    node = attached()
    ask = TreePulse(TREE, (TREE, PARENT.id), resync=True)
    answers = [sent(node.scribe.pulse_received(PARENT, ask, 1.0 + step / 100), Alive) for step in range(10)]
    assert [bool(found) for found in answers] == [True] + 9 * [False]


def test_rule_5_now_and_then_the_whole_list_is_sent_unasked() -> None:
    """A name is not in the digest: a parent that has a wrong one would keep it for ever."""
    node, beats = attached(), 1
    while not sent(node.scribe.on_timer(when := node.scribe.next_deadline() or 0.0), Alive)[0][1].full:
        node.scribe.pulse_received(PARENT, TreePulse(TREE, (TREE, PARENT.id)), when)
        beats += 1
    assert 225 <= beats <= 375


# --- many trees -------------------------------------------------------------------------------------------------------

FIFTY = [node_id(leading) for leading in range(0x90, 0x90 + 50)]


def crowded() -> Node:
    """A node in fifty trees, in the first as the parent of OTHER too."""
    node = Node()
    for tree in FIFTY:
        node.scribe.join(tree, member(ME), 0.0)
        node.scribe.welcome_received(PARENT, TreeWelcome(tree, (tree, PARENT.id)), 0.0)
    node.scribe.join_received(OTHER, TreeJoin(FIFTY[0]), 0.0)
    return node


def test_in_fifty_trees_a_relative_is_listed_once_and_the_revision_tells_when_the_list_changes() -> None:
    node = crowded()
    assert node.scribe.relatives() == (PARENT, OTHER)
    before = node.scribe.revision
    for tree in FIFTY:
        node.scribe.pulse_received(PARENT, TreePulse(tree, (tree, PARENT.id)), 0.1)
    node.scribe.alive_received(OTHER, replace(lists(OTHER), tree=FIFTY[0]), 0.1)
    node.scribe.refusal_received(PARENT, TreeRefusal(FIFTY[1], "no"), 0.1)
    assert node.scribe.revision == before, "it is our parent in 49 others"
    later = replace(OTHER, incarnation=2)
    node.scribe.alive_received(later, replace(lists(later), tree=FIFTY[0]), 0.2)
    assert node.scribe.revision > before
    assert node.scribe.relatives() == (PARENT, later)
    before = node.scribe.revision
    node.scribe.leave_received(later, TreeLeave(FIFTY[0]))
    assert node.scribe.revision > before
    assert node.scribe.relatives() == (PARENT,)
    node.scribe.check_invariants()


def test_in_fifty_trees_only_those_of_the_dead_are_repaired() -> None:
    node = crowded()
    effects = node.scribe.died(OTHER, "refused", False, 0.0, 0.1)
    assert {message.tree for _, message in sent(effects, Alive)} <= {FIFTY[0]}
    effects = node.scribe.died(PARENT, "refused", False, 0.0, 0.2)
    assert [message.tree for _, message in sent(effects, TreeJoin)] == FIFTY
    node.scribe.check_invariants()
    assert node.scribe.relatives() == ()


def test_in_fifty_trees_each_has_its_own_heartbeat() -> None:
    node, late = crowded(), node_id(0x05)
    node.scribe.join(late, member(ME), 0.1)
    node.scribe.welcome_received(PARENT, TreeWelcome(late, (late, PARENT.id)), 0.1)
    assert {message.tree for _, message in sent(node.scribe.on_timer(P.heartbeat_interval_s), Alive)} == set(FIFTY)
    assert {message.tree for _, message in sent(node.scribe.on_timer(0.1 + P.heartbeat_interval_s), Alive)} == {late}
