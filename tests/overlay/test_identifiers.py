"""Ids on Pastry's ring (Rowstron & Druschel 2001, section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identifiers import (
    DIGITS,
    RING,
    Address,
    NodeId,
    agent_id,
    clockwise,
    closest,
    digit,
    rank,
    ring_distance,
    shared_prefix,
    tree_id,
)

IDS = st.integers(0, RING - 1).map(NodeId)
NEAR = st.tuples(IDS, st.integers(0, 127)).map(lambda pair: (pair[0], NodeId(pair[0] ^ (1 << pair[1]))))
"""Two ids that differ in one bit: random pairs share hardly a digit."""


@given(IDS, IDS)
def test_distance_is_the_shorter_way_round_and_the_same_from_both_sides(a: NodeId, b: NodeId) -> None:
    assert ring_distance(a, b) == ring_distance(b, a) == min(clockwise(a, b), clockwise(b, a))
    assert (clockwise(a, b) + clockwise(b, a)) % RING == 0
    assert ring_distance(a, b) <= RING // 2


def test_after_the_largest_id_comes_zero() -> None:
    assert ring_distance(RING - 1, 0) == 1
    assert clockwise(RING - 1, 0) == 1
    assert clockwise(0, RING - 1) == RING - 1


@given(IDS, st.integers(0, DIGITS - 1))
def test_a_digit_is_what_one_reads_in_hexadecimal(identifier: NodeId, index: int) -> None:
    assert digit(identifier, index) == int(str(identifier)[index], 16)


@given(st.one_of(NEAR, st.tuples(IDS, IDS)))
def test_the_shared_prefix_is_that_of_the_written_digits(pair: tuple[NodeId, NodeId]) -> None:
    a, b = pair
    written = next((i for i, (x, y) in enumerate(zip(str(a), str(b), strict=True)) if x != y), DIGITS)
    assert shared_prefix(a, b) == written


@given(IDS, st.integers(1, RING // 2 - 1))
def test_of_two_equally_far_the_smaller_id_is_closest_whatever_the_order(key: NodeId, step: int) -> None:
    """Every node must choose the same one, or two would deliver (P3)."""
    pair = [NodeId((key + step) % RING), NodeId((key - step) % RING)]
    assert closest(key, pair) == closest(key, reversed(pair)) == min(pair)
    assert rank(key, key) < rank(key, min(pair))


def test_ids_made_from_names_never_change() -> None:
    """An agent that restarts on another version must come back as itself, and find its replicas."""
    assert str(agent_id("default", "agent-0")) == "750f5e837f8ce7305395b06268bc7f4a"
    assert str(tree_id("main", "parking")) == "f97f6c518d1dd1ad13d6d1405cc56d64"


def test_names_are_not_run_together() -> None:
    assert agent_id("ab", "c") != agent_id("a", "bc")
    assert tree_id("ab", "c") != tree_id("a", "bc")
    assert tree_id("a", "b") != agent_id("a", "b")


@given(IDS)
def test_sixteen_bytes_and_back(identifier: NodeId) -> None:
    assert len(identifier.pack()) == 16
    assert NodeId.unpack(identifier.pack()) == identifier
    assert identifier.short == str(identifier)[:8]


@pytest.mark.parametrize("value", [-1, RING])
def test_what_is_off_the_ring_is_no_id(value: int) -> None:
    with pytest.raises(ValueError, match="128 bits"):
        NodeId(value)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_an_id_is_sixteen_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        NodeId.unpack(bytes(length))


def test_an_address_of_ip_version_6_is_written_in_brackets() -> None:
    assert str(Address("::1", 7400)) == "[::1]:7400"
    assert str(Address("host", 7400)) == "host:7400"
