"""The leaf set (Pastry, section 2.2) against an oracle that sorts the ring anew each time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import RING, NodeId, Peer, clockwise, rank
from protocol.overlay.leaf_set import LeafSet

SIDE = 2
CENTERS = st.integers(0, RING - 1).map(NodeId)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(1, 3)), max_size=40)
"""Insert or remove, which of sixteen nodes, in which life."""


def ring_of(center: NodeId, offsets: list[int]) -> list[NodeId]:
    return [NodeId((center + offset) % RING) for offset in offsets]


OFFSETS = st.lists(st.integers(1, RING - 1), min_size=16, max_size=16, unique=True)


def sides(center: NodeId, known: dict[NodeId, Peer], side: int) -> tuple[list[Peer], list[Peer]]:
    """The oracle: the nearest in each direction."""
    after = sorted(known.values(), key=lambda peer: clockwise(center, peer.id))
    before = sorted(known.values(), key=lambda peer: clockwise(peer.id, center))
    return after[:side], before[:side]


def at(identifier: NodeId, incarnation: int = 1) -> Peer:
    return Peer(identifier, "h", 1, incarnation)


@given(CENTERS, OFFSETS, STEPS, st.lists(st.integers(0, RING - 1).map(NodeId), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_whatever_comes_and_goes_it_agrees_with_the_sorted_ring(
    center: NodeId, offsets: list[int], steps: list[tuple[bool, int, int]], keys: list[NodeId]
) -> None:
    ids, leaf_set, known = ring_of(center, offsets), LeafSet(center, SIDE), dict[NodeId, Peer]()
    for insert, which, life in steps:
        identifier = ids[which]
        if not insert:
            assert leaf_set.remove(identifier) == (known.pop(identifier, None) is not None)
        else:
            before = dict(known)
            if identifier in known:
                known[identifier] = max(known[identifier], at(identifier, life), key=lambda peer: peer.incarnation)
            else:
                right, left = sides(center, {**known, identifier: at(identifier, life)}, SIDE)
                known = {peer.id: peer for peer in (*right, *left)}
                assert leaf_set.admits(identifier) == (identifier in known)
            assert leaf_set.insert(at(identifier, life)) == (known != before)
        right, left = sides(center, known, SIDE)
        assert (list(leaf_set.right), list(leaf_set.left)) == (right, left)
        assert {peer.id: peer for peer in leaf_set} == known
        for key in (*keys, *ids, center):
            agrees_on_a_key(leaf_set, known, key)
        agrees_on_placement(leaf_set, right, left)


def agrees_on_a_key(leaf_set: LeafSet, known: dict[NodeId, Peer], key: NodeId) -> None:
    winner = min([leaf_set.center, *known], key=lambda identifier: rank(key, identifier))
    found = leaf_set.closest(key)
    assert (found.id if found else leaf_set.center) == winner
    assert (leaf_set.get(key) is not None) == (key in leaf_set) == (key in known)
    if len(known) < 2 * SIDE:
        assert leaf_set.covers(key), "all that we know is believed to be the ring"
    else:
        first, last = leaf_set.left[-1].id, leaf_set.right[-1].id
        inside = clockwise(leaf_set.center, key) <= clockwise(leaf_set.center, last)
        assert leaf_set.covers(key) == (inside or clockwise(key, leaf_set.center) <= clockwise(first, leaf_set.center))


def agrees_on_placement(leaf_set: LeafSet, right: list[Peer], left: list[Peer]) -> None:
    """FMRec's order of holders: nearest first, right and left in turn, each once."""
    turns = [side[turn] for turn in range(SIDE) for side in (right, left) if turn < len(side)]
    assert leaf_set.alternating() == list(dict.fromkeys(turns))


@pytest.mark.parametrize("others", [0, 1, 2, 4, 5, 9])
def test_rings_of_one_two_L_and_more_nodes(others: int) -> None:
    """Pastry: a ring of at most L + 1 nodes has everybody in its leaf set, and both sides overlap."""
    leaf_set = LeafSet(NodeId(0), SIDE)
    for step in range(1, others + 1):
        leaf_set.insert(at(NodeId(step * (RING // 16))))
    assert len(leaf_set) == min(others, 2 * SIDE)
    assert len(leaf_set.right) == len(leaf_set.left) == min(others, SIDE)
    assert leaf_set.overlaps == (others < 2 * SIDE)
    assert len(leaf_set.alternating()) == len(leaf_set)


def test_the_center_is_never_its_own_neighbour() -> None:
    leaf_set = LeafSet(NodeId(5), SIDE)
    assert not leaf_set.insert(at(NodeId(5)))
    assert not leaf_set.admits(NodeId(5))
    assert leaf_set.closest(5) is None
    assert not leaf_set.remove(NodeId(5))


def test_a_joiner_is_not_its_own_next_hop() -> None:
    """`avoid`: a JOIN with the joiner's id as its key goes to the closest other node."""
    leaf_set = LeafSet(NodeId(100), SIDE)
    leaf_set.insert(at(NodeId(200)))
    leaf_set.insert(at(NodeId(190)))
    assert leaf_set.closest(NodeId(200)) == at(NodeId(200))
    assert leaf_set.closest(NodeId(200), avoid={NodeId(200)}) == at(NodeId(190))


def test_an_earlier_life_replaces_nothing() -> None:
    leaf_set = LeafSet(NodeId(100), SIDE)
    assert leaf_set.insert(at(NodeId(200), 2))
    assert not leaf_set.insert(at(NodeId(200), 1))
    assert leaf_set.get(NodeId(200)) == at(NodeId(200), 2)
    assert leaf_set.right == (at(NodeId(200), 2),)
