"""One tree as one node sees it: its members are the union of its branches, whatever the order of the news."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.identifiers import NodeId, Peer
from protocol.overlay.roster import Roster, check_of
from protocol.overlay.tree import COUNT_MAX, PART_MAX, SUBTREE_MAX, Branch, Tree, check_alive
from protocol.parameters import OverlayParameters
from protocol.wire.codec import encode
from protocol.wire.messages import Alive
from protocol.wire.values import Departed, MemberInfo, Progress, SubtreeDigest
from tests.overlay.scene import ME, member, node_id, peer

TREE = node_id(0x10)
LEFT, RIGHT = peer(0x20), peer(0x30)


def tree_with(*children: object) -> Tree:
    tree = Tree(TREE, ME, 32)
    for child in children:
        tree.children[child.id] = Branch(child, heard=0.0)
    return tree


def alive(*joined: MemberInfo, gone: tuple[Departed, ...] = (), full: bool = False) -> Alive:
    return Alive(TREE, SubtreeDigest(members=len(joined)), Progress(), joined, gone, full)


def gone(leading: int, incarnation: int = 1, cause: str = "moved") -> Departed:
    return Departed(peer(leading).id, incarnation, cause, "why")


def lives(tree: Tree) -> dict[NodeId, int]:
    return {identifier: found.peer.incarnation for identifier, found in tree.members.items()}


NEWS = st.lists(st.tuples(st.sampled_from([LEFT, RIGHT]), st.booleans(), st.integers(1, 5), st.integers(1, 3)), max_size=30)
"""Which branch says that which member came or went, in which life."""


@given(NEWS, st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_the_members_are_the_union_of_what_the_branches_list_each_by_its_latest_life(
    news: list[tuple[object, bool, int, int]], seed: int
) -> None:
    """Members move, restart and die while two branches report at their own pace; what is told up must add up to the same."""
    tree, listed, rng = tree_with(LEFT, RIGHT), {LEFT.id: {}, RIGHT.id: {}}, Random(seed)
    root, told = tree_with(ME), {}
    for child, comes, leading, life in news:
        branch, mine = tree.children[child.id], listed[child.id]
        identifier = peer(leading).id
        if comes:
            tree.update_branch(branch, alive(member(peer(leading, life))))
            mine[identifier] = life
        else:
            tree.update_branch(branch, alive(gone=(gone(leading, life),)))
            if mine.get(identifier, life + 1) <= life:
                del mine[identifier]
        tree.check_invariants()
        union = {key: max(lists.get(key, 0) for lists in listed.values()) for lists in listed.values() for key in lists}
        assert lives(tree) == union
        if rng.random() < 0.4:
            told = pass_up(tree, root)
    told = pass_up(tree, root)
    assert told == lives(tree), "who was told only of changes knows the same members"
    assert root.members.check == tree.members.check


def pass_up(tree: Tree, root: Tree) -> dict[NodeId, int]:
    joined, departed = tree.take_changes()
    root.update_branch(root.children[ME.id], alive(*joined, gone=departed))
    root.check_invariants()
    return lives(root)


def test_a_member_that_moves_is_never_gone_whichever_branch_reports_first() -> None:
    """Its new parent and its old one tell the root in either order; a third piece of news comes between."""
    news = [
        (RIGHT, alive(member(peer(1)))),
        (RIGHT, alive(member(peer(2)))),
        (LEFT, alive(gone=(gone(1),))),
    ]
    for order in permutations(news):
        tree = tree_with(LEFT, RIGHT)
        tree.update_branch(tree.children[LEFT.id], alive(member(peer(1))))
        tree.take_changes()
        for child, message in order:
            tree.update_branch(tree.children[child.id], message)
        assert lives(tree) == {peer(1).id: 1, peer(2).id: 1}
        _, departed = tree.take_changes()
        assert departed == ()


def test_a_restart_between_two_reports_is_told_as_a_death_and_a_later_life() -> None:
    """What starts a recovery: the root hears of the death although the next life is there already."""
    tree = tree_with(LEFT, RIGHT)
    tree.update_branch(tree.children[LEFT.id], alive(member(peer(1))))
    tree.take_changes()
    tree.update_branch(tree.children[RIGHT.id], alive(member(peer(1, 2))))
    tree.update_branch(tree.children[LEFT.id], alive(gone=(gone(1, 1, "died"),)))
    joined, departed = tree.take_changes()
    assert [found.peer.incarnation for found in joined] == [2]
    assert [(found.id, found.incarnation, found.cause) for found in departed] == [(peer(1).id, 1, "died")]


def test_a_death_is_told_though_the_member_is_listed_again_before_the_next_report() -> None:
    """Reported dead by one parent, heard through another: whether it restarted is for the root to judge, from both."""
    tree = tree_with(LEFT, RIGHT)
    tree.update_branch(tree.children[LEFT.id], alive(member(peer(1))))
    tree.take_changes()
    tree.update_branch(tree.children[LEFT.id], alive(gone=(gone(1, 1, "died"),)))
    tree.update_branch(tree.children[RIGHT.id], alive(member(peer(1, 2))))
    joined, departed = tree.take_changes()
    assert ([found.peer.incarnation for found in joined], [found.cause for found in departed]) == ([2], ["died"])


def test_an_earlier_life_that_outlasts_the_later_one_is_not_kept_for_ever() -> None:
    """The later life was listed and withdrawn in favour of an earlier one; when that goes too, the member is gone."""
    tree = tree_with(LEFT)
    branch = tree.children[LEFT.id]
    tree.update_branch(branch, alive(member(peer(1, 2))))
    assert [found.peer.incarnation for found in tree.take_changes()[0]] == [2]
    tree.update_branch(branch, alive(member(peer(1, 1))))
    assert lives(tree) == {peer(1).id: 1}
    tree.update_branch(branch, alive(gone=(gone(1, 1),)))
    assert lives(tree) == {}
    joined, departed = tree.take_changes()
    assert joined == ()
    assert [found.incarnation for found in departed] == [2], "who was told of life 2 must forget that one"


def test_a_full_list_replaces_what_was_known() -> None:
    tree = tree_with(LEFT)
    branch = tree.children[LEFT.id]
    tree.update_branch(branch, alive(member(peer(1)), member(peer(2))))
    tree.update_branch(branch, alive(member(peer(2)), full=True))
    assert lives(tree) == {peer(2).id: 1}


def test_with_a_branch_its_members_are_orphaned_and_the_child_itself_has_the_cause() -> None:
    """Scribe III-B: who died is one; those below it must be heard again through another parent."""
    tree = tree_with(LEFT, RIGHT)
    tree.update_branch(tree.children[LEFT.id], alive(member(LEFT), member(peer(1)), member(peer(2))))
    tree.update_branch(tree.children[RIGHT.id], alive(member(peer(2))))
    tree.take_changes()
    tree.remove_branch(LEFT.id, "died", "connection reset" + "x" * 9000, silent_ms=7)
    _, departed = tree.take_changes()
    assert [(found.id, found.cause, found.silent_ms) for found in departed] == [(LEFT.id, "died", 7), (peer(1).id, "orphaned", 0)]
    assert max(len(found.reason) for found in departed) <= 500, "reasons come from peers, and go on to peers"
    assert lives(tree) == {peer(2).id: 1}, "which RIGHT has too"


def test_the_digest_is_the_sum_over_branches_and_ourselves() -> None:
    tree = tree_with(LEFT, RIGHT, peer(0x40))
    tree.children[LEFT.id].digest = SubtreeDigest(2, NodeId(0), 30, 10, 20, 1.5, 2, 4)
    tree.children[RIGHT.id].digest = SubtreeDigest(1, NodeId(0), 7, 7, 7, 0.0, 0, 3)
    tree.add_self(member(ME))
    tree.progress = Progress(iteration=12, loss=0.25, replicas=2)
    digest = tree.digest()
    assert (digest.iterations_sum, digest.iterations_min, digest.iterations_max) == (49, 7, 20), "a branch without members has no minimum"
    assert (digest.loss_sum, digest.loss_count, digest.replicas_sum) == (1.75, 3, 9)
    assert digest.members == 1, "members are counted by name, not summed"


def test_the_check_tells_apart_two_members_that_have_both_restarted() -> None:
    """A whole rack restarts, every agent from life 1 to life 2, and the news is lost: XOR must not cancel it out."""
    rng = Random(3)
    ids = [NodeId(rng.getrandbits(128)) for _ in range(4)]
    seen = set()
    for mask in range(16):
        members = [member(peer(1, 1 + (mask >> index & 1))) for index in range(4)]
        named = {i: MemberInfo(type(m.peer)(i, "h", 1, m.peer.incarnation), "a", "b", 1) for i, m in zip(ids, members, strict=True)}
        seen.add(check_of(named.values()))
    assert len(seen) == 16


@pytest.mark.parametrize("incarnation", [-1, -(2**63), 2**64 - 1])
def test_the_check_of_whatever_a_peer_may_list_is_an_id(incarnation: int) -> None:
    assert isinstance(check_of([member(peer(1, incarnation))]), NodeId)


def test_a_branch_agrees_when_its_digest_is_that_of_its_members() -> None:
    branch = Branch(LEFT, 0.0)
    assert branch.agrees()
    for leading in (1, 2):
        branch.members[peer(leading).id] = member(peer(leading))
    branch.digest = SubtreeDigest(members=2, check=branch.members.check)
    assert branch.agrees()
    for other in ({peer(1).id: member(peer(1))}, {**branch.members, peer(2).id: member(peer(2, 2))}):
        branch.digest = SubtreeDigest(members=len(other), check=check_of(other.values()))
        assert not branch.agrees()


@pytest.mark.parametrize(
    "message",
    [
        Alive(TREE, SubtreeDigest(members=-1), Progress()),
        Alive(TREE, SubtreeDigest(iterations_sum=COUNT_MAX + 1), Progress()),
        Alive(TREE, SubtreeDigest(), Progress(iteration=-1)),
        Alive(TREE, SubtreeDigest(), Progress(), (member(peer(1), "x" * 1001),)),
        Alive(TREE, SubtreeDigest(), Progress(), (), (Departed(peer(1).id, 1, "died", "x" * 1001),)),
    ],
)
def test_a_child_that_says_what_our_own_parent_would_refuse_is_refused(message: Alive) -> None:
    """P7: sums that overflow the wire, texts that overflow the frame: passed on, they would look like our own fault."""
    with pytest.raises(RemoteProtocolError):
        check_alive(Branch(LEFT, 0.0), message)


def test_the_revision_grows_with_each_change_and_only_then() -> None:
    tree = tree_with(LEFT)
    branch, revisions = tree.children[LEFT.id], [tree.revision]
    for message in (alive(member(peer(1))), alive(member(peer(1), "renamed")), alive(gone=(gone(1),))):
        tree.update_branch(branch, message)
        revisions.append(tree.revision)
    assert all(after > before for before, after in pairwise(revisions))
    tree.update_branch(branch, alive(gone=(gone(1),)))
    assert tree.revision == revisions[-1]


# --- long lists -------------------------------------------------------------------------------------------------------


def crowd(count: int, name: str = "agent") -> list[MemberInfo]:
    rng = Random(count)
    return [member(Peer(NodeId(rng.getrandbits(128)), "10.0.0.1", 1, 1), name) for _ in range(count)]


def listing(members: list[MemberInfo]) -> Tree:
    """A tree that has just heard of all these from its one child."""
    tree = tree_with(LEFT)
    tree.update_branch(tree.children[LEFT.id], alive(*members))
    return tree


@pytest.mark.parametrize(("count", "name"), [(10_000, "agent-1234567890"), (600, "\U0001f600" * 1000)], ids=["many", "long names"])
def test_a_list_of_any_length_goes_up_in_parts_that_fit_a_frame(count: int, name: str) -> None:
    below, above = listing(crowd(count, name)), tree_with(ME)
    for full in (False, True):
        below.tell_all = full
        parts = below.reports()
        assert max(len(encode(part)) for part in parts) < OverlayParameters().control_frame_bytes_max // 2
        assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
        for part in parts:
            above.update_branch(above.children[ME.id], part)
        assert above.children[ME.id].agrees()
        assert len(above.members) == count
        above.check_invariants()
    assert len(below.reports()) == 1, "all is told"


def test_who_went_is_told_in_parts_too() -> None:
    below, above = listing(crowd(1200)), tree_with(ME)
    for part in below.reports():
        above.update_branch(above.children[ME.id], part)
    below.remove_branch(LEFT.id, "died", "connection reset")
    parts = below.reports()
    assert len(parts) == 3
    for part in parts:
        above.update_branch(above.children[ME.id], part)
    assert not above.members
    assert above.children[ME.id].agrees()


def test_a_whole_list_counts_when_its_last_part_is_there_and_is_forgotten_when_it_breaks_off() -> None:
    above = tree_with(LEFT)
    branch = above.children[LEFT.id]
    above.update_branch(branch, alive(member(peer(1))))
    above.update_branch(branch, replace(alive(member(peer(2)), full=True), more=True))
    assert lives(above) == {peer(1).id: 1}
    above.update_branch(branch, alive())
    above.update_branch(branch, alive(member(peer(3)), full=True))
    assert lives(above) == {peer(3).id: 1}, "peer 2 was in a list that broke off"


def test_who_died_is_told_as_dead_though_the_whole_list_lacks_it_too() -> None:
    tree = tree_with(LEFT)
    tree.update_branch(tree.children[LEFT.id], alive(member(peer(1))))
    tree.take_changes()
    tree.update_branch(tree.children[LEFT.id], alive(gone=(gone(1, cause="left"),), full=True))
    assert [found.cause for found in tree.take_changes()[1]] == ["left"]


@pytest.mark.parametrize("full", [True, False], ids=["in parts of one list", "one by one"])
def test_a_child_that_lists_members_without_end_is_refused(full: bool) -> None:
    """P7: `more` and `more` and `more`."""
    tree = tree_with(LEFT)
    branch = tree.children[LEFT.id]
    members = crowd(SUBTREE_MAX + 2 * PART_MAX)
    parts = [replace(alive(*members[at : at + PART_MAX], full=full), more=full) for at in range(0, len(members), PART_MAX)]
    for part in parts[:-2]:
        check_alive(branch, part)
        tree.update_branch(branch, part)
    with pytest.raises(RemoteProtocolError, match="members below one child"):
        check_alive(branch, parts[-2])


def test_the_fingerprint_runs_along() -> None:
    roster, members = Roster(), crowd(5)
    for found in members:
        roster[found.peer.id] = found
    roster[members[0].peer.id] = later = replace(members[0], peer=replace(members[0].peer, incarnation=2))
    del roster[members[1].peer.id]
    assert roster.pop(members[2].peer.id) == members[2]
    assert roster.pop(members[2].peer.id, None) is None
    assert roster.check == check_of([later, *members[3:]]) == check_of(roster.values())
