"""Routing (Pastry, section 2.3) over a whole ring of Pastry objects, without a network between them."""

from __future__ import annotations

from itertools import pairwise
from math import log
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identifiers import BITS, RING, NodeId, Peer, closest, rank, shared_prefix
from protocol.overlay.pastry import Pastry
from tests.overlay.scene import P, detector


def ring(ids: list[NodeId], seed: int) -> dict[NodeId, Pastry]:
    """Each node with its right leaf set, and its table filled from the others in an order of chance."""
    rng, nodes = Random(seed), dict[NodeId, Pastry]()
    peers = [Peer(identifier, "h", index, 1) for index, identifier in enumerate(ids)]
    for me in peers:
        nodes[me.id] = pastry = Pastry(me, P, rng, detector())
        for other in rng.sample(peers, len(peers)):
            pastry.table.insert(other)
            pastry.leaf_set.insert(other)
    return nodes


def travel(nodes: dict[NodeId, Pastry], start: NodeId, key: NodeId) -> list[NodeId]:
    way = [start]
    while (hop := nodes[way[-1]].next_hop(key)) is not None:
        way.append(hop.id)
        assert len(way) <= P.hops_max, "it goes in circles"
    return way


@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_nodes_reach_the_closest_in_about_log16_n_hops(seed: int) -> None:
    """P3 and Pastry's figure: about log16 N hops on average (a fifth of a hop for so small a sample), few more at most."""
    rng = Random(seed)
    ids = [NodeId(rng.getrandbits(BITS)) for _ in range(200)]
    nodes, hops = ring(ids, seed), []
    for _ in range(500):
        key = NodeId(rng.getrandbits(BITS))
        way = travel(nodes, rng.choice(ids), key)
        assert way[-1] == closest(key, ids)
        hops.append(len(way) - 1)
    assert sum(hops) / len(hops) < log(200, 16) + 0.2
    assert max(hops) <= log(200, 16) + 2


@given(
    st.lists(st.integers(0, RING - 1).map(NodeId), min_size=1, max_size=40, unique=True),
    st.lists(st.integers(0, RING - 1).map(NodeId), min_size=1, max_size=6),
)
@settings(deadline=None, max_examples=40)
def test_every_ring_however_its_ids_lie_delivers_at_the_closest(ids: list[NodeId], keys: list[NodeId]) -> None:
    """Rings of one and two nodes, clusters of ids that hypothesis likes, keys that are somebody's id."""
    nodes = ring(ids, 1)
    for key in (*keys, *ids[:3]):
        for start in ids:
            assert travel(nodes, start, key)[-1] == closest(key, ids)


@pytest.mark.parametrize("count", [13, 14])
def test_a_key_in_the_gap_that_no_leaf_set_covers(count: int) -> None:
    """A ring of L + 1: everybody is known, yet the gap opposite to us lies outside of our leaf set's range."""
    ids = [NodeId(index * RING // count) for index in range(count)]
    nodes = ring(ids, 1)
    for step in range(count):
        key = NodeId((ids[step] + RING // (2 * count) + 5) % RING)
        for start in ids:
            assert travel(nodes, start, key)[-1] == closest(key, ids)


def test_each_hop_gains_a_digit_or_comes_closer() -> None:
    """Pastry 2.3: that is why a route ends."""
    rng = Random(9)
    ids = [NodeId(rng.getrandbits(BITS)) for _ in range(150)]
    nodes = ring(ids, 9)
    for _ in range(300):
        key = NodeId(rng.getrandbits(BITS))
        way = travel(nodes, rng.choice(ids), key)
        for before, after in pairwise(way):
            assert shared_prefix(after, key) > shared_prefix(before, key) or rank(key, after) < rank(key, before)
